"""The attention kernels compiled for GPUs that need not be here: what their machine code uses.

Tensor cores, asynchronous loads, shared memory within the device's limit, and spills within what
`configurations.py` states. The full table is in `make test-kernels`.
"""

from __future__ import annotations

import os
from typing import Any, get_args

import pytest
from thinkrl.kernels.configurations import (
    SHARED_BYTES,
    TABLE,
    Architecture,
    Pass,
    lookup,
)

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from thinkrl.kernels import logits_triton  # noqa: E402
from thinkrl.kernels.flash_backward import key_value_grad_kernel, query_grad_kernel  # noqa: E402
from thinkrl.kernels.flash_forward import forward_kernel  # noqa: E402

from .kernels.compiled import Report, compile_kernel  # noqa: E402

KERNELS: dict[Pass, Any] = {
    "forward": forward_kernel,
    "grad_query": query_grad_kernel,
    "grad_key_value": key_value_grad_kernel,
}
CAPABILITY: dict[Architecture, int] = {"hopper": 90, "ampere": 80}
STRIDES = [f"{tensor}_s{axis}" for tensor in "qkv" for axis in "bth"]
TYPES = {
    **dict.fromkeys(("LSE", "DELTA"), "*fp32"),
    **dict.fromkeys(("LO", "HI", "ORDER", "FULL", "TOTAL", "INDEX"), "*i32"),
    **dict.fromkeys(("scale", "scale_log2"), "fp32"),
    **dict.fromkeys((*STRIDES, "B", "H", "group", "T", "S", "index_width"), "i32"),
}
DATA = ("Q", "K", "V", "OUT", "DOUT", "DQ", "DK", "DV")
# Bytes of stack a thread, the greater of Triton 3.6 and 3.9; what is not named has none.
SPILLED: dict[tuple[Architecture, int, int, Pass], int] = {
    ("hopper", 16, 128, "forward"): 24,
    ("hopper", 16, 128, "grad_key_value"): 208,
    ("hopper", 16, 256, "forward"): 64,
    ("hopper", 16, 256, "grad_key_value"): 312,
    ("ampere", 16, 64, "grad_query"): 8,
    ("ampere", 16, 64, "grad_key_value"): 8,
    ("ampere", 32, 64, "forward"): 88,
    ("ampere", 32, 64, "grad_key_value"): 16,
    ("ampere", 32, 128, "forward"): 16,
    ("ampere", 32, 128, "grad_query"): 32,
    ("ampere", 32, 128, "grad_key_value"): 56,
    ("ampere", 32, 256, "forward"): 944,
    ("ampere", 32, 256, "grad_query"): 360,
    ("ampere", 32, 256, "grad_key_value"): 176,
}
# One of each kind is enough for a short run: every pass, both architectures, both precisions.
QUICK: list[tuple[Architecture, int, int, Pass]] = [
    ("hopper", 16, 128, "forward"),
    ("hopper", 16, 64, "grad_query"),
    ("hopper", 16, 128, "grad_key_value"),
    ("ampere", 16, 64, "forward"),
    ("ampere", 32, 64, "grad_query"),
]
ALL = [(*row, which) for row in TABLE for which in get_args(Pass)]


def build(
    architecture: Architecture, bits: int, D: int, which: Pass, capability: int, **sizes: int
) -> Report:
    tile = lookup(which, architecture, bits=bits, D=D)
    dtype = "*bf16" if bits == 16 else "*fp32"
    return compile_kernel(
        KERNELS[which],
        types=TYPES | dict.fromkeys(DATA, dtype),
        constants={
            "D": D,
            "W": triton.next_power_of_2(D),
            "BLOCK_Q": tile.queries,
            "BLOCK_K": tile.keys,
            "PRECISION": "tf32x3",
            **sizes,
        },
        capability=capability,
        num_warps=tile.warps,
        num_stages=tile.stages,
        aligned=frozenset(STRIDES),
    )


@pytest.mark.parametrize(
    ("architecture", "bits", "D", "which"),
    [pytest.param(*row, marks=[] if row in QUICK else pytest.mark.slow) for row in ALL],
)
def test_what_the_machine_code_uses(
    architecture: Architecture, bits: int, D: int, which: Pass
) -> None:
    report = build(architecture, bits, D, which, CAPABILITY[architecture])
    if architecture == "hopper":
        assert report.wgmma > 0 and report.mma == 0
    else:
        assert report.mma > 0
    if lookup(which, architecture, bits=bits, D=D).stages > 1:
        assert report.async_loads > 0
    assert report.shared <= SHARED_BYTES[architecture]
    assert report.spilled <= SPILLED.get((architecture, bits, D, which), 0)


@pytest.mark.parametrize("which", [pytest.param(k, marks=pytest.mark.slow) for k in KERNELS])
def test_a_size_of_one_is_a_constant(which: Pass) -> None:
    """A launch compiles an argument of 1 into the program: one row, one head, one token."""
    ones = dict.fromkeys(("B", "H", "group", "T", "S", "index_width"), 1)
    report = build("hopper", 16, 80, which, 90, **ones)
    assert report.wgmma > 0


LOGIT_TYPES = {
    **dict.fromkeys(("Z", "DZ"), "*bf16"),
    **dict.fromkeys(("LOGPROB", "ENTROPY", "LSE", "UP", "DOWN"), "*fp32"),
    "TARGET": "*i64",
    "inverse_temperature": "fp32",
    **dict.fromkeys(("row_stride", "z_stride", "dz_stride", "V", "blocks"), "i32"),
}


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_the_log_prob_head(capability: int) -> None:
    shared: dict[str, Any] = {"types": LOGIT_TYPES, "capability": capability, "num_stages": 3}
    shared |= {"num_warps": logits_triton._WARPS}
    fold = {"BLOCK": logits_triton._FOLD_BLOCK}
    gradient = {"BLOCK": logits_triton._GRADIENT_BLOCK, "HAS_DOWN": True}
    for kernel, constants in (
        (logits_triton.fold_kernel, fold), (logits_triton.gradient_kernel, gradient),
    ):  # fmt: skip
        report = compile_kernel(kernel, constants=constants, **shared)
        assert report.spilled == 0 and report.registers <= 128
        assert report.shared <= SHARED_BYTES["ampere"]


@pytest.mark.parametrize(("D", "row"), [(8, 64), (64, 64), (65, 128), (128, 128), (256, 256)])
def test_every_head_width_has_a_row(D: int, row: int) -> None:
    for which in get_args(Pass):
        for architecture in CAPABILITY:
            expected = TABLE[architecture, 16, row][which]
            assert lookup(which, architecture, bits=16, D=D) == expected
            assert lookup(which, architecture, bits=32, D=D) == TABLE["ampere", 32, row][which]
