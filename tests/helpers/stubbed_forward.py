"""Runs forwards of the fused path on a stand-in for the CUDA driver, and prints what the host does a layer, as JSON.

    LD_LIBRARY_PATH=<folder of libcuda.so.1 from cuda_stub.c> python -m tests.helpers.stubbed_forward

Kernels are compiled for an H100 and launched by Triton, but do not run, so results are arbitrary. Tensors are on the
CPU. TRITON_INTERPRET must not be set.
"""

import ctypes
import gc
import json
import sys
import time
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastvec.decoders.fused import AttentionSettings, FusedDecoder, Layer, Norm, floats
from fastvec.texts.packing import Packed, pack
from fastvec_kernels import Fp8Rows, _launch, pool
from tests import ROOT

OWN = (str(ROOT / "fastvec"), str(ROOT / "kernels"))
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, SIZE = 1024, 3072, 16, 8, 128  # Qwen3-0.6B
LENGTHS = {"short": (20,) * 8, "long": (200,) * 8}  # by name, sequences that attention handles in one launch


class StubDriver:
    """What Triton asks of a driver; its calls go to the stand-in."""

    launcher_cls = CudaLauncher

    def __init__(self) -> None:
        self.utils = CudaUtils()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def allocate_default_profile_scratch(self, size: int, align: int, stream: int) -> None:
        return None


class EmptyProduct:
    """A linear map to `width` columns that computes nothing: only the host's work around the kernels matters."""

    takes_fp8: ClassVar[bool] = False
    bias = None

    def __init__(self, width: int) -> None:
        self._width = width

    def product(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return floats(x).new_empty(floats(x).shape[0], self._width)

    def __call__(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return self.product(x)


def decoder(layers: int) -> FusedDecoder:
    def weight(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.bfloat16)

    how = AttentionSettings(
        heads=HEADS, kv_heads=KV_HEADS, scale=SIZE**-0.5, causal=False, window=None, softcap=None, sinks=None
    )
    layer = Layer(
        heads=HEADS,
        kv_heads=KV_HEADS,
        qkv=EmptyProduct((HEADS + 2 * KV_HEADS) * SIZE),
        q_norm=Norm(weight(SIZE), 1e-6),
        k_norm=Norm(weight(SIZE), 1e-6),
        rotary=0,
        attending=how,
        output=EmptyProduct(HIDDEN),
        gate_up=EmptyProduct(2 * INTERMEDIATE),
        activation="silu",
        down=EmptyProduct(HIDDEN),
        before_attention=Norm(weight(HIDDEN), 1e-6),
        after_attention=None,
        before_mlp=Norm(weight(HIDDEN), 1e-6),
        after_mlp=None,
        scale=1.0,
        head_size=SIZE,
    )
    table = (torch.zeros(512, SIZE // 2), torch.zeros(512, SIZE // 2))
    embeddings = torch.nn.Embedding(100, HIDDEN, dtype=torch.bfloat16)
    return FusedDecoder(embeddings, 1.0, [layer] * layers, [table], Norm(weight(HIDDEN), 1e-6))


def forward(model: FusedDecoder, packed: Packed) -> torch.Tensor:
    hidden, residual = model(packed)
    norm = model.norm
    return pool(hidden, packed.spans, "mean", residual=residual, weight=norm.weight, eps=norm.eps, normalize=True)


class Calls:
    """Counts the calls of this project's Python functions in a block, and how often Triton looks a kernel up."""

    def __enter__(self) -> "Calls":
        self.functions = self.lookups = 0
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            self.functions += frame.f_code.co_filename.startswith(OWN)
            self.lookups += frame.f_code is JITFunction.run.__code__


def measure(layers: int, packed: Packed, library: ctypes.CDLL) -> tuple[float, ...]:
    """Return launches, Python calls, lookups and seconds of a forward."""
    model = decoder(layers)
    forward(model, packed)  # compiles
    before = library.stub_launches()
    gc.disable()
    with Calls() as calls:
        forward(model, packed)
    launches = library.stub_launches() - before
    seconds = []
    for _ in range(100):
        begin = time.perf_counter()
        forward(model, packed)
        seconds.append(time.perf_counter() - begin)
    return launches, calls.functions, calls.lookups, min(seconds)


def main() -> None:
    driver.set_active(StubDriver())
    _launch._kernels_on_cpu = True  # CPU tensors take the kernels, which here are compiled
    library = ctypes.CDLL("libcuda.so.1")
    found = {}
    with torch.inference_mode():
        for name, lengths in LENGTHS.items():
            packed = pack([np.zeros(length, dtype=np.int64) for length in lengths])
            few, many = (measure(layers, packed, library) for layers in (2, 6))
            a_layer = [(more - less) / 4 for less, more in zip(few, many, strict=True)]
            found[name] = dict(zip(("launches", "functions", "lookups", "seconds"), a_layer, strict=True))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
