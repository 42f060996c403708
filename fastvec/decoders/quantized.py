"""Linear maps in eight bits: x · Wᵀ from bytes, each row of x and each row of W divided by a scale of its own.

    x · Wᵀ ≈ (s_x ⊗ s_w) ⊙ (⌊x / s_x⌉ · ⌊W / s_w⌉ᵀ)     s = max |row| / the largest number of the eight bits

A row's scale is of this row alone, so that no text's vector depends on its neighbours. int8 is for CPUs, by oneDNN;
fp8 (E4M3) for GPUs from Hopper on, by cuBLAS.

Shapes: T rows, K their width, N the width of the product.
"""

import functools

import torch

from fastvec.decoders.fused import FusedDecoder
from fastvec.errors import ModelError
from fastvec_kernels import quantize_rows

ROWS = 512  # of x at a time on a CPU: what is made of them stays in its caches
BYTE = 127  # the largest number of eight bits with a sign
TINY = torch.finfo(torch.float32).tiny  # a row of zeros is divided by something too
FP8_MULTIPLE = 16  # of the widths that cuBLAS takes


def quantized(decoder: FusedDecoder, quantize: str, bits: int) -> FusedDecoder:
    """`decoder` with the products of its layers in int8, weights of `bits` bits, or in fp8.

    Embeddings, norms, rotation and attention stay as they are. Raises ModelError for widths that fp8 does not take.
    """
    if quantize == "fp8":
        return decoder.with_linears(Fp8Linear)
    return decoder.with_linears(functools.partial(Int8Linear, bits=bits))


@functools.cache
def int8_bits() -> int | None:
    """The bits of a weight for which sums of bytes are exact on this CPU; None where torch multiplies no bytes there.

    With VNNI instructions they are 8. Without, two products are added in 16 bits, which 255 · 127 · 2 does not fit
    and 255 · 63 · 2 does: 7.
    """
    for bits in (8, 7):
        largest = 2 ** (bits - 1) - 1
        weight = torch.full((256, 256), float(largest))
        try:
            found = Int8Linear(weight, None, bits).of_bytes(torch.full((64, 256), 255, dtype=torch.uint8))
        except (AttributeError, RuntimeError):  # a build of torch without oneDNN, or another processor
            return None
        if (found == float(BYTE * largest * 256)).all():
            return bits
    return None


class Int8Linear:
    """A linear map on a CPU whose weights [N, K] are integers of `bits` bits."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> None:
        wide = weight.float()
        self._scales = wide.abs().amax(dim=1).clamp_min_(TINY) / (2 ** (bits - 1) - 1)
        whole = (wide / self._scales[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(whole, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = bias

    def product(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(len(x), len(self._scales), dtype=x.dtype)
        for begin in range(0, len(x), ROWS):
            rows = slice(begin, begin + ROWS)
            whole, scales = _bytes(x[rows])
            torch.mul(self.of_bytes(whole), scales, out=y[rows])
        return y

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _added(self.product(x), self.bias)

    def of_bytes(self, x: torch.Tensor) -> torch.Tensor:
        """(x − 128) · Wᵀ [T, N] in float32 of bytes x [T, K], summed without an error."""
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 128, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return product


def _bytes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of x [T, K] as bytes around 128, and their scales [T, 1] in float32."""
    wide = x.float()
    largest = torch.maximum(wide.amax(dim=1, keepdim=True), -wide.amin(dim=1, keepdim=True))
    scales = largest.clamp_min_(TINY).div_(BYTE)
    # to a byte with a sign, whose upper bit is then turned: many times faster than to one without
    whole = (wide * (1 / scales)).round_().to(torch.int8)
    return whole.view(torch.uint8).bitwise_xor_(128), scales


class Fp8Linear:
    """A linear map on a GPU whose weights [N, K] are E4M3."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        if any(width % FP8_MULTIPLE for width in weight.shape):
            raise ModelError(
                f"fp8 takes widths that {FP8_MULTIPLE} divides, and this model has a linear map of "
                f"{tuple(weight.shape)}: leave quantize out"
            )
        self._weight, self._scales = quantize_rows(weight)
        self.bias = bias

    def product(self, x: torch.Tensor) -> torch.Tensor:
        rows, scales = quantize_rows(x)
        product = torch._scaled_mm(
            rows,
            self._weight.T,
            scale_a=scales[:, None],
            scale_b=self._scales[None],
            out_dtype=torch.bfloat16,  # the one type that comes with a scale for each row
            use_fast_accum=True,
        )
        return product.to(x.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _added(self.product(x), self.bias)


def _added(y: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return y if bias is None else y.add_(bias)
