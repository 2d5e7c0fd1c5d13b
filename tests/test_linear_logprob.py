"""Log-probs and entropies from hidden states, against log_softmax and transformers' warpers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from thinkrl.kernels import linear_logprob as module
from thinkrl.kernels.linear_logprob import filtered_logprob, kept_tokens, linear_logprob
from thinkrl.kernels.reference import linear_logprob_reference
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

SHAPES = [(1, 4, 7), (63, 16, 260), (100, 8, 1000), (257, 32, 47)]


def inputs(N: int, D: int, V: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (N,))


def by_log_softmax(
    hidden: Tensor, weight: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Independent of the project: PyTorch's cross entropy and Categorical."""
    logits = hidden @ weight.T / temperature
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    return -torch.nn.functional.cross_entropy(logits, target, reduction="none"), entropy


def with_grads(outputs: tuple[Tensor, Tensor], hidden: Tensor, weight: Tensor) -> list[Tensor]:
    """Log-probs, entropies, and the gradients of a random combination of both."""
    torch.manual_seed(1)
    a, b = torch.randn(2, outputs[0].numel(), dtype=torch.float64).to(outputs[0].dtype)
    total = (a * outputs[0] + b * outputs[1]).sum()
    return [*(x.detach() for x in outputs), *torch.autograd.grad(total, (hidden, weight))]


@pytest.fixture(params=[True, False], ids=["kept", "recomputed"])
def keeps_logits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways to the backward: with the logits of the forward, and computing them again."""
    if not request.param:
        monkeypatch.setattr(module, "_KEEP_ELEMENTS", 0)
    return request.param


@pytest.mark.parametrize(("N", "D", "V"), SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 32, 10_000])
@pytest.mark.usefixtures("keeps_logits")
def test_equals_log_softmax(
    N: int, D: int, V: int, temperature: float, chunk_tokens: int | None
) -> None:
    hidden, weight, target = inputs(N, D, V)
    ours = linear_logprob(
        hidden, weight, target, temperature=temperature, chunk_tokens=chunk_tokens
    )
    got = with_grads(ours, hidden, weight)
    for exact in (by_log_softmax, linear_logprob_reference):
        if exact is by_log_softmax:
            outputs = by_log_softmax(hidden, weight, target, temperature)
        else:
            outputs = linear_logprob_reference(hidden, weight, target, temperature=temperature)
        expected = with_grads(outputs, hidden, weight)
        for name, a, b in zip(("logp", "entropy", "dh", "dw"), got, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9, msg=lambda m, n=name: n + m)


@pytest.mark.usefixtures("keeps_logits")
def test_gradcheck() -> None:
    hidden, weight, target = inputs(5, 3, 6)

    def both(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprob(hidden, weight, target, temperature=0.7, chunk_tokens=2)

    assert torch.autograd.gradcheck(both, (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: both(h, w)[0], (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: both(h, w)[1], (hidden, weight))
    (grad,) = torch.autograd.grad(both(hidden, weight)[0].sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError):  # a second derivative is refused, not silently wrong
        grad.square().sum().backward()


def test_only_the_gradients_that_are_asked_for() -> None:
    for trains in ((True, False), (False, True)):
        hidden, weight, target = inputs(20, 4, 9)
        leaves = [
            x.detach().requires_grad_(t) for x, t in zip((hidden, weight), trains, strict=True)
        ]
        logprobs, _ = linear_logprob(leaves[0], leaves[1], target)
        logprobs.sum().backward()
        expected = by_log_softmax(hidden, weight, target, 1.0)[0].sum()
        for leaf, right in zip(
            leaves, torch.autograd.grad(expected, (hidden, weight)), strict=True
        ):
            if leaf.requires_grad:
                torch.testing.assert_close(leaf.grad, right)
            else:
                assert leaf.grad is None
    with torch.no_grad():
        assert not linear_logprob(*inputs(4, 4, 9))[0].requires_grad


@pytest.mark.usefixtures("keeps_logits")
def test_chunks_change_nothing_of_the_values() -> None:
    hidden, weight, target = inputs(300, 16, 50, torch.float32)
    whole = linear_logprob(hidden, weight, target, chunk_tokens=300)
    parts = linear_logprob(hidden, weight, target, chunk_tokens=7)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_large_logits_and_near_certain_tokens() -> None:
    """float32 with logits in the hundreds: no overflow, and an entropy that is not noise."""
    hidden = torch.tensor([[300.0, 0.0], [-300.0, 0.0], [0.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 20.0]], requires_grad=True)
    target = torch.tensor([0, 0, 2])
    logprobs, entropy = linear_logprob(hidden, weight, target)
    assert logprobs.tolist() == pytest.approx([0.0, -600.0, 0.0], abs=1e-6)
    exact = by_log_softmax(hidden.double(), weight.double(), target, 1.0)[1]
    torch.testing.assert_close(entropy, exact.float(), atol=1e-7, rtol=1e-4)
    assert (entropy >= 0).all()
    (logprobs.sum() + entropy.sum()).backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.usefixtures("keeps_logits")
def test_bfloat16_within_twice_the_error_of_torch(autocast: bool) -> None:
    exact = inputs(200, 32, 300, torch.bfloat16)
    target = exact[2]

    def error_of(got: list[Tensor], truth: list[Tensor]) -> list[float]:
        return [(a.double() - b).abs().max().item() for a, b in zip(got, truth, strict=True)]

    wide = [x.detach().double().requires_grad_() for x in exact[:2]]
    truth = with_grads(by_log_softmax(wide[0], wide[1], target, 0.8), wide[0], wide[1])
    leaves = [x.detach().requires_grad_() for x in exact[:2]]
    plain = by_log_softmax(leaves[0], leaves[1], target, 0.8)
    theirs = error_of(with_grads(plain, leaves[0], leaves[1]), truth)
    dtype = torch.float32 if autocast else torch.bfloat16
    leaves = [x.detach().to(dtype).requires_grad_() for x in exact[:2]]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = linear_logprob(leaves[0], leaves[1], target, temperature=0.8, chunk_tokens=64)
    assert outputs[0].dtype == outputs[1].dtype == torch.float32
    ours = error_of(with_grads(outputs, leaves[0], leaves[1]), truth)
    for name, a, b in zip(("logp", "entropy", "dh", "dw"), ours, theirs, strict=True):
        assert a <= 2 * b, f"{name}: {a:.1e} > 2 * {b:.1e}"


def test_no_tokens() -> None:
    hidden, weight, target = inputs(0, 4, 9)
    logprobs, entropy = linear_logprob(hidden, weight, target)
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == (0,) and weight.grad is not None and not weight.grad.any()


FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 500},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.2},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    {"temperature": 1.5, "top_p": 0.7, "min_p": 0.05},
]


def warped(logits: Tensor, *, temperature: float = 1.0, **filters: Any) -> Tensor:
    """transformers' own sampling distribution as logits, -inf where a token is out."""
    warpers = LogitsProcessorList()
    warpers.append(TemperatureLogitsWarper(temperature))
    if "top_k" in filters:
        warpers.append(TopKLogitsWarper(filters["top_k"]))
    if "top_p" in filters:
        warpers.append(TopPLogitsWarper(filters["top_p"]))
    if "min_p" in filters:
        warpers.append(MinPLogitsWarper(filters["min_p"]))
    return warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", [False, True])
def test_filters_equal_transformers(
    settings: dict[str, Any], dtype: torch.dtype, ties: bool
) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(64, 60, dtype=dtype)
    if ties and not settings.keys() & {"top_p"}:  # which of two equal tokens top-p drops is chance
        logits = logits.round()
    expected = warped(logits, **settings)
    kept = expected > -torch.inf
    filters = {k: v for k, v in settings.items() if k != "temperature"}
    scaled = logits / settings.get("temperature", 1.0)
    assert torch.equal(kept_tokens(scaled, **filters), kept)
    target = torch.multinomial(kept.to(dtype), 1).squeeze(1)
    logprobs, entropy = filtered_logprob(logits, target, **settings)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    right = expected.log_softmax(-1).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs, right, atol=tolerance, rtol=0)
    right = torch.distributions.Categorical(probs=expected.softmax(-1)).entropy()
    torch.testing.assert_close(entropy, right, atol=max(tolerance, 1e-5), rtol=0)


@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_filtered_gradients(settings: dict[str, Any]) -> None:
    """gradcheck within the kept set, and nothing at all outside of it."""
    torch.manual_seed(0)
    logits = (2 * torch.randn(6, 12, dtype=torch.float64)).requires_grad_()
    target = logits.detach().argmax(-1)
    assert torch.autograd.gradcheck(lambda z: filtered_logprob(z, target, **settings), logits)
    out = warped(logits.detach(), **settings) == -torch.inf
    logprobs, entropy = filtered_logprob(logits, target, **settings)
    (grad,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), logits)
    assert grad.isfinite().all() and not grad[out].any()


def test_a_target_outside_the_set_keeps_a_probability() -> None:
    """A token that the sampler drew on the edge of its set is never impossible."""
    logits = torch.tensor([[5.0, 4.0, -3.0, 1.0]], requires_grad=True)
    logprobs, entropy = filtered_logprob(logits, torch.tensor([2]), top_k=2)
    expected = torch.tensor([5.0, 4.0, -3.0]).log_softmax(0)
    torch.testing.assert_close(logprobs[0], expected[2])
    torch.testing.assert_close(entropy[0], -(expected.exp() * expected).sum())
    logprobs.sum().backward()
    assert logits.grad is not None and logits.grad[0, 3] == 0 and logits.grad.isfinite().all()


def test_without_filters_equals_linear_logprob() -> None:
    hidden, weight, target = inputs(40, 8, 30)
    one = linear_logprob(hidden, weight, target, temperature=0.7)
    two = filtered_logprob(hidden @ weight.T, target, temperature=0.7)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: must be positive; greedy has no log-prob"),
        ({"chunk_tokens": 0}, "chunk_tokens=0: must be at least 1"),
        ({"weight_VD": torch.zeros(9, 5)}, "hidden, weight, target of shapes"),
        ({"target_N": torch.zeros(3, 1, dtype=torch.long)}, "hidden, weight, target of shapes"),
    ],
)
def test_mistakes_get_one_clear_line(change: dict[str, Any], message: str) -> None:
    kwargs: dict[str, Any] = {
        "hidden_ND": torch.zeros(3, 4),
        "weight_VD": torch.zeros(9, 4),
        "target_N": torch.zeros(3, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=message):
        linear_logprob(**{**kwargs, **change})


def test_filter_mistakes_get_one_clear_line() -> None:
    logits, target = torch.zeros(1, 4), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="temperature=0: must be positive"):
        filtered_logprob(logits, target, temperature=0)
    settings: list[dict[str, Any]] = [{"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"min_p": 1.5}]
    for wrong in settings:
        with pytest.raises(ValueError, match="need 0 < top_p <= 1, top_k >= 0"):
            filtered_logprob(logits, target, **wrong)
