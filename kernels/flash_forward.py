"""The forward of `flash_attention.py`: one kernel, online softmax in base 2.

Letters: B rows, T queries, S keys, H query heads, K kv heads, D head width, W D rounded up to a
power of two. `*_st`: stride between tokens, `_sb` between rows, `_sh` between heads, in elements.
"""

# A constexpr parameter takes a plain value, and a launch unpacks strides: no type says so.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import Tile, choose_tile
from .flash_tiles import LOG2_E, constants, load_tile, locate, store_tile
from .masks import Mask


@triton.jit
def _attend(
    acc, total, top, q, k_base, v_base, k_st, v_st, LO, HI, query, start, S, scale_log2,
    D: tl.constexpr, W: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    CHECK: tl.constexpr,
):  # fmt: skip
    """One block of keys into the running maximum, sum and output (online softmax)."""
    offset = start.to(tl.int64)
    k = load_tile(k_base + offset * k_st, k_st, S - start, BLOCK_K, D, W, CHECK)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CHECK:
        key = start + tl.arange(0, BLOCK_K)
        lo = tl.load(LO + key, mask=key < S, other=0)
        hi = tl.load(HI + key, mask=key < S, other=0)
        sees = (query[:, None] >= lo[None, :]) & (query[:, None] < hi[None, :])
        scores = tl.where(sees, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    # A row that has seen nothing so far has maximum -inf: -inf - -inf would be NaN.
    finite_top = tl.where(new_top == float("-inf"), 0.0, new_top) if CHECK else new_top
    weights = tl.exp2(scores * scale_log2 - finite_top[:, None])
    shrink = tl.exp2(top - finite_top)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None]
    v = load_tile(v_base + offset * v_st, v_st, S - start, BLOCK_K, D, W, CHECK)
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, total, new_top


@triton.jit
def forward_kernel(
    Q, K, V, OUT, LSE, LO, HI, ORDER, FULL, TOTAL, INDEX, scale_log2,
    q_sb, q_st, q_sh, k_sb, k_st, k_sh, v_sb, v_st, v_sh,
    B, H, group, T, S, index_width,
    D: tl.constexpr, W: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out_BTHD (contiguous) and lse_BHT of one block of queries of one head."""
    block, batch, head = locate(ORDER, H, B)
    first = block * BLOCK_Q
    query = first + tl.arange(0, BLOCK_Q)
    token = first.to(tl.int64)
    q_base = Q + batch * q_sb + head * q_sh + token * q_st
    q = load_tile(q_base, q_st, T - first, BLOCK_Q, D, W, True)
    k_base = K + batch * k_sb + head // group * k_sh
    v_base = V + batch * v_sb + head // group * v_sh
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, W], tl.float32)
    full = tl.load(FULL + block)
    index = INDEX + block.to(tl.int64) * index_width
    for i in range(0, full):
        start = tl.load(index + i) * BLOCK_K
        acc, total, top = _attend(
            acc, total, top, q, k_base, v_base, k_st, v_st, LO, HI, query, start, S, scale_log2,
            D, W, BLOCK_K, PRECISION, False,
        )  # fmt: skip
    for i in range(full, tl.load(TOTAL + block)):
        start = tl.load(index + i) * BLOCK_K
        acc, total, top = _attend(
            acc, total, top, q, k_base, v_base, k_st, v_st, LO, HI, query, start, S, scale_log2,
            D, W, BLOCK_K, PRECISION, True,
        )  # fmt: skip
    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    lse = tl.where(blind, float("inf"), top + tl.log2(total))
    row = (batch * H + head) * T
    tl.store(LSE + row + query, lse, mask=query < T)
    out_base = OUT + ((batch * T + token) * H + head) * D
    store_tile(out_base, H * D, T - first, acc / total[:, None], BLOCK_Q, D, W)


def flash_forward(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    mask: Mask,
    scale: float,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """out_BTHD in q's dtype and lse_BHT (float32, base 2); the mask is shared by the B rows."""
    B, T, H = q_BTHD.shape[:3]
    S, K = k_BSKD.shape[1:3]
    out_BTHD = torch.empty(q_BTHD.shape, dtype=q_BTHD.dtype, device=q_BTHD.device)
    lse_BHT = torch.empty(B, H, T, dtype=torch.float32, device=q_BTHD.device)
    if out_BTHD.numel() == 0 or S == 0:
        return out_BTHD.zero_(), lse_BHT.fill_(float("inf"))
    tile = tile or choose_tile("forward", q_BTHD)
    lists, _ = mask.blocks(tile.queries, tile.keys)
    with torch.cuda.device_of(q_BTHD):
        forward_kernel[(len(lists.order_X) * B * H,)](
            q_BTHD, k_BSKD, v_BSKD, out_BTHD, lse_BHT, mask.lo_S, mask.hi_S,
            lists.order_X, lists.full_X, lists.total_X, lists.index_XY, scale * LOG2_E,
            *q_BTHD.stride()[:3], *k_BSKD.stride()[:3], *v_BSKD.stride()[:3],
            B, H, H // K, T, S, lists.index_XY.shape[1],
            **constants(q_BTHD, tile),
        )  # fmt: skip
    return out_BTHD, lse_BHT
