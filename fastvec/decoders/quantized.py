"""Linear maps in eight bits: int8 or fp8 products with one scale for each row of x and each row of W.

    x · Wᵀ ≈ (s_x ⊗ s_w) ⊙ (⌊x / s_x⌉ · ⌊W / s_w⌉ᵀ)     s = max |row| / the largest number of the eight bits

Each row of x has its own scale, so a text's vector does not depend on the other texts of its batch. int8 is for CPUs
and uses oneDNN; fp8 (E4M3) is for GPUs from Hopper on and uses cuBLAS.

Shapes: T rows, K their width, N the width of the product.
"""

import functools
from typing import ClassVar

import torch

from fastvec.decoders.fused import FusedDecoder, floats
from fastvec.errors import ModelError
from fastvec.system.memory import is_out_of_memory
from fastvec_kernels import Fp8Rows, quantize_rows

ROWS = 512  # of x at a time on a CPU, so that intermediate results stay in its caches
BYTE = 127  # largest int8
TINY = torch.finfo(torch.float32).tiny  # least maximum of a row: avoids division by zero for a row of zeros
FP8_MULTIPLE = 16  # cuBLAS requires widths divisible by this


def quantized(decoder: FusedDecoder, quantize: str, bits: int) -> FusedDecoder:
    """Return `decoder` with the linear maps of its layers in fp8, or in int8 with weights of `bits` bits.

    Embeddings, norms, rotation and attention are unchanged. Raises ModelError for widths that fp8 does not support.
    """
    if quantize == "fp8":
        return decoder.with_linears(Fp8Linear)
    return decoder.with_linears(functools.partial(Int8Linear, bits=bits))


@functools.cache
def int8_bits() -> int | None:
    """Return the bits of a weight for which int8 sums are exact on this CPU; None if torch has no int8 products here.

    With VNNI instructions it is 8. Without them, two products are added in 16 bits: 255 · 127 · 2 overflows,
    255 · 63 · 2 does not, so it is 7.
    """
    for bits in (8, 7):
        largest = 2 ** (bits - 1) - 1
        weight = torch.full((256, 256), float(largest))
        try:
            found = Int8Linear(weight, None, bits).integer_product(torch.full((64, 256), 255, dtype=torch.uint8))
        except (AttributeError, RuntimeError) as error:  # torch built without oneDNN, or an unsupported processor
            if is_out_of_memory(error):  # other vectors, because memory was short now, would be a surprise
                raise
            return None
        if (found == float(BYTE * largest * 256)).all():
            return bits
    return None


class Int8Linear:
    """A linear map on a CPU with weights [N, K] rounded to integers of `bits` bits."""

    takes_fp8: ClassVar[bool] = False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> None:
        wide = weight.float()
        self._scales = wide.abs().amax(dim=1).clamp_min_(TINY) / (2 ** (bits - 1) - 1)
        whole = (wide / self._scales[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = bias

    def product(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        x = floats(x)
        y = torch.empty(len(x), len(self._scales), dtype=x.dtype)
        for begin in range(0, len(x), ROWS):
            rows = slice(begin, begin + ROWS)
            whole, scales = _bytes(x[rows])
            torch.mul(self.integer_product(whole), scales, out=y[rows])
        return y

    def __call__(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return _added(self.product(x), self.bias)

    def integer_product(self, x: torch.Tensor) -> torch.Tensor:
        """Return (x − 128) · Wᵀ [T, N] in float32 for uint8 x [T, K], from exact integer sums if `int8_bits` allows."""
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 128, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product


def _bytes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize the rows of x [T, K] to uint8 with zero point 128; return them and their scales [T, 1] in float32."""
    wide = x.float()
    largest = torch.maximum(wide.amax(dim=1, keepdim=True), -wide.amin(dim=1, keepdim=True))
    scales = largest.clamp_min_(TINY).div_(BYTE)
    # converting to int8 and flipping the top bit is many times faster than converting to uint8
    whole = (wide * (1 / scales)).round_().to(torch.int8)
    return whole.view(torch.uint8).bitwise_xor_(128), scales


class Fp8Linear:
    """A linear map on a GPU with weights [N, K] in E4M3. Products have the dtype of the unquantized weights."""

    takes_fp8: ClassVar[bool] = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        if any(width % FP8_MULTIPLE for width in weight.shape):
            raise ModelError(
                f"fp8 needs widths divisible by {FP8_MULTIPLE}, and this model has a linear map of shape "
                f"{tuple(weight.shape)}: run without quantize"
            )
        self._weight, self._scales = quantize_rows(weight)
        self._dtype = weight.dtype
        self.bias = bias

    def product(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        rows, scales = x if isinstance(x, Fp8Rows) else quantize_rows(x)
        product = torch._scaled_mm(
            rows,
            self._weight.T,
            scale_a=scales[:, None],
            scale_b=self._scales[None],
            out_dtype=torch.bfloat16,  # the only output dtype supported with a scale for each row
            use_fast_accum=True,
        )
        return product.to(self._dtype)

    def __call__(self, x: torch.Tensor | Fp8Rows) -> torch.Tensor:
        return _added(self.product(x), self.bias)


def _added(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return y if bias is None else y.add_(bias)
