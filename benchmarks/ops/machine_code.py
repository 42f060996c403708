"""Reads a compiled kernel's resource usage and instruction counts from its machine code, and checks the gate's rules.

NVIDIA's code is disassembled with the cuobjdump in Triton's wheel; AMD's assembly has the figures as metadata.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvec_kernels._launch import SHARED_MEMORY

WGMMA_ROWS, WGMMA_COLUMNS, WGMMA_WARPS = 64, 8, 4  # minimum for Hopper's warpgroup matrix instruction
TENSOR_CORES = {
    "sm_80": ("HMMA",),
    "sm_120": ("HMMA",),
    "sm_90": ("HGMMA",),
    "sm_100": ("UTCHMMA", "UTCQMMA"),
    "gfx942": ("v_mfma",),
}
STORES = ("STG", "ST", "RED", "REDG", "ATOMG", "UTMASTG")

# Kernels that may spill: (kernel, architecture) -> reason. Currently none.
SPILL_EXEMPTIONS: dict[tuple[str, str], str] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineCode:
    """One compiled kernel. Counts are instructions in the code, not executed instructions."""

    kernel: str
    arch: str
    hash: str  # Triton's, over source, constants, types and options
    tiles: str  # its constants with names in capitals: its configuration
    warps: int
    stages: int
    registers: int  # per thread; on AMD per lane
    stack_bytes: int  # bytes of DRAM per thread: NVIDIA's STACK and LOCAL, AMD's private segment
    spills: int  # NVIDIA: loads and stores of that memory; AMD: spilled vector registers
    shared: int  # bytes per program
    tensor: int  # matrix instructions native to this architecture
    older_tensor: int  # on sm_90 and later, matrix instructions of sm_80
    async_copies: int  # LDGSTS
    bulk_copies: int  # UTMALDG
    wide: int  # 16-byte loads and stores of global memory
    stores: int  # instructions that write global memory
    needs_wgmma: bool  # some product has 16-bit inputs and is large enough for Hopper's warpgroup instruction
    unspecialized: bool = False  # asks for warp specialization, but Triton gave every warp the same work

    def failures(self) -> list[str]:
        """Return a description of each violated rule."""
        found = []
        if (self.stack_bytes or self.spills) and (self.kernel, self.arch) not in SPILL_EXEMPTIONS:
            found.append(f"spills: {self.stack_bytes} bytes of stack, {self.spills} spill instructions or registers")
        if self.shared > SHARED_MEMORY[self.arch]:
            found.append(
                f"needs {self.shared:,} bytes of shared memory, but {self.arch} has {SHARED_MEMORY[self.arch]:,}"
            )
        if self.stores == 0:  # ptxas does so if a kernel needs more tensor memory than there is, and reports no error
            found.append("writes nothing: the compiler replaced it by a trap")
        if self.arch == "sm_90" and self.needs_wgmma and self.tensor == 0:
            found.append(f"has a matrix product of at least {WGMMA_ROWS} rows but no HGMMA instruction")
        if self.unspecialized:
            found.append("asks for warp specialization but has no specialized warp")
        return found


def read(kernel: str, arch: str, compiled: Any) -> MachineCode:
    """Return the figures of Triton's CompiledKernel `compiled`."""
    figures = _amd_figures(compiled) if arch.startswith("gfx") else _nvidia_figures(arch, compiled)
    return MachineCode(
        kernel=kernel,
        arch=arch,
        hash=compiled.hash,
        tiles=constants(compiled),
        warps=compiled.metadata.num_warps,
        stages=compiled.metadata.num_stages,
        shared=compiled.metadata.shared,
        needs_wgmma=compiled.metadata.num_warps >= WGMMA_WARPS and large_products(compiled.asm["ttir"]),
        unspecialized="tt.warp_specialize" in compiled.asm["ttir"]
        and "ttg.warp_specialize(" not in compiled.asm["ttgir"],
        **figures,
    )


def constants(compiled: Any) -> str:
    """Return the constants with names in capitals, "BLOCK_M=128 …"; of a named tuple, only the fields that are set."""
    names = compiled.src.fn.arg_names
    words = []
    for path, value in compiled.src.constants.items():
        if len(path) == 1 and names[path[0]].isupper():
            fields = value._asdict() if hasattr(value, "_asdict") else {names[path[0]]: value}
            words += [f"{name}={field}" for name, field in fields.items() if field not in (None, False, "")]
    return " ".join(words)


def large_products(ttir: str) -> bool:
    """Return whether Triton's IR multiplies 16-bit matrices that are large enough for the warpgroup instruction."""
    operands = re.findall(r"tt\.dot .* : tensor<(\d+)x\d+x(\w+)> \* tensor<\d+x(\d+)x\w+>", ttir)
    return any(
        kind in ("f16", "bf16") and int(rows) >= WGMMA_ROWS and int(columns) >= WGMMA_COLUMNS
        for rows, kind, columns in operands
    )


def disassemble(cubin: bytes) -> str:
    """Return cuobjdump's resource usage and machine code as text."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", "-sass", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _nvidia_figures(arch: str, compiled: Any) -> dict[str, int]:
    text = disassemble(compiled.asm["cubin"])
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if usage is None:
        raise ValueError(f"cuobjdump reported no resource usage: {text[:200]!r}")
    registers, stack, local = map(int, usage.groups())
    # the line of an instruction: /*0010*/ [@predicate] LDG.E.128 R4, … ;
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", text)
    kinds = Counter(instruction.split(".")[0] for instruction in instructions)
    return {
        "registers": registers,
        "stack_bytes": stack + local,
        "spills": kinds["LDL"] + kinds["STL"],
        "tensor": sum(kinds[kind] for kind in TENSOR_CORES[arch]),
        "older_tensor": kinds["HMMA"] if arch in ("sm_90", "sm_100") else 0,
        "async_copies": kinds["LDGSTS"],
        "bulk_copies": kinds["UTMALDG"],
        "stores": sum(kinds[kind] for kind in STORES),
        "wide": sum(name.startswith(("LDG.", "STG.")) and ".128" in name for name in instructions),
    }


def _amd_figures(compiled: Any) -> dict[str, int]:
    text = compiled.asm["amdgcn"]
    metadata = {name: int(value) for name, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    return {
        "registers": metadata["vgpr_count"],
        "stack_bytes": metadata["private_segment_fixed_size"],
        "spills": metadata["vgpr_spill_count"],  # scalar registers spill into lanes of vector registers, not memory
        "tensor": len(re.findall(r"^\s+v_mfma", text, re.MULTILINE)),
        "older_tensor": 0,
        "async_copies": 0,
        "bulk_copies": 0,
        "stores": len(re.findall(r"^\s+(?:global|buffer|flat)_(?:store|atomic)", text, re.MULTILINE)),
        "wide": len(re.findall(r"^\s+(?:global|buffer|flat)_(?:load|store)_dwordx4", text, re.MULTILINE)),
    }
