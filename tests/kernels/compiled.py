"""Compile a Triton kernel for a GPU that need not be there, and read what the machine code uses."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Report:
    """Per thread: registers, bytes of stack (spills); per program: bytes of shared memory; counts
    of instructions: Hopper's and Ampere's matrix products, 16-byte asynchronous loads."""

    registers: int
    spilled: int
    shared: int
    wgmma: int
    mma: int
    async_loads: int


def compile_kernel(
    kernel: Any,
    *,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    num_warps: int,
    num_stages: int,
    aligned: frozenset[str] = frozenset(),
) -> Report:
    """Machine code for sm_<capability>; pointers and the arguments in `aligned` are multiples of
    16, as they are in a launch with aligned tensors."""
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types[n] for n in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if n not in constants and (types[n].startswith("*") or n in aligned)
    }
    source = ASTSource(kernel, signature, constexprs=dict(constants), attrs=attributes)
    built = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True},
    )
    sass = _cuobjdump(built.asm["cubin"])
    return Report(
        registers=int(_first(r"REG:(\d+)", sass)),
        spilled=int(_first(r"STACK:(\d+)", sass)),
        shared=built.metadata.shared,
        wgmma=len(re.findall(r"\bHGMMA", sass)),
        mma=len(re.findall(r"\bHMMA", sass)),
        async_loads=len(re.findall(r"\bLDGSTS\S*\.128", sass)) + len(re.findall("UTMALDG", sass)),
    )


def _cuobjdump(cubin: bytes) -> str:
    """Resource usage and instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", "--dump-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} not in {text[:500]!r}"
    return found[1]
