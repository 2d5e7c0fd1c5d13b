"""The backward of `flash_attention.py`: two kernels, no atomics, the same bits on every run.

`query_grad_kernel` walks the keys of a block of queries; it also leaves delta = sum(out * grad_out)
for `key_value_grad_kernel`, which walks the queries of a block of keys, head after head of a group.
Scores are recomputed from the saved lse: 7 matrix products instead of 5, and no order to depend on.
Letters as in `flash_forward.py`.
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
def _query_step(
    dq, q, do, lse, delta, k_base, v_base, k_st, v_st, LO, HI, query, start, S, scale_log2,
    D: tl.constexpr, W: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    CHECK: tl.constexpr,
):  # fmt: skip
    """What one block of keys adds to dq, without the factor `scale`."""
    offset = start.to(tl.int64)
    k = load_tile(k_base + offset * k_st, k_st, S - start, BLOCK_K, D, W, CHECK)
    v = load_tile(v_base + offset * v_st, v_st, S - start, BLOCK_K, D, W, CHECK)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    weights = tl.exp2(scores * scale_log2 - lse[:, None])
    if CHECK:
        key = start + tl.arange(0, BLOCK_K)
        lo = tl.load(LO + key, mask=key < S, other=0)
        hi = tl.load(HI + key, mask=key < S, other=0)
        sees = (query[:, None] >= lo[None, :]) & (query[:, None] < hi[None, :])
        weights = tl.where(sees, weights, 0.0)
    dweights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    dscores = weights * (dweights - delta[:, None])
    return tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def query_grad_kernel(
    Q, K, V, OUT, DOUT, LSE, DELTA, DQ, LO, HI, ORDER, FULL, TOTAL, INDEX, scale, scale_log2,
    q_sb, q_st, q_sh, k_sb, k_st, k_sh, v_sb, v_st, v_sh,
    B, H, group, T, S, index_width,
    D: tl.constexpr, W: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq_BTHD and delta_BHT of one block of queries of one head."""
    block, batch, head = locate(ORDER, H, B)
    first = block * BLOCK_Q
    query = first + tl.arange(0, BLOCK_Q)
    token = first.to(tl.int64)
    own = ((batch * T + token) * H + head) * D  # out, its gradient and dq are contiguous
    do = load_tile(DOUT + own, H * D, T - first, BLOCK_Q, D, W, True)
    out = load_tile(OUT + own, H * D, T - first, BLOCK_Q, D, W, True)
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), 1)
    row = (batch * H + head) * T
    tl.store(DELTA + row + query, delta, mask=query < T)
    lse = tl.load(LSE + row + query, mask=query < T, other=float("inf"))
    q_base = Q + batch * q_sb + head * q_sh + token * q_st
    q = load_tile(q_base, q_st, T - first, BLOCK_Q, D, W, True)
    k_base = K + batch * k_sb + head // group * k_sh
    v_base = V + batch * v_sb + head // group * v_sh
    dq = tl.zeros([BLOCK_Q, W], tl.float32)
    full = tl.load(FULL + block)
    index = INDEX + block.to(tl.int64) * index_width
    for i in range(0, full):
        start = tl.load(index + i) * BLOCK_K
        dq = _query_step(
            dq, q, do, lse, delta, k_base, v_base, k_st, v_st, LO, HI, query, start, S,
            scale_log2, D, W, BLOCK_K, PRECISION, False,
        )  # fmt: skip
    for i in range(full, tl.load(TOTAL + block)):
        start = tl.load(index + i) * BLOCK_K
        dq = _query_step(
            dq, q, do, lse, delta, k_base, v_base, k_st, v_st, LO, HI, query, start, S,
            scale_log2, D, W, BLOCK_K, PRECISION, True,
        )  # fmt: skip
    store_tile(DQ + own, H * D, T - first, dq * scale, BLOCK_Q, D, W)


@triton.jit
def _key_step(
    dk, dv, k, v, q_base, do_base, lse_base, delta_base, q_st, do_st, lo, hi, start, T, scale_log2,
    D: tl.constexpr, W: tl.constexpr, BLOCK_Q: tl.constexpr, PRECISION: tl.constexpr,
    CHECK: tl.constexpr,
):  # fmt: skip
    """What one block of queries adds to dk (without the factor `scale`) and dv."""
    offset = start.to(tl.int64)
    query = start + tl.arange(0, BLOCK_Q)
    q = load_tile(q_base + offset * q_st, q_st, T - start, BLOCK_Q, D, W, CHECK)
    do = load_tile(do_base + offset * do_st, do_st, T - start, BLOCK_Q, D, W, CHECK)
    if CHECK:
        lse = tl.load(lse_base + query, mask=query < T, other=float("inf"))
        delta = tl.load(delta_base + query, mask=query < T, other=0.0)
    else:
        lse = tl.load(lse_base + query)
        delta = tl.load(delta_base + query)
    # Keys are the rows of every product, so that no tile needs a transpose of its own.
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    weights = tl.exp2(scores * scale_log2 - lse[None, :])
    if CHECK:
        sees = (query[None, :] >= lo[:, None]) & (query[None, :] < hi[:, None])
        weights = tl.where(sees, weights, 0.0)
    dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
    dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
    dscores = weights * (dweights - delta[None, :])
    dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def key_value_grad_kernel(
    Q, K, V, DOUT, LSE, DELTA, DK, DV, LO, HI, ORDER, FULL, TOTAL, INDEX, scale, scale_log2,
    q_sb, q_st, q_sh, k_sb, k_st, k_sh, v_sb, v_st, v_sh,
    B, H, group, T, S, index_width,
    D: tl.constexpr, W: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk_BSKD and dv_BSKD of one block of keys of one kv head."""
    kv_heads = H // group
    block, batch, kv_head = locate(ORDER, kv_heads, B)
    first = block * BLOCK_K
    key = first + tl.arange(0, BLOCK_K)
    token = first.to(tl.int64)
    k_base = K + batch * k_sb + kv_head * k_sh + token * k_st
    v_base = V + batch * v_sb + kv_head * v_sh + token * v_st
    k = load_tile(k_base, k_st, S - first, BLOCK_K, D, W, True)
    v = load_tile(v_base, v_st, S - first, BLOCK_K, D, W, True)
    lo = tl.load(LO + key, mask=key < S, other=0)
    hi = tl.load(HI + key, mask=key < S, other=0)
    dk = tl.zeros([BLOCK_K, W], tl.float32)
    dv = tl.zeros([BLOCK_K, W], tl.float32)
    full = tl.load(FULL + block)
    total = tl.load(TOTAL + block)
    index = INDEX + block.to(tl.int64) * index_width
    for head in range(kv_head * group, (kv_head + 1) * group):
        q_base = Q + batch * q_sb + head * q_sh
        do_base = DOUT + (batch * T * H + head) * D
        row = (batch * H + head) * T
        for i in range(0, full):
            start = tl.load(index + i) * BLOCK_Q
            dk, dv = _key_step(
                dk, dv, k, v, q_base, do_base, LSE + row, DELTA + row, q_st, H * D, lo, hi, start,
                T, scale_log2, D, W, BLOCK_Q, PRECISION, False,
            )  # fmt: skip
        for i in range(full, total):
            start = tl.load(index + i) * BLOCK_Q
            dk, dv = _key_step(
                dk, dv, k, v, q_base, do_base, LSE + row, DELTA + row, q_st, H * D, lo, hi, start,
                T, scale_log2, D, W, BLOCK_Q, PRECISION, True,
            )  # fmt: skip
    own = ((batch * S + token) * kv_heads + kv_head) * D
    store_tile(DK + own, kv_heads * D, S - first, dk * scale, BLOCK_K, D, W)
    store_tile(DV + own, kv_heads * D, S - first, dv, BLOCK_K, D, W)


def flash_backward(
    grad_BTHD: Tensor,
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    out_BTHD: Tensor,
    lse_BHT: Tensor,
    *,
    mask: Mask,
    scale: float,
    query_tile: Tile | None = None,
    key_tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv from what `flash_forward` returned and the gradient of its output."""
    B, T, H, _ = q_BTHD.shape
    S, K = k_BSKD.shape[1:3]
    dq, dk, dv = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_BTHD, k_BSKD, v_BSKD)
    )
    if dq.numel() == 0 or S == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    grad_BTHD = grad_BTHD.contiguous()
    delta_BHT = torch.empty_like(lse_BHT)
    query_tile = query_tile or choose_tile("grad_query", q_BTHD)
    key_tile = key_tile or choose_tile("grad_key_value", q_BTHD)
    by_query, _ = mask.blocks(query_tile.queries, query_tile.keys)
    _, by_key = mask.blocks(key_tile.queries, key_tile.keys)
    shared = (scale, scale * LOG2_E)
    shared += q_BTHD.stride()[:3] + k_BSKD.stride()[:3] + v_BSKD.stride()[:3]
    shared += (B, H, H // K, T, S)
    with torch.cuda.device_of(q_BTHD):
        query_grad_kernel[(len(by_query.order_X) * B * H,)](
            q_BTHD, k_BSKD, v_BSKD, out_BTHD, grad_BTHD, lse_BHT, delta_BHT, dq,
            mask.lo_S, mask.hi_S,
            by_query.order_X, by_query.full_X, by_query.total_X, by_query.index_XY,
            *shared, by_query.index_XY.shape[1], **constants(q_BTHD, query_tile),
        )  # fmt: skip
        key_value_grad_kernel[(len(by_key.order_X) * B * K,)](
            q_BTHD, k_BSKD, v_BSKD, grad_BTHD, lse_BHT, delta_BHT, dk, dv,
            mask.lo_S, mask.hi_S,
            by_key.order_X, by_key.full_X, by_key.total_X, by_key.index_XY,
            *shared, by_key.index_XY.shape[1], **constants(q_BTHD, key_tile),
        )  # fmt: skip
    return dq, dk, dv
