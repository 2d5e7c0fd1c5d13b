"""Which tiles of the query x key square a kernel has to visit, from the intervals of a mask.

A tile that nobody sees is skipped, one that everybody sees needs no test per pair. Everything is
integer arithmetic without a synchronisation, so the lists can be built where the mask lives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class BlockLists:
    """For each block of one axis, the blocks of the other axis to visit; int32.

    `index_XY[x]` holds the blocks of x: first `full_X[x]` that need no test, then partial ones, up
    to `total_X[x]`; what follows is unused. `order_X` visits the longest lists first, so that no
    long program starts last.
    """

    order_X: Tensor
    full_X: Tensor
    total_X: Tensor
    index_XY: Tensor


def block_lists(
    lo_S: Tensor, hi_S: Tensor, num_queries: int, *, block_q: int, block_k: int
) -> tuple[BlockLists, BlockLists]:
    """Lists by block of queries (for out and dq) and by block of keys (for dk and dv).

    A full tile lies wholly inside the tensors and every query in it sees every key in it.
    """
    N, M = -(-lo_S.numel() // block_k), -(-num_queries // block_q)
    key_block_S = torch.arange(lo_S.numel(), device=lo_S.device) // block_k
    seen_S = hi_S > lo_S
    # Query blocks that a key touches, and those that it covers from first to last row.
    touched = lo_S // block_q, -(-hi_S // block_q)
    covered = -(-lo_S // block_q), hi_S // block_q
    touches_NM = _count(key_block_S, *touched, counted_S=seen_S, shape=(N, M))
    covers_NM = _count(key_block_S, *covered, counted_S=covered[1] > covered[0], shape=(N, M))
    # 0 full, 1 partial, 2 skipped: a stable sort is the list.
    kind_NM = 2 - (touches_NM > 0).to(torch.int8) - (covers_NM == block_k).to(torch.int8)
    return _lists(kind_NM.T), _lists(kind_NM)


def _count(
    block_S: Tensor, first_S: Tensor, stop_S: Tensor, *, counted_S: Tensor, shape: tuple[int, int]
) -> Tensor:
    """How many keys of each key block hold query block m in first <= m < stop: int32[N, M]."""
    N, M = shape
    steps = torch.zeros(N * (M + 1), dtype=torch.int32, device=block_S.device)
    one_S = counted_S.to(torch.int32)
    row_S = block_S * (M + 1)
    steps.scatter_add_(0, row_S + first_S.clamp(max=M), one_S)
    steps.scatter_add_(0, row_S + stop_S.clamp(max=M), -one_S)
    return steps.view(N, M + 1).cumsum(1, dtype=torch.int32)[:, :M]


def _lists(kind_XY: Tensor) -> BlockLists:
    index_XY = kind_XY.argsort(dim=1, stable=True).to(torch.int32).contiguous()
    full_X = (kind_XY == 0).sum(1, dtype=torch.int32)
    total_X = (kind_XY < 2).sum(1, dtype=torch.int32)
    order_X = total_X.argsort(descending=True, stable=True).to(torch.int32)
    return BlockLists(order_X, full_X, total_X, index_XY)
