"""Masks against their definitions, written out pair by pair, and the plans of dense blocks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from thinkrl.kernels import masks
from thinkrl.kernels.masks import Mask
from torch import Tensor


def pairs(queries: int, keys: int, sees: Callable[[int, int], bool]) -> Tensor:
    """The dense mask of a rule."""
    return torch.tensor([[sees(i, j) for j in range(keys)] for i in range(queries)]).view(
        queries, keys
    )


def ids(lengths: Sequence[int]) -> list[int]:
    """Which document each token is of."""
    return [d for d, n in enumerate(lengths) for _ in range(n)]


def assert_sees(mask: Mask, expected: Tensor) -> None:
    """dense() is the rule, and the plan of rows covers exactly what the rule shows."""
    assert torch.equal(mask.dense(), expected)
    assert mask.lo_S.dtype == mask.hi_S.dtype == torch.int32
    assert (mask.num_queries, mask.num_keys) == expected.shape
    if mask.pattern == "causal":
        assert torch.equal(expected, torch.ones_like(expected).tril())
    if mask.pattern == "full":
        assert expected.all()
    if mask.rows is not None:
        assert torch.equal(seen_by_plan(mask), expected)


def seen_by_plan(mask: Mask) -> Tensor:
    """What the dense blocks show, each output row at its query."""
    plan = mask.rows
    assert plan is not None
    outputs = []
    for bucket in plan.buckets:
        R, T = bucket.q_index_RT.shape
        S = bucket.k_index_RS.shape[1]
        visible = bucket.visible_RTS
        if visible is None:
            visible = torch.ones(R, T, S, dtype=torch.bool)
            visible = visible.tril() if bucket.is_causal else visible
        seen = torch.zeros(R, T, mask.num_keys, dtype=torch.int64)
        seen.scatter_add_(2, bucket.k_index_RS[:, None].expand(R, T, S), visible.long())
        outputs.append(seen.flatten(0, 1))
        if bucket.identity_queries:
            assert bucket.q_index_RT.flatten().tolist() == list(range(mask.num_queries))
        if bucket.identity_keys:
            assert bucket.k_index_RS.flatten().tolist() == list(range(mask.num_keys))
    outputs.append(torch.zeros(1, mask.num_keys, dtype=torch.int64))
    seen = torch.cat(outputs)
    if plan.output_index_N is None:
        assert not plan.uncovered
        seen = seen[:-1]
    else:
        seen = seen[plan.output_index_N]
    assert seen.max() <= 1 if seen.numel() else True
    return seen.bool()


def some_lengths(rng: random.Random, *, most: int = 6, longest: int = 9) -> list[int]:
    return [rng.randint(0, longest) for _ in range(rng.randint(1, most))]


SEEDS = range(12)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (3, 8), (1, 8), (8, 3)])
def test_causal(queries: int, keys: int) -> None:
    mask = masks.causal(queries, keys)
    assert_sees(mask, pairs(queries, keys, lambda i, j: j <= i + keys - queries))
    assert (mask.pattern == "causal") == (queries == keys)


def test_bidirectional() -> None:
    assert_sees(masks.bidirectional(4), torch.ones(4, 4, dtype=torch.bool))
    assert_sees(masks.bidirectional(4, 7), torch.ones(4, 7, dtype=torch.bool))
    mask = masks.bidirectional(4, lengths=[2, 0, 4])
    assert_sees(mask, pairs(12, 12, lambda i, j: i // 4 == j // 4 and j % 4 < [2, 0, 4][j // 4]))


@pytest.mark.parametrize("seed", SEEDS)
def test_packed(seed: int) -> None:
    rng = random.Random(seed)
    lengths = some_lengths(rng)
    of = ids(lengths)
    n = len(of)
    assert_sees(masks.packed(lengths), pairs(n, n, lambda i, j: of[i] == of[j]))
    causal = pairs(n, n, lambda i, j: of[i] == of[j] and j <= i)
    assert_sees(masks.packed_causal(lengths), causal)
    for window in (1, 3, 20):
        near = pairs(n, n, lambda i, j: of[i] == of[j] and i - window < j <= i)  # noqa: B023
        assert_sees(masks.packed_causal(lengths, window=window), near)


@pytest.mark.parametrize(("tokens", "window"), [(1, 1), (7, 3), (7, 7), (7, 20), (200, 5)])
def test_sliding_window(tokens: int, window: int) -> None:
    expected = pairs(tokens, tokens, lambda i, j: i - window < j <= i)
    assert_sees(masks.sliding_window(tokens, window), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_shared_prefix(seed: int) -> None:
    rng = random.Random(seed)
    groups = [(rng.randint(0, 7), some_lengths(rng, most=4)) for _ in range(rng.randint(1, 3))]
    where = []  # (group, completion or None for the prompt) of each token
    for g, (prompt, completions) in enumerate(groups):
        where += [(g, None)] * prompt
        where += [(g, c) for c in ids(completions)]

    def sees(i: int, j: int) -> bool:
        return j <= i and where[i][0] == where[j][0] and where[j][1] in (None, where[i][1])

    assert_sees(masks.shared_prefix(groups), pairs(len(where), len(where), sees))


@pytest.mark.parametrize("seed", SEEDS)
def test_prefix_tree(seed: int) -> None:
    rng = random.Random(seed)
    lengths, parents, depth = [], [], []
    path: list[int] = []
    for n in range(rng.randint(1, 10)):
        del path[rng.randint(0, len(path)) :]  # go back up, then down to a new run
        parents.append(path[-1] if path else -1)
        path.append(n)
        lengths.append(rng.randint(0, 5))
        depth.append(len(path))
    of = ids(lengths)

    def above(n: int) -> list[int]:
        return [n] if parents[n] < 0 else [n, *above(parents[n])]

    def sees(i: int, j: int) -> bool:
        return j <= i and of[j] in above(of[i])

    assert_sees(masks.prefix_tree(lengths, parents), pairs(len(of), len(of), sees))


@pytest.mark.parametrize("seed", SEEDS)
def test_block_causal(seed: int) -> None:
    rng = random.Random(seed)
    documents = [some_lengths(rng, longest=5) for _ in range(rng.randint(1, 3))]
    where = [(d, b) for d, blocks in enumerate(documents) for b in ids(blocks)]

    def sees(i: int, j: int) -> bool:
        return where[i][0] == where[j][0] and where[j][1] <= where[i][1]

    assert_sees(masks.block_causal(documents), pairs(len(where), len(where), sees))


@pytest.mark.parametrize("seed", SEEDS)
def test_block_diffusion(seed: int) -> None:
    rng = random.Random(seed)
    documents = [
        (rng.randint(0, 4), some_lengths(rng, most=4, longest=4)) for _ in range(rng.randint(1, 3))
    ]
    where = []  # (document, block, is noisy); the prompt is the clean block -1
    for d, (prompt, blocks) in enumerate(documents):
        where += [(d, -1, False)] * prompt
        for b, n in enumerate(blocks):
            where += [(d, b, True)] * n + [(d, b, False)] * n

    def sees(i: int, j: int) -> bool:
        (doc, block, noisy), (key_doc, key_block, key_noisy) = where[i], where[j]
        if doc != key_doc:
            return False
        if key_noisy:
            return noisy and key_block == block
        return key_block < block if noisy else key_block <= block

    assert_sees(masks.block_diffusion(documents), pairs(len(where), len(where), sees))


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("longest", [1, 4, 40])
def test_patches_and_bytes(slots: int, longest: int) -> None:
    rng = random.Random(longest)
    for lengths in ([], [0, 0], [5], *(some_lengths(rng, most=30, longest=longest) for _ in "abc")):
        of = ids(lengths)
        patches, n = len(lengths) * slots, len(of)
        up = masks.patches_from_bytes(lengths, slots=slots)
        assert_sees(up, pairs(patches, n, lambda q, j: of[j] == q // slots))  # noqa: B023
        down = masks.bytes_from_patches(lengths, slots=slots)
        assert_sees(down, pairs(n, patches, lambda i, k: of[i] == k // slots))  # noqa: B023
        assert torch.equal(down.dense(), up.dense().T)


def test_a_plan_costs_little_more_than_what_is_visible() -> None:
    """The blocks of a long packed batch are far smaller than the dense square."""
    lengths = [random.Random(0).randint(20, 300) for _ in range(40)]
    mask = masks.packed_causal(lengths)
    assert mask.rows is not None
    pairs_computed = sum(
        bucket.q_index_RT.numel() * bucket.k_index_RS.shape[1] for bucket in mask.rows.buckets
    )
    assert pairs_computed <= 1.35 * sum(n * n for n in lengths)
    group = masks.shared_prefix([(100, [50] * 8)])
    assert group.rows is not None
    assert sum(b.q_index_RT.numel() for b in group.rows.buckets) == group.num_queries


def test_a_mask_moves_to_a_device() -> None:
    mask = masks.packed_causal([3, 2], window=2)
    assert mask.to("cpu") is mask
    moved = mask.to("meta")
    assert moved.lo_S.is_meta and (moved.num_queries, moved.num_keys) == (5, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masks.causal(0), "num_queries=0: must be at least 1"),
        (lambda: masks.sliding_window(4, 0), "window=0: must be at least 1"),
        (lambda: masks.packed([3, -1]), "lengths: -1 is negative; give token counts"),
        (lambda: masks.shared_prefix([(2, [-3])]), "lengths: -3 is negative"),
        (lambda: masks.bidirectional(3, lengths=[4]), "lengths: 4 is more than the row width 3"),
        (lambda: masks.bidirectional(3, 4, lengths=[3]), "num_keys=4: with lengths it must equal"),
        (lambda: masks.prefix_tree([1, 1], [-1]), "parents: 1 for 2 lengths; give one per run"),
        (lambda: masks.prefix_tree([1, 1, 1, 1], [-1, 0, 0, 1]), r"parents\[3\]=1: not above run"),
        (lambda: masks.prefix_tree([1, 1], [1, -1]), r"parents\[0\]=1: not above run 0"),
        (lambda: masks.patches_from_bytes([1], slots=0), "slots=0: must be at least 1"),
    ],
)
def test_mistakes_get_one_clear_line(call: Callable[[], Mask], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
