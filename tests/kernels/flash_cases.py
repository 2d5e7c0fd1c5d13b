"""FlashAttention kernels against the written-out reference in float64.

Not collected by itself: `test_flash_attention.py` runs it in Triton's interpreter, in a process of
its own (the choice is made when Triton is imported), and on a GPU as it is.
Outputs start as NaN with guards around them, and inputs lie between NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from thinkrl.kernels import masks
from thinkrl.kernels.attention import attention
from thinkrl.kernels.configurations import Tile
from thinkrl.kernels.flash_attention import Tiles, flash_attention
from thinkrl.kernels.flash_forward import flash_forward
from thinkrl.kernels.masks import Mask
from thinkrl.kernels.reference import attention_reference
from thinkrl.models.registry import load_model
from torch import Tensor

from .conftest import INTERPRETED

MASKS: dict[str, Mask] = {
    "causal": masks.causal(100),
    "causal_longer": masks.causal(37, 90),
    "causal_blind": masks.causal(70, 33),  # the first queries see nothing
    "full": masks.bidirectional(63, 100),
    "padded": masks.bidirectional(32, lengths=[31, 4, 0, 17]),
    "packed": masks.packed([50, 1, 0, 40]),
    "packed_causal": masks.packed_causal([40, 1, 0, 50, 3]),
    "windowed": masks.packed_causal([60, 1, 30], window=17),
    "sliding_window": masks.sliding_window(100, 40),
    "shared_prefix": masks.shared_prefix([(40, [14, 20, 1]), (3, [5, 0]), (0, [6, 2])]),
    "prefix_tree": masks.prefix_tree([33, 7, 15, 2, 26, 3], [-1, 0, 1, 1, 0, -1]),
    "block_causal": masks.block_causal([[36, 14, 14], [13, 5]]),
    "block_diffusion": masks.block_diffusion([(15, [14, 14, 2]), (0, [13, 3])]),
    "patches_from_bytes": masks.patches_from_bytes([3, 0, 5, 1, 37, 40, 2], slots=2),
    "bytes_from_patches": masks.bytes_from_patches([3, 0, 5, 1, 37, 40, 2], slots=2),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEADS = ((2, 2), (4, 2), (3, 1))  # multi-head, grouped-query, multi-query
WIDTHS = (16, 64, 80, 128, 256)
TILES = ((32, 32), (16, 64), (64, 16), (64, 32))
GUARD = 4096
_empty, _empty_like = torch.empty, torch.empty_like


def tiles(size: tuple[int, int]) -> Tiles | None:
    """Small tiles in the interpreter, so that a small problem has many; the table on a GPU."""
    one = Tile(*size)
    return Tiles(one, one, Tile(size[1], size[0])) if INTERPRETED else None


@pytest.fixture(autouse=True)
def guarded_outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that is not written stays NaN, and what lies around it must stay as it was."""
    given: list[Tensor] = []

    def empty(*shape: Any, **options: Any) -> Tensor:
        ours = options.keys() == {"dtype", "device"} and options["dtype"] in DTYPES
        if not ours or torch.device(options["device"]).type == "meta":
            return _empty(*shape, **options)
        shape = torch.Size(shape[0] if isinstance(shape[0], Sequence) else shape)
        size = shape.numel()
        buffer = torch.full((size + 2 * GUARD,), math.nan, **options)
        buffer[:GUARD] = buffer[GUARD + size :] = -7.0
        given.append(buffer)
        return buffer[GUARD : GUARD + size].view(shape)

    def empty_like(x: Tensor, **options: Any) -> Tensor:
        return (
            _empty_like(x, **options) if options else empty(x.shape, dtype=x.dtype, device=x.device)
        )

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    yield
    for buffer in given:
        assert (buffer[:GUARD] == -7.0).all() and (buffer[-GUARD:] == -7.0).all()


def between_nans(x_NTHD: Tensor) -> Tensor:
    """The same values as a view into a larger tensor of NaN, requiring a gradient."""
    B, T, H, D = x_NTHD.shape
    around = torch.full((B, T + 8, H, D), math.nan, dtype=x_NTHD.dtype, device=x_NTHD.device)
    around[:, 4 : 4 + T] = x_NTHD
    return around[:, 4 : 4 + T].detach().requires_grad_()


def inputs(
    mask: Mask, heads: tuple[int, int], D: int, dtype: torch.dtype, device: str, *, B: int = 1
) -> list[Tensor]:
    torch.manual_seed(0)
    H, K = heads
    shapes = [(B, mask.num_queries, H, D), *[(B, mask.num_keys, K, D)] * 2]
    return [between_nans(torch.randn(shape).to(dtype).to(device)) for shape in shapes]


def with_grads(out: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    upstream = torch.randn(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def by_reference(qkv: Sequence[Tensor], mask: Mask, scale: float, dtype: torch.dtype) -> Any:
    leaves = [x.detach().to(dtype).requires_grad_() for x in qkv]
    out, _ = attention_reference(*leaves, mask_dense=mask.dense().to(qkv[0].device), scale=scale)
    return with_grads(out, leaves)


def assert_right(got: list[Tensor], qkv: Sequence[Tensor], mask: Mask, scale: float) -> None:
    """float32: relative error <= 1e-5. Half precision: within twice the error of PyTorch."""
    dtype = qkv[0].dtype
    truth = by_reference(qkv, mask, scale, torch.float64)
    plain = by_reference(qkv, mask, scale, dtype) if dtype != torch.float32 else [None] * 4
    for name, x, right, low in zip(("out", "dq", "dk", "dv"), got, truth, plain, strict=True):
        assert x.dtype == dtype and x.isfinite().all(), name
        if low is None:
            error = ((x.double() - right).norm() / (right.norm() + 1e-9)).item()
            assert error <= 1e-5, f"{name}: relative error {error:.1e}"
        else:
            error, allowed = ((y.double() - right).abs().max().item() for y in (x, low))
            noise = (right.to(dtype).double() - right).abs().max().item()
            assert error <= 2 * allowed + noise, f"{name}: {error:.1e} > 2 * {allowed:.1e}"


def check(
    mask: Mask, heads: tuple[int, int], D: int, dtype: torch.dtype, device: str, **options: Any
) -> None:
    size = options.pop("size", (32, 32))
    qkv = inputs(mask, heads, D, dtype, device, B=options.pop("B", 1))
    scale = options.get("scale") or D**-0.5
    out = flash_attention(*qkv, mask=mask.to(device), tiles=tiles(size), **options)
    assert_right(with_grads(out, qkv), qkv, mask, scale)


@pytest.mark.parametrize("at", range(len(MASKS)), ids=list(MASKS))
def test_every_mask(at: int, device: str) -> None:
    """Dtypes, head counts, widths and tiles rotate at different speeds."""
    mask = list(MASKS.values())[at]
    D = (16, 40, 64, 24, 80)[at % 5]
    check(mask, HEADS[at // 3 % 3], D, DTYPES[at % 3], device, size=TILES[at % 4])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["causal_blind", "shared_prefix"])
def test_every_precision(name: str, dtype: torch.dtype, device: str) -> None:
    check(MASKS[name], (4, 2), 32, dtype, device)


@pytest.mark.parametrize("D", [*WIDTHS, 8, 20])
def test_every_head_width(D: int, device: str) -> None:
    check(masks.causal(40, 50), (2, 1), D, torch.float32, device)


@pytest.mark.parametrize(
    ("queries", "keys"), [(1, 1), (1, 257), (3, 3), (63, 63), (257, 257), (100, 3), (64, 32)]
)
def test_every_length(queries: int, keys: int, device: str) -> None:
    check(masks.causal(queries, keys), (2, 1), 16, torch.float32, device, size=(64, 32))


def test_rows_share_a_mask(device: str) -> None:
    check(MASKS["shared_prefix"], (4, 2), 16, torch.float32, device, B=3, scale=0.4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "heads", "D"),
    [*itertools.product(MASKS, DTYPES, HEADS, WIDTHS)],
    ids=lambda x: f"D{x}" if isinstance(x, int) else str(x),
)
def test_everything(
    name: str, dtype: torch.dtype, heads: tuple[int, int], D: int, device: str
) -> None:
    check(MASKS[name], heads, D, dtype, device)


def test_lse_and_blind_queries(device: str) -> None:
    """log2 of the sum of powers of two; +inf and a zero output where nothing is seen."""
    mask = MASKS["causal_blind"]
    q, k, v = inputs(mask, (4, 2), 16, torch.float32, device)
    tile = Tile(32, 32) if INTERPRETED else None
    out, lse = flash_forward(q, k, v, mask=mask.to(device), scale=0.25, tile=tile)
    _, right = attention_reference(
        *(x.double() for x in (q, k, v)), mask_dense=mask.dense().to(device), scale=0.25
    )
    blind = right.isinf()
    assert blind.sum() == 4 * 37 and torch.equal(lse.isinf(), blind)
    assert not out.transpose(1, 2)[blind].any()
    torch.testing.assert_close(lse[~blind] * math.log(2), right[~blind].float())


@pytest.mark.parametrize("layout", ["fused", "heads_first", "stride_65", "offset_1", "expanded"])
def test_every_layout(layout: str, device: str) -> None:
    """Views of any stride and alignment, and a gradient that is one number expanded."""
    torch.manual_seed(0)
    B, T, H, D = 2, 37, 2, 16
    mask = masks.causal(T)
    if layout in ("fused", "expanded"):
        q, k, v = torch.randn(B, T, 3, H, D, device=device).unbind(2)
    elif layout == "heads_first":
        q, k, v = (torch.randn(B, H, T, D, device=device).transpose(1, 2) for _ in "qkv")
    elif layout == "stride_65":
        q, k, v = (torch.randn(B, T, H, 65, device=device)[..., :D] for _ in "qkv")
    else:
        q, k, v = (
            torch.randn(B * T * H * D + 1, device=device)[1:].view(B, T, H, D) for _ in "qkv"
        )
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = flash_attention(*leaves, mask=mask.to(device), tiles=tiles((16, 32)))
    if layout != "expanded":
        assert_right(with_grads(out, leaves), leaves, mask, D**-0.5)
        return
    got = torch.autograd.grad(out.sum(), leaves)
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    right, _ = attention_reference(*doubles, mask_dense=mask.dense().to(device))
    for a, b in zip(got, torch.autograd.grad(right.sum(), doubles), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)


def test_two_runs_are_equal_bit_by_bit(device: str) -> None:
    mask = MASKS["shared_prefix"].to(device)
    qkv = inputs(mask, (4, 2), 32, torch.float32, device)
    runs = [
        with_grads(flash_attention(*qkv, mask=mask, tiles=tiles((32, 32))), qkv) for _ in range(2)
    ]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_a_shared_prompt_equals_repeated_prompts(device: str) -> None:
    """Outputs, and gradients summed over the copies of the prompt."""
    prompt, completions = 37, [14, 1, 22]
    starts = [prompt + sum(completions[:n]) for n in range(3)]
    shared = masks.shared_prefix([(prompt, completions)]).to(device)
    repeated = masks.packed_causal([prompt + n for n in completions]).to(device)
    at: list[int] = []
    for start, n in zip(starts, completions, strict=True):
        at += [*range(prompt), *range(start, start + n)]
    qkv = inputs(shared, (2, 1), 16, torch.float32, device)
    one = flash_attention(*qkv, mask=shared, tiles=tiles((32, 32)))
    copies = [x[:, at] for x in qkv]
    many = flash_attention(*copies, mask=repeated, tiles=tiles((32, 32)))
    torch.testing.assert_close(one[:, at], many, atol=1e-6, rtol=1e-5)
    # Each prompt query is one of three copies: give all of them its gradient, but once.
    upstream = torch.randn(one.shape, device=device)
    expanded = upstream[:, at].clone()
    expanded[:, prompt + completions[0] :][:, :prompt] = 0.0
    expanded[:, 2 * prompt + sum(completions[:2]) :][:, :prompt] = 0.0
    got = torch.autograd.grad(one, qkv, upstream)
    expected = torch.autograd.grad(many, qkv, expanded)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_documents_in_another_order(device: str) -> None:
    lengths, order = [20, 1, 33], [2, 0, 1]
    ends = list(itertools.accumulate(lengths))
    at = [t for d in order for t in range(ends[d] - lengths[d], ends[d])]
    mask = masks.packed_causal(lengths).to(device)
    other = masks.packed_causal([lengths[d] for d in order]).to(device)
    qkv = inputs(mask, (4, 2), 16, torch.float32, device)
    out = flash_attention(*qkv, mask=mask, tiles=tiles((16, 16)))
    moved = flash_attention(*(x[:, at] for x in qkv), mask=other, tiles=tiles((16, 16)))
    torch.testing.assert_close(out[:, at], moved, atol=1e-6, rtol=1e-5)


def test_through_the_one_door(device: str) -> None:
    """attention(backend="triton") in all its forms equals the torch backend."""
    padded = masks.bidirectional(9, lengths=[9, 4, 0, 7])
    rows = [torch.randn(4, 9, h, 16, device=device) for h in (4, 2, 2)]
    packed = masks.packed_causal([5, 17, 14])
    flat = [torch.randn(36, h, 16, device=device) for h in (4, 2, 2)]
    cases: list[Any] = [(rows, padded), (rows, "causal"), (rows, masks.causal(9)), (flat, packed)]
    for qkv, mask in cases:
        ours, theirs = (attention(*qkv, mask=mask, backend=b) for b in ("triton", "torch"))
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_a_model(device: str) -> None:
    """Two layers over a shared prefix: logits and every gradient as with the torch kernels."""
    model = load_model("llama-tiny", vocab_size=40, seed=0, device=device, kernels="triton")
    ids = torch.arange(45, device=device)[None] % 40
    mask = masks.shared_prefix([(20, [9, 16])])
    results = []
    for kernels in ("triton", "torch"):
        model.use_kernels(kernels)
        out = model.logits(model(ids, mask=mask))
        model.zero_grad()
        out.logsumexp(-1).sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert len(grads) == len([*model.parameters()])
        results.append([out.detach(), *(grad.clone() for grad in grads)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_autocast(device: str) -> None:
    mask = masks.causal(40).to(device)
    qkv = inputs(mask, (2, 1), 16, torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        out = flash_attention(*qkv, mask=mask)
    low = flash_attention(*(x.bfloat16() for x in qkv), mask=mask)
    assert out.dtype == torch.float32 and torch.equal(out, low.float())


def test_no_keys_and_no_queries(device: str) -> None:
    q, k = torch.randn(1, 5, 2, 16, device=device), torch.zeros(1, 0, 2, 16, device=device)
    none = torch.zeros(0, dtype=torch.int32, device=device)
    for queries, keys, mask in ((q, k, Mask(none, none, 5)), (k, k, Mask(none, none, 0))):
        leaves = [x.clone().requires_grad_() for x in (queries, keys, keys)]
        out = flash_attention(*leaves, mask=mask)
        out.sum().backward()
        assert out.shape == queries.shape and not out.any()
        assert all(x.grad is not None and not x.grad.any() for x in leaves)
