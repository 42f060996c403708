"""Kernels that the ahead-of-time gate must reject. Run as a program without TRITON_INTERPRET, this prints the verdicts.

Each is one product of M × K and K × N. 256 × 256 float32 sums need 512 registers per thread with four warps, so they
spill. Two bfloat16 operands of 64 × 512 need 128 KiB of shared memory, more than the gate's table allows on sm_80.
"""

import torch

from benchmarks.aot import Compiled, verdict
from benchmarks.ops.machine_code import read
from fastvec_kernels._launch import compiling_for, launch, tl, triton


@triton.jit  # type: ignore[untyped-decorator]
def product_kernel(a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    tl.store(c_ptr + m[:, None] * N + n[None, :], tl.dot(a, b))


def compile_product(m: int, n: int, k: int, arch: str) -> Compiled:
    a, b, c = torch.empty(m, k).bfloat16(), torch.empty(k, n).bfloat16(), torch.empty(m, n)
    with compiling_for(arch) as compiler:
        launch(product_kernel, (1,), a, b, c, M=m, N=n, K=k, num_warps=4)
    kernels = tuple(read(name, arch, compiled) for name, compiled in compiler.compiled)
    return Compiled(case=f"{m} × {n} × {k}", arch=arch, kernels=kernels)


if __name__ == "__main__":
    print(verdict([compile_product(64, 64, 64, "sm_80")]))
    print(verdict([compile_product(256, 256, 16, "sm_80"), compile_product(64, 64, 512, "sm_80")]))
