"""Tile sizes of the attention kernels: one table, each row with its reason.

Nothing is tuned at import or at run time: the same call always runs the same program. The reasons
are what the compiled kernels use: registers (255 a thread at most; what does not fit is spilled to
memory), shared memory, and which matrix instructions the compiler chose. None of the rows has been
timed yet; `tests/benchmarks/attention.py` compares them on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Pass = Literal["forward", "grad_query", "grad_key_value"]
Architecture = Literal["hopper", "ampere"]

MAX_HEAD_DIM = 256
# Bytes of shared memory that one program may use: 227 KiB from compute capability 9.0 and 10.0 on
# their own, 99 KiB on every other device since 8.0 (8.0 itself has 163).
SHARED_BYTES: dict[Architecture, int] = {"hopper": 232448, "ampere": 101376}


@dataclass(frozen=True)
class Tile:
    """Rows of queries and of keys that one step multiplies, warps per program, loads in flight."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 1


Row = dict[Pass, Tile]

# By architecture, bits of an element, and the greatest head width. Spills: bytes a thread under
# Triton 3.6; 3.9 differs a little either way, see `tests/test_kernel_compile.py`.
TABLE: dict[tuple[Architecture, int, int], Row] = {
    # Two warpgroups of 64 rows each, the shape of wgmma; keys as wide as registers allow (0
    # spilled). dk and dv are two accumulators of keys x D: the queries get what is left.
    ("hopper", 16, 64): {
        "forward": Tile(128, 128, warps=8, stages=3),
        "grad_query": Tile(128, 64, warps=8, stages=3),
        "grad_key_value": Tile(64, 128, warps=8, stages=2),
    },
    # Two stages: three of 128 x 128 x 2 tensors do not fit beside q. For dk and dv, 64 queries
    # spill 80, 32 spill none but make wgmma read its left side twice as often.
    ("hopper", 16, 128): {
        "forward": Tile(128, 128, warps=8, stages=2),
        "grad_query": Tile(128, 64, warps=8, stages=2),
        "grad_key_value": Tile(64, 128, warps=8, stages=2),
    },
    # The accumulator alone is 128 registers a thread. forward spills 8, dk and dv 64; any larger
    # tile of the backward spills hundreds.
    ("hopper", 16, 256): {
        "forward": Tile(128, 64, warps=8, stages=2),
        "grad_query": Tile(128, 32, warps=8, stages=2),
        "grad_key_value": Tile(32, 64, warps=8, stages=2),
    },
    # mma.sync: warps own 16 rows each, so fewer warps reuse more; at most 8 spilled. All rows of
    # this architecture keep under 99 KiB.
    ("ampere", 16, 64): {
        "forward": Tile(128, 64, warps=4, stages=3),
        "grad_query": Tile(64, 64, warps=4, stages=2),
        "grad_key_value": Tile(64, 64, warps=4, stages=2),
    },
    # forward with 128 x 32 needs 8 warps (4 spill 40); the backward 4 or 8, whichever spills none.
    ("ampere", 16, 128): {
        "forward": Tile(128, 32, warps=8, stages=3),
        "grad_query": Tile(64, 32, warps=4, stages=2),
        "grad_key_value": Tile(32, 64, warps=8, stages=2),
    },
    # 0 spilled; larger ones spill or take more than 99 KiB.
    ("ampere", 16, 256): {
        "forward": Tile(64, 32, warps=8, stages=2),
        "grad_query": Tile(32, 32, warps=4, stages=2),
        "grad_key_value": Tile(32, 32, warps=8, stages=2),
    },
    # float32 as three tf32 products (see PRECISION in flash_tiles.py): each operand is held twice,
    # and no stage is left for loads in flight. 0 to 88 spilled.
    ("ampere", 32, 64): {
        "forward": Tile(64, 32, warps=4),
        "grad_query": Tile(32, 32, warps=4),
        "grad_key_value": Tile(32, 32, warps=4),
    },
    # At most 56 spilled; 64 queries in forward spill 700.
    ("ampere", 32, 128): {
        "forward": Tile(32, 32, warps=4),
        "grad_query": Tile(32, 32, warps=8),
        "grad_key_value": Tile(32, 32, warps=8),
    },
    # For exactness, not for speed: the smallest tiles still spill 180 to 940.
    ("ampere", 32, 256): {
        "forward": Tile(32, 32, warps=8),
        "grad_query": Tile(16, 32, warps=8),
        "grad_key_value": Tile(16, 16, warps=8),
    },
}
# Programs in the interpreter run one after the other: small ones keep tests of the logic short.
_INTERPRETED = Tile(32, 32)


def choose_tile(which: Pass, q_BTHD: Tensor) -> Tile:
    """The row of the table for these queries and their device."""
    if not q_BTHD.is_cuda:
        return _INTERPRETED
    architecture = _architecture(q_BTHD.device)
    return lookup(which, architecture, bits=8 * q_BTHD.element_size(), D=q_BTHD.shape[-1])


def lookup(which: Pass, architecture: Architecture, *, bits: int, D: int) -> Tile:
    """The tile for a head width; float32 has one set of rows for all architectures."""
    width = next(w for w in (64, 128, MAX_HEAD_DIM) if w >= D)
    return TABLE["ampere" if bits == 32 else architecture, bits, width][which]


@cache
def _architecture(device: torch.device) -> Architecture:
    return "hopper" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "ampere"
