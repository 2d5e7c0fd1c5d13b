"""linear_token_loss against linear_logprob and autograd: the same loss, three products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from thinkrl.grpo.objectives import policy_loss
from thinkrl.kernels.linear_logprob import linear_logprob, linear_token_loss
from torch import Tensor

Losses = Callable[[Tensor, Tensor, slice], Tensor]


def inputs(N: int, D: int, V: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (N,))


def clipped(N: int) -> Losses:
    """GRPO's clipped token loss with an entropy bonus."""
    torch.manual_seed(1)
    old, advantage = torch.randn(N, dtype=torch.float64) - 4.0, torch.randn(N, dtype=torch.float64)

    def losses(logprobs: Tensor, entropy: Tensor, rows: slice) -> Tensor:
        ratio = (logprobs - old[rows]).exp()
        pessimist = torch.minimum(ratio * advantage[rows], ratio.clamp(0.8, 1.2) * advantage[rows])
        return -pessimist / N - 0.01 * entropy / N

    return losses


LOSSES: dict[str, Callable[[int], Losses]] = {
    "clipped": clipped,
    "likelihood": lambda N: lambda logprobs, entropy, rows: -logprobs / N,
    "entropy": lambda N: lambda logprobs, entropy, rows: entropy.square(),
    "constant": lambda N: lambda logprobs, entropy, rows: torch.ones_like(logprobs),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("N", "D", "V"), [(1, 4, 7), (63, 16, 260), (100, 8, 1000), (0, 4, 9)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 32])
def test_equals_autograd(
    name: str, N: int, D: int, V: int, temperature: float, chunk_tokens: int | None
) -> None:
    hidden, weight, target = inputs(N, D, V)
    losses = LOSSES[name](max(N, 1))
    loss, logprobs, entropy = linear_token_loss(
        hidden, weight, target, losses, temperature=temperature, chunk_tokens=chunk_tokens
    )
    right = linear_logprob(hidden, weight, target, temperature=temperature)
    expected = losses(*right, slice(0, N)).sum()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip((logprobs, entropy), right, strict=True):
        torch.testing.assert_close(ours, theirs.detach())
        assert not ours.requires_grad
    got = torch.autograd.grad(3.0 * loss, (hidden, weight))
    if not expected.requires_grad:
        assert not got[0].any() and not got[1].any()
        return
    for ours, theirs in zip(
        got, torch.autograd.grad(3.0 * expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)


def test_the_loss_of_the_trainer() -> None:
    """policy_loss with a global denominator, chunk by chunk, is policy_loss over the batch."""
    B, T = 4, 9
    hidden, weight, target = inputs(B * T, 8, 40, torch.float32)
    torch.manual_seed(2)
    old, advantages = torch.randn(B, T) - 4.0, torch.randn(B)
    mask = (torch.rand(B, T) < 0.8).float()
    settings: dict[str, Any] = {"preset": "dapo", "denominator": mask.sum()}

    def per_token(logprobs: Tensor, entropy: Tensor, rows: slice) -> Tensor:
        ones = [x.flatten()[rows] for x in (old, mask, advantages[:, None].expand(B, T))]
        total = [
            policy_loss(p[None, None], o[None, None], a[None], m[None, None], **settings)[0]
            for p, o, m, a in zip(logprobs, *ones, strict=True)
        ]
        return torch.stack(total)

    loss, _, _ = linear_token_loss(hidden, weight, target, per_token, chunk_tokens=10)
    logprobs_BT = linear_logprob(hidden, weight, target)[0].view(B, T)
    expected, _ = policy_loss(logprobs_BT, old, advantages, mask, **settings)
    torch.testing.assert_close(loss, expected.to(loss.dtype))
    got = torch.autograd.grad(loss, (hidden, weight))
    for ours, theirs in zip(got, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_only_the_gradients_that_are_asked_for() -> None:
    hidden, weight, target = inputs(20, 4, 9)
    losses = clipped(20)
    expected = torch.autograd.grad(linear_token_loss(hidden, weight, target, losses)[0], hidden)
    frozen = weight.detach()
    (got,) = torch.autograd.grad(linear_token_loss(hidden, frozen, target, losses)[0], hidden)
    assert torch.equal(got, expected[0])
    with torch.no_grad():
        loss, _, _ = linear_token_loss(hidden, weight, target, losses)
    assert not loss.requires_grad
    loss, _, _ = linear_token_loss(hidden, weight, target, losses)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward; its gradient is kept once"):
        loss.backward()


def test_bfloat16_within_twice_the_error_of_torch() -> None:
    exact = inputs(200, 32, 300, torch.bfloat16)
    losses = clipped(200)
    wide = [x.detach().double().requires_grad_() for x in exact[:2]]

    def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(loss, leaves))

    def plain(leaves: list[Tensor]) -> list[Tensor]:
        logp = (leaves[0] @ leaves[1].T).log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        chosen = logp.gather(1, exact[2][:, None]).squeeze(1)
        return gradients(losses(chosen, entropy, slice(0, 200)).sum(), leaves)

    truth = plain(wide)
    leaves = [x.detach().requires_grad_() for x in exact[:2]]
    theirs = plain(leaves)
    loss, _, _ = linear_token_loss(leaves[0], leaves[1], exact[2], losses, chunk_tokens=64)
    ours = gradients(loss, leaves)
    for a, b, right in zip(ours, theirs, truth, strict=True):
        error, allowed = ((x.double() - right).abs().max().item() for x in (a, b))
        assert a.dtype == torch.bfloat16 and error <= 2 * allowed


def test_mistakes_get_one_clear_line() -> None:
    hidden, weight, target = inputs(3, 4, 9)
    with pytest.raises(ValueError, match=r"token_loss: \(\) for \(3,\) tokens; give one loss per"):
        linear_token_loss(hidden, weight, target, lambda p, h, rows: p.sum())
    with pytest.raises(ValueError, match="temperature=0: must be positive"):
        linear_token_loss(hidden, weight, target, clipped(3), temperature=0)
    with pytest.raises(ValueError, match="backend='tritn': unknown"):
        linear_token_loss(hidden, weight, target, clipped(3), backend="tritn")
