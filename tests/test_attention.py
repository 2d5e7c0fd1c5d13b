"""Attention against the written-out reference: outputs, every gradient, and low precision."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from thinkrl.kernels import masks
from thinkrl.kernels.attention import attention
from thinkrl.kernels.masks import Mask
from thinkrl.kernels.reference import attention_reference
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MASKS: dict[str, Mask] = {
    "causal": masks.causal(37),
    "causal_longer": masks.causal(5, 20),
    "causal_blind": masks.causal(20, 5),  # the first queries see nothing
    "full": masks.bidirectional(13, 21),
    "padded": masks.bidirectional(9, lengths=[9, 4, 0, 7]),
    "packed": masks.packed([5, 17, 1, 0, 14]),
    "packed_causal": masks.packed_causal([5, 17, 1, 0, 14, 14]),
    "one_document": masks.packed_causal([63]),
    "windowed": masks.packed_causal([5, 100, 1, 30], window=7),
    "sliding_window": masks.sliding_window(100, 16),
    "shared_prefix": masks.shared_prefix([(9, [4, 7, 1]), (3, [5, 0]), (0, [6, 2])]),
    "prefix_tree": masks.prefix_tree([4, 3, 5, 2, 6, 3], [-1, 0, 1, 1, 0, -1]),
    "block_causal": masks.block_causal([[6, 4, 4], [3, 5]]),
    "block_diffusion": masks.block_diffusion([(5, [4, 4, 2]), (0, [3, 3])]),
    "patches_from_bytes": masks.patches_from_bytes([3, 0, 5, 1, 7, 70, 2], slots=2),
    "bytes_from_patches": masks.bytes_from_patches([3, 0, 5, 1, 7, 70, 2], slots=2),
}
HEADS = [(4, 4), (4, 2), (6, 1)]  # multi-head, grouped-query, multi-query


def inputs(
    queries: int, keys: int, heads: tuple[int, int], *, rows: int | None = None, D: int = 8
) -> list[Tensor]:
    torch.manual_seed(0)
    H, K = heads
    batch = () if rows is None else (rows,)
    shapes = (*batch, queries, H, D), (*batch, keys, K, D), (*batch, keys, K, D)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def out_and_grads(out: Tensor, leaves: list[Tensor], seed: int = 1) -> list[Tensor]:
    torch.manual_seed(seed)
    upstream = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def reference(qkv: list[Tensor], dense: Tensor, scale: float | None = None) -> Tensor:
    packed = qkv[0].dim() == 3
    q, k, v = (x[None] if packed else x for x in qkv)
    out, _ = attention_reference(q, k, v, mask_dense=dense, scale=scale)
    return out[0] if packed else out


def assert_all_close(got: list[Tensor], expected: list[Tensor]) -> None:
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", MASKS)
def test_equals_the_reference(name: str, heads: tuple[int, int]) -> None:
    """Packed form and a batch of 1, through the plan of rows where the mask has one."""
    mask = MASKS[name]
    qkv = inputs(mask.num_queries, mask.num_keys, heads)
    expected = out_and_grads(reference(qkv, mask.dense()), qkv)
    assert_all_close(out_and_grads(attention(*qkv, mask=mask), qkv), expected)
    scaled = out_and_grads(reference(qkv, mask.dense(), scale=0.3), qkv)
    assert_all_close(out_and_grads(attention(*qkv, mask=mask, scale=0.3), qkv), scaled)
    one = [x[None].detach().requires_grad_() for x in qkv]
    got = [x[0] for x in out_and_grads(attention(*one, mask=mask), one)]
    assert_all_close(got, expected)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", ["causal", "causal_blind", "full", "windowed", "shared_prefix"])
def test_one_mask_for_all_rows(name: str, heads: tuple[int, int]) -> None:
    mask = MASKS[name]
    qkv = inputs(mask.num_queries, mask.num_keys, heads, rows=3)
    expected = out_and_grads(reference(qkv, mask.dense()), qkv)
    assert_all_close(out_and_grads(attention(*qkv, mask=mask), qkv), expected)


def test_rows_laid_end_to_end() -> None:
    """A mask over B * T queries and keys: padded rows, each with its own length."""
    mask = masks.bidirectional(9, lengths=[9, 4, 0, 7])
    qkv = inputs(9, 9, (4, 2), rows=4)
    visible = torch.arange(9)[None, None, None] < torch.tensor([9, 4, 0, 7])[:, None, None, None]
    expected = out_and_grads(reference(qkv, visible), qkv)
    assert_all_close(out_and_grads(attention(*qkv, mask=mask), qkv), expected)
    assert_all_close(out_and_grads(attention(*qkv, mask=visible), qkv), expected)
    assert not expected[0][2].any()  # the row that sees nothing


@pytest.mark.parametrize(("queries", "keys"), [(12, 12), (1, 12), (5, 12)])
def test_causal_by_name(queries: int, keys: int) -> None:
    qkv = inputs(queries, keys, (4, 2), rows=2)
    dense = masks.causal(queries, keys).dense()
    expected = out_and_grads(reference(qkv, dense), qkv)
    assert_all_close(out_and_grads(attention(*qkv, mask="causal"), qkv), expected)


def test_a_query_that_sees_no_key_is_zero() -> None:
    """No NaN, no gradient, and nothing from a key that nobody sees."""
    mask = masks.patches_from_bytes([3, 0, 2])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        qkv = [x.detach().to(dtype).requires_grad_() for x in inputs(3, 5, (2, 2))]
        for form in (mask, mask.dense()):
            out, dq, dk, dv = out_and_grads(attention(*qkv, mask=form), qkv)
            assert not out[1].any() and not dq[1].any()
            assert all(x.isfinite().all() for x in (out, dq, dk, dv))
    q, k, v = (x[None] for x in inputs(3, 5, (2, 2)))
    _, lse = attention_reference(q, k, v, mask_dense=mask.dense())
    assert lse[0, :, 1].tolist() == [torch.inf, torch.inf] and lse[0, :, [0, 2]].isfinite().all()


def test_the_reference_is_softmax() -> None:
    """The specification itself, against PyTorch's own attention and its log-sum-exp by hand."""
    q, k, v = inputs(7, 7, (4, 2), rows=2)
    dense = masks.causal(7).dense()
    out, lse = attention_reference(q, k, v, mask_dense=dense)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    expected = scaled_dot_product_attention(
        heads_first[0], heads_first[1], heads_first[2], is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(out, expected.transpose(1, 2))
    scores = (q[1, 6, 3] * k[1, :, 1]).sum(-1) / 8**0.5
    torch.testing.assert_close(lse[1, 3, 6], scores.exp().sum().log())


@pytest.mark.parametrize("layout", ["packed", "shared_prefix"])
def test_packing_equals_separate_sequences(layout: Literal["packed", "shared_prefix"]) -> None:
    """The same tokens one sequence at a time, the prompt repeated, give the same outputs."""
    prompt, completions = 6, [4, 1, 5]
    total = prompt + sum(completions)
    q, k, v = inputs(total, total, (4, 2))
    starts = [prompt, prompt + 4, prompt + 5]
    if layout == "packed":
        mask = masks.packed_causal([prompt, *completions])
        runs = [range(prompt), *(range(s, s + n) for s, n in zip(starts, completions, strict=True))]
    else:
        mask = masks.shared_prefix([(prompt, completions)])
        runs = [
            [*range(prompt), *range(s, s + n)] for s, n in zip(starts, completions, strict=True)
        ]
    out = attention(q, k, v, mask=mask)
    for run in runs:
        at = torch.tensor(list(run))
        alone = attention(q[at], k[at], v[at], mask="causal")
        torch.testing.assert_close(out[at], alone, atol=1e-13, rtol=1e-10)


@pytest.mark.parametrize("name", ["causal", "packed_causal", "shared_prefix", "windowed", "long"])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_within_twice_the_error_of_torch(name: str, autocast: bool) -> None:
    mask = masks.causal(300) if name == "long" else MASKS[name]
    T, S = mask.num_queries, mask.num_keys
    exact = [x.detach().bfloat16() for x in inputs(T, S, (4, 2), D=32)]
    wide = [x.double().requires_grad_() for x in exact]
    truth = out_and_grads(reference(wide, mask.dense()), wide)

    dtype = torch.float32 if autocast else torch.bfloat16
    leaves = [x.to(dtype).requires_grad_() for x in exact]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = out_and_grads(attention(*leaves, mask=mask), leaves)
    assert ours[0].dtype == dtype
    plain = [x.requires_grad_() for x in exact]
    # PyTorch's own: the same formula, in bfloat16, over the dense mask.
    torchs = out_and_grads(reference(plain, mask.dense()), plain)
    for what, got, theirs, right in zip("oqkv", ours, torchs, truth, strict=True):
        error, allowed = ((x.double() - right).abs().max().item() for x in (got, theirs))
        assert error <= 2 * allowed + 1e-6, f"{what}: {error:.1e} > 2 * {allowed:.1e}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": masks.causal(4)}, "mask of 4 queries x 4 keys: the tensors have 5 x 6 in 2 rows"),
        ({"mask": "window"}, "mask='window': unknown; give a Mask, a bool tensor or 'causal'"),
        ({"backend": "cuda"}, "backend='cuda': unknown"),
        ({"k_BSKD": torch.zeros(2, 6, 3, 8)}, "need .* H multiple of K"),
        ({"v_BSKD": torch.zeros(2, 7, 2, 8)}, "q, k, v of shapes"),
    ],
)
def test_mistakes_get_one_clear_line(change: dict[str, Any], message: str) -> None:
    kwargs: dict[str, Any] = {
        "q_BTHD": torch.zeros(2, 5, 4, 8),
        "k_BSKD": torch.zeros(2, 6, 2, 8),
        "v_BSKD": torch.zeros(2, 6, 2, 8),
        "mask": masks.causal(5, 6),
    }
    with pytest.raises(ValueError, match=message):
        attention(**{**kwargs, **change})
