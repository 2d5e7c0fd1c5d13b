"""What the attention kernels share: tiles in and out, where a program works, launch constants."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import Tile

LOG2_E = 1.4426950408889634


@triton.jit
def load_tile(
    base,
    stride,
    remaining,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    CHECK: tl.constexpr,
):
    """[ROWS, W] from rows that start at `base`; 0 past `remaining` rows (if CHECK) and past D."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, W)
    at = base + row[:, None] * stride + column[None, :]
    if CHECK and D != W:
        tile = tl.load(at, mask=(row < remaining)[:, None] & (column < D)[None, :], other=0.0)
    elif CHECK:
        tile = tl.load(at, mask=(row < remaining)[:, None], other=0.0)
    elif D != W:
        tile = tl.load(at, mask=(column < D)[None, :], other=0.0)
    else:
        tile = tl.load(at)
    return tile


@triton.jit
def store_tile(base, stride, remaining, tile, ROWS: tl.constexpr, D: tl.constexpr, W: tl.constexpr):
    """Write the first `remaining` rows and D columns of a [ROWS, W] tile."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, W)
    inside = (row < remaining)[:, None] & (column < D)[None, :]
    at = base + row[:, None] * stride + column[None, :]
    tl.store(at, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def locate(ORDER, heads, batches):
    """(block, batch, head) of this program: heads change fastest, so that neighbours share keys."""
    program = tl.program_id(0)
    head = program % heads
    batch = (program // heads) % batches
    block = tl.load(ORDER + program // heads // batches)
    return block, batch.to(tl.int64), head.to(tl.int64)


def constants(q_BTHD: Tensor, tile: Tile) -> dict[str, Any]:
    """Compile-time arguments that the three kernels share, and the launch options."""
    D = q_BTHD.shape[-1]
    # Float32 inputs follow PyTorch's own switch for matrix products. Three tf32 products are as
    # exact as float32 (2^-21 per product) and run on tensor cores; "ieee" spills ten times more.
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "D": D,
        "W": max(16, triton.next_power_of_2(D)),
        "BLOCK_Q": tile.queries,
        "BLOCK_K": tile.keys,
        "PRECISION": "tf32x3" if exact else "tf32",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": True,  # a * b + c rounds once; Triton's default is about to change
    }
