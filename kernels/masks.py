"""Attention masks: which queries see which keys, as one interval of queries per key.

Every mask the model families need is `lo_S[j] <= i < hi_S[j]`: query i sees key j. Two int32
numbers per key are enough for causal, packed, windowed and shared-prefix layouts, cost nothing to
move to a device, and serve forward and backward of all layers. `Mask.rows` adds a plan of dense
blocks so that the PyTorch backend pays for the visible part only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .block_lists import BlockLists, block_lists

# A new bucket of rows costs some kernel launches: worth it once padding would waste this many
# query-key pairs more, and more than this share of the useful ones.
_WASTE_PAIRS = 8192
_WASTE_SHARE = 0.25
_WINDOW_CHUNK = 64
_PATCH_BYTES = 64  # bytes that share a dense block, whatever patch they are of


@dataclass(frozen=True)
class Row:
    """A run of queries and the runs of keys that contain all they see; `causal`: the keys are the
    queries themselves, each seen by itself and what follows."""

    queries: tuple[int, int]
    keys: tuple[tuple[int, int], ...]
    causal: bool = False

    @property
    def num_queries(self) -> int:
        return self.queries[1] - self.queries[0]

    @property
    def num_keys(self) -> int:
        return sum(stop - start for start, stop in self.keys)


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows of similar size, padded to one shape: `q_index_RT`, `k_index_RS` (int64, padding points
    at token 0). `visible_RTS` is None where no test is needed: then `is_causal` says whether the
    block is lower-triangular or full. `identity`: the indices are 0, 1, 2, ... without padding."""

    q_index_RT: Tensor
    k_index_RS: Tensor
    visible_RTS: Tensor | None
    is_causal: bool
    identity_queries: bool
    identity_keys: bool


@dataclass(frozen=True, eq=False)
class RowPlan:
    """Buckets, and where in their concatenated, flattened outputs each query's result lies.

    `output_index_N` is None when that is the identity; a query in no row has the index one past
    the end and gets 0.
    """

    buckets: tuple[Bucket, ...]
    output_index_N: Tensor | None
    uncovered: bool


@dataclass(frozen=True, eq=False)
class Mask:
    """Query i sees key j where `lo_S[j] <= i < hi_S[j]` (int32). `pattern` names the two layouts
    that need no test per pair: "causal" (square, lower-triangular) and "full"."""

    lo_S: Tensor
    hi_S: Tensor
    num_queries: int
    pattern: str | None = None
    row_list: tuple[Row, ...] | None = field(default=None, repr=False)
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_keys(self) -> int:
        return self.lo_S.numel()

    @property
    def device(self) -> torch.device:
        return self.lo_S.device

    def dense(self) -> Tensor:
        """bool[queries, keys], True where the query sees the key."""
        return self._dense

    @cached_property
    def _dense(self) -> Tensor:
        query_T = torch.arange(self.num_queries, device=self.device)[:, None]
        return (query_T >= self.lo_S) & (query_T < self.hi_S)

    @cached_property
    def rows(self) -> RowPlan | None:
        """The plan of dense blocks, or None for a mask that has no cheaper layout than dense."""
        if self.row_list is None:
            return None
        return _plan(self, self.row_list)

    def blocks(self, block_q: int, block_k: int) -> tuple[BlockLists, BlockLists]:
        """The tiles to visit, by block of queries and by block of keys; built once per size."""
        key = block_q, block_k
        if key not in self._made:
            self._made[key] = block_lists(
                self.lo_S, self.hi_S, self.num_queries, block_q=block_q, block_k=block_k
            )
        return self._made[key]

    def to(self, device: torch.device | str) -> Mask:
        """The same mask on another device; one copy per device, so that layers share its plan."""
        device = torch.device(device)
        if device == self.device:
            return self
        if device not in self._made:
            self._made[device] = Mask(
                self.lo_S.to(device),
                self.hi_S.to(device),
                self.num_queries,
                pattern=self.pattern,
                row_list=self.row_list,
            )
        return self._made[device]


def causal(num_queries: int, num_keys: int | None = None) -> Mask:
    """Each query sees the keys up to its own position; the queries are the last positions.

    With `num_keys > num_queries` the first keys are a prefix that all queries see; with fewer keys
    the first queries see nothing.
    """
    num_keys = num_queries if num_keys is None else num_keys
    _check_sizes(num_queries=num_queries, num_keys=num_keys)
    lo_S = (torch.arange(num_keys) - (num_keys - num_queries)).clamp(min=0)
    pattern = "causal" if num_keys == num_queries else None
    return _mask(lo_S, torch.full_like(lo_S, num_queries), num_queries, pattern=pattern)


def bidirectional(
    num_queries: int, num_keys: int | None = None, lengths: Sequence[int] | None = None
) -> Mask:
    """Every query sees every key.

    With `lengths`: a right-padded batch of `len(lengths)` rows of `num_queries` tokens, laid end to
    end; the tokens of row b, padding too, see the first `lengths[b]` tokens of that row.
    """
    if lengths is None:
        num_keys = num_queries if num_keys is None else num_keys
        _check_sizes(num_queries=num_queries, num_keys=num_keys)
        lo_S = torch.zeros(num_keys, dtype=torch.int64)
        return _mask(lo_S, torch.full_like(lo_S, num_queries), num_queries, pattern="full")
    if num_keys not in (None, num_queries):
        raise ValueError(f"num_keys={num_keys}: with lengths it must equal {num_queries=}")
    lengths = _check_lengths(lengths)
    if any(n > num_queries for n in lengths):
        raise ValueError(f"lengths: {max(lengths)} is more than the row width {num_queries}")
    starts = [b * num_queries for b in range(len(lengths))]
    lo_S, hi_S, rows = [], [], []
    for start, n in zip(starts, lengths, strict=True):
        stop = start + num_queries
        lo_S += [start] * num_queries
        hi_S += [stop] * n + [start] * (num_queries - n)
        if n:
            rows.append(Row((start, stop), ((start, start + n),)))
    return _mask(lo_S, hi_S, num_queries * len(lengths), rows=rows)


def packed(lengths: Sequence[int]) -> Mask:
    """Documents laid end to end; each token sees all of its own document."""
    starts, total = _offsets(_check_lengths(lengths))
    lengths_D = torch.tensor(list(lengths), dtype=torch.int64)
    start_S = torch.repeat_interleave(torch.tensor(starts, dtype=torch.int64), lengths_D)
    hi_S = start_S + torch.repeat_interleave(lengths_D, lengths_D)
    runs = [(s, s + n) for s, n in zip(starts, lengths, strict=True) if n]
    return _mask(start_S, hi_S, total, rows=[Row(run, (run,)) for run in runs])


def packed_causal(lengths: Sequence[int], *, window: int | None = None) -> Mask:
    """Documents laid end to end; each token sees its own document up to itself.

    With `window`, it sees the last `window` positions only, itself included.
    """
    starts, total = _offsets(_check_lengths(lengths))
    lengths_D = torch.tensor(list(lengths), dtype=torch.int64)
    lo_S = torch.arange(total)
    end_D = torch.tensor(starts, dtype=torch.int64) + lengths_D
    hi_S = torch.repeat_interleave(end_D, lengths_D)
    if window is not None:
        _check_sizes(window=window)
        hi_S = torch.minimum(hi_S, lo_S + window)
    rows: list[Row] = []
    for start, n in zip(starts, lengths, strict=True):
        if n and (window is None or window >= n):
            rows.append(Row((start, start + n), ((start, start + n),), causal=True))
        elif n and window is not None:
            rows += _window_rows(start, start + n, window)
    single = len(lengths) == 1 and (window is None or window >= total)
    return _mask(lo_S, hi_S, total, pattern="causal" if single else None, rows=rows)


def sliding_window(num_queries: int, window: int) -> Mask:
    """Each token sees the last `window` positions, itself included."""
    _check_sizes(num_queries=num_queries)
    return packed_causal([num_queries], window=window)


def shared_prefix(groups: Iterable[tuple[int, Sequence[int]]]) -> Mask:
    """Groups of completions that share one copy of their prompt.

    `groups` is [(prompt length, [completion length, ...]), ...]; the tokens are laid out as prompt,
    then each completion, group after group. A completion sees its prompt and itself up to the
    token, exactly as if the prompt had been repeated before it.
    """
    lengths: list[int] = []
    parents: list[int] = []
    for prompt_length, completion_lengths in groups:
        prompt = len(lengths)
        lengths += [prompt_length, *completion_lengths]
        parents += [-1, *[prompt] * (len(lengths) - prompt - 1)]
    return prefix_tree(lengths, parents)


def prefix_tree(lengths: Sequence[int], parents: Sequence[int]) -> Mask:
    """A tree of token runs, each the continuation of its parent; a forest, if several are roots.

    Run n has `lengths[n]` tokens and continues run `parents[n]` (-1: a root). The runs are laid end
    to end in depth-first order: a run, then all that continues it. A token sees its own run up to
    itself, and all runs above it. Raises ValueError on another order.
    """
    lengths = _check_lengths(lengths)
    if len(parents) != len(lengths):
        raise ValueError(f"parents: {len(parents)} for {len(lengths)} lengths; give one per run")
    starts, total = _offsets(lengths)
    stops = [start + n for start, n in zip(starts, lengths, strict=True)]
    subtree_stops = list(stops)
    rows: list[Row] = []
    path: list[int] = []  # from a root down to the run at hand
    for n, parent in enumerate(parents):
        while path and path[-1] != parent:
            path.pop()
        if not path and parent != -1:
            raise ValueError(f"parents[{n}]={parent}: not above run {n} in depth-first order")
        path.append(n)
        for above in path:
            subtree_stops[above] = stops[n]
        keys = tuple((starts[p], stops[p]) for p in path if lengths[p])
        if lengths[n]:
            rows.append(Row(keys[-1], keys, causal=len(keys) == 1))
    hi_S = [stop for stop, n in zip(subtree_stops, lengths, strict=True) for _ in range(n)]
    return _mask(torch.arange(total), hi_S, total, rows=rows)


def block_causal(documents: Iterable[Sequence[int]]) -> Mask:
    """Documents of blocks, laid end to end; a token sees its own block and the blocks before it.

    Each document is the lengths of its blocks. Semi-autoregressive diffusion: a prompt as the first
    block, then blocks that are denoised one after the other.
    """
    lo_S: list[int] = []
    hi_S: list[int] = []
    rows: list[Row] = []
    for blocks in documents:
        blocks = _check_lengths(blocks)
        first, stop = len(lo_S), len(lo_S) + sum(blocks)
        hi_S += [stop] * (stop - first)
        for n in blocks:
            at = len(lo_S)
            lo_S += [at] * n
            if n:
                rows.append(Row((at, at + n), ((first, at + n),)))
    return _mask(lo_S, hi_S, len(lo_S), rows=rows)


def block_diffusion(documents: Iterable[tuple[int, Sequence[int]]]) -> Mask:
    """Noisy and clean copies of each block side by side, to train block diffusion in one pass.

    `documents` is [(prompt length, [block length, ...]), ...]; a document is laid out as its
    prompt, then for each block its noisy copy and its clean copy. A noisy token sees its own noisy
    block, the prompt and the clean blocks before it; a clean token the prompt and the clean blocks
    up to its own (BD3-LM, arXiv 2503.09573, which puts all noisy copies first).
    """
    lo_S: list[int] = []
    hi_S: list[int] = []
    rows: list[Row] = []
    for prompt_length, blocks in documents:
        prompt_length, *blocks = _check_lengths([prompt_length, *blocks])
        stop = len(lo_S) + prompt_length + 2 * sum(blocks)
        clean: list[tuple[int, int]] = []
        for n, is_clean in [
            (prompt_length, True),
            *((n, c) for n in blocks for c in (False, True)),
        ]:
            run = len(lo_S), len(lo_S) + n
            lo_S += [run[0]] * n
            hi_S += [stop if is_clean else run[1]] * n
            if n:
                rows.append(Row(run, (*clean, run)))
                clean += [run] if is_clean else []
    return _mask(lo_S, hi_S, len(lo_S), rows=rows)


def patches_from_bytes(patch_lengths: Sequence[int], *, slots: int = 1) -> Mask:
    """Each patch's queries see the bytes of that patch: queries are patches, keys are bytes.

    A patch has `slots` consecutive queries (BLT's cross_attn_k, arXiv 2412.09871). A patch without
    bytes sees nothing. A packed batch is the patches of all its rows, in order.
    """
    _check_sizes(slots=slots)
    lengths = _check_lengths(patch_lengths)
    lo_S = torch.tensor([p * slots for p, n in enumerate(lengths) for _ in range(n)])
    rows = [Row(patches, (bytes_,)) for patches, bytes_ in _patch_runs(lengths, slots)]
    return _mask(lo_S, lo_S + slots, len(lengths) * slots, rows=rows)


def bytes_from_patches(patch_lengths: Sequence[int], *, slots: int = 1) -> Mask:
    """Each byte sees its patch: queries are bytes, keys are `slots` consecutive ones per patch."""
    _check_sizes(slots=slots)
    lengths = _check_lengths(patch_lengths)
    starts, total = _offsets(lengths)
    lo_S = [start for start in starts for _ in range(slots)]
    hi_S = [start + n for start, n in zip(starts, lengths, strict=True) for _ in range(slots)]
    rows = [Row(bytes_, (patches,)) for patches, bytes_ in _patch_runs(lengths, slots)]
    return _mask(lo_S, hi_S, total, rows=rows)


def _patch_runs(
    lengths: Sequence[int], slots: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Runs of patches (as slots) that together have some bytes, and the run of these bytes."""
    runs = []
    first = at = stop = 0
    for p, n in enumerate(lengths):
        stop += n
        if stop - at >= _PATCH_BYTES or (p + 1 == len(lengths) and stop > at):
            runs.append(((first * slots, (p + 1) * slots), (at, stop)))
            first, at = p + 1, stop
    return runs


def _mask(
    lo_S: Tensor | list[int],
    hi_S: Tensor | list[int],
    num_queries: int,
    *,
    pattern: str | None = None,
    rows: list[Row] | None = None,
) -> Mask:
    lo_S, hi_S = (torch.as_tensor(x, dtype=torch.int32) for x in (lo_S, hi_S))
    row_list = None if rows is None else tuple(rows)
    return Mask(lo_S, hi_S, num_queries, pattern=pattern, row_list=row_list)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


def _check_lengths(lengths: Sequence[int]) -> list[int]:
    lengths = [int(n) for n in lengths]
    if any(n < 0 for n in lengths):
        raise ValueError(f"lengths: {min(lengths)} is negative; give token counts")
    return lengths


def _offsets(lengths: Sequence[int]) -> tuple[list[int], int]:
    starts, total = [], 0
    for n in lengths:
        starts.append(total)
        total += n
    return starts, total


def _window_rows(start: int, stop: int, window: int) -> list[Row]:
    chunk = max(_WINDOW_CHUNK, window)
    rows = []
    for first in range(start, stop, chunk):
        last = min(first + chunk, stop)
        rows.append(Row((first, last), ((max(start, first - window + 1), last),)))
    return rows


def _plan(mask: Mask, rows: Sequence[Row]) -> RowPlan:
    groups = _group_rows(rows)
    buckets = tuple(_bucket(mask, group) for group in groups)
    outputs = sum(b.q_index_RT.numel() for b in buckets)
    index_N = torch.full((mask.num_queries,), outputs, dtype=torch.int64)
    at = 0
    for group in groups:
        width = max(row.num_queries for row in group)
        for row in group:
            index_N[row.queries[0] : row.queries[1]] = torch.arange(at, at + row.num_queries)
            at += width
    uncovered = bool((index_N == outputs).any())
    identity = outputs == mask.num_queries and torch.equal(index_N, torch.arange(outputs))
    return RowPlan(buckets, None if identity else index_N.to(mask.device), uncovered)


def _group_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of similar size together; rows that are all alike keep their order."""
    order = sorted(rows, key=lambda r: (r.causal, r.num_keys, r.num_queries), reverse=True)
    groups: list[list[Row]] = []
    width = keys = useful = 0
    for row in order:
        pairs = row.num_queries * row.num_keys
        if groups and groups[-1][0].causal == row.causal:
            wider, longer = max(width, row.num_queries), max(keys, row.num_keys)
            waste = wider * longer * (len(groups[-1]) + 1) - (useful + pairs)
            if waste <= max(_WASTE_PAIRS, _WASTE_SHARE * (useful + pairs)):
                groups[-1].append(row)
                width, keys, useful = wider, longer, useful + pairs
                continue
        groups.append([row])
        width, keys, useful = row.num_queries, row.num_keys, pairs
    return groups


def _bucket(mask: Mask, rows: Sequence[Row]) -> Bucket:
    device = mask.device
    width = max(row.num_queries for row in rows)
    depth = max(row.num_keys for row in rows)
    q_index_RT = torch.zeros(len(rows), width, dtype=torch.int64)
    k_index_RS = torch.zeros(len(rows), depth, dtype=torch.int64)
    is_key_RS = torch.zeros(len(rows), depth, dtype=torch.bool)
    for r, row in enumerate(rows):
        q_index_RT[r, : row.num_queries] = torch.arange(*row.queries)
        at = 0
        for start, stop in row.keys:
            k_index_RS[r, at : at + stop - start] = torch.arange(start, stop)
            at += stop - start
        is_key_RS[r, :at] = True
    identity_q = _is_identity(q_index_RT, mask.num_queries)
    identity_k = _is_identity(k_index_RS, mask.num_keys)
    q_index_RT, k_index_RS, is_key_RS = (x.to(device) for x in (q_index_RT, k_index_RS, is_key_RS))
    if rows[0].causal:
        # Padded keys lie behind every real query of their row: the triangle already hides them.
        return Bucket(q_index_RT, k_index_RS, None, True, identity_q, identity_k)
    lo_RS, hi_RS = mask.lo_S[k_index_RS], mask.hi_S[k_index_RS]
    query_RT = q_index_RT[:, :, None]
    visible_RTS = (query_RT >= lo_RS[:, None]) & (query_RT < hi_RS[:, None]) & is_key_RS[:, None]
    visible = None if bool(visible_RTS.all()) else visible_RTS
    return Bucket(q_index_RT, k_index_RS, visible, False, identity_q, identity_k)


def _is_identity(index_RX: Tensor, total: int) -> bool:
    return index_RX.numel() == total and torch.equal(index_RX.flatten(), torch.arange(total))
