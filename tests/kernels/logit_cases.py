"""The kernels of the log-prob head against the written-out reference in float64.

Run as `flash_cases.py` is. Vocabularies that no block divides, all-negative logits, a target in the
first and in the last column, and more rows than one axis of a grid could hold.
"""

from __future__ import annotations

import math

import pytest
import torch
from thinkrl.kernels import logits_triton
from thinkrl.kernels.linear_logprob import linear_logprob, linear_token_loss
from thinkrl.kernels.reference import linear_logprob_reference
from torch import Tensor


def inputs(N: int, D: int, V: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(N, D).to(dtype).to(device).requires_grad_()
    weight = torch.randn(V, D).to(dtype).to(device).requires_grad_()
    target = torch.randint(V, (N,), device=device)
    target[0], target[-1] = 0, V - 1
    return hidden, weight, target


def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    ups = [torch.randn(len(x)).to(x) for x in outputs]
    total = sum((x * up).sum() for x, up in zip(outputs, ups, strict=True))
    assert isinstance(total, Tensor)
    return [*(x.detach() for x in outputs), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("V", "temperature"), [(260, 1.0), (1000, 0.7), (32003, 1.6), (4096, 1.0), (7, 1.0)]
)
def test_equals_the_reference(V: int, temperature: float, dtype: torch.dtype, device: str) -> None:
    hidden, weight, target = inputs(5, 16, V, dtype, device)
    got = gradients(
        linear_logprob(hidden, weight, target, temperature=temperature, backend="triton"),
        [hidden, weight],
    )

    def exact(dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight)]
        outputs = linear_logprob_reference(leaves[0], leaves[1], target, temperature=temperature)
        return gradients(outputs, leaves)

    for ours, right, low in zip(got, exact(torch.float64), exact(dtype), strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(ours.double(), right, atol=2e-5, rtol=2e-5)
        else:
            error, allowed = ((x.double() - right).abs().max().item() for x in (ours, low))
            assert error <= 2 * allowed + 1e-6


@pytest.mark.slow
def test_a_large_vocabulary(device: str) -> None:
    test_equals_the_reference(129920, 1.0, torch.float32, device)


@pytest.mark.parametrize("shift", [-300.0, 0.0, 300.0])
def test_statistics_do_not_depend_on_a_shift(shift: float, device: str) -> None:
    """All-negative and all-positive logits, nearly certain rows, and NaN that is never read."""
    torch.manual_seed(0)
    V = 9001
    padded = torch.full((6, V + 12), math.nan, device=device)
    z = padded[:, :V]
    z.copy_(3.0 * torch.randn(6, V) + shift)
    z[2, 7] += 60.0
    target = torch.tensor([0, V - 1, 7, 4095, 4096, 5], device=device)
    logprob, entropy, lse = logits_triton.fold(z, target, temperature=2.0)
    logp = (z.double() / 2.0).log_softmax(-1)
    right = logp.gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(logprob.double(), right, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), -(logp.exp() * logp).sum(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(lse.double(), (z.double() / 2.0).logsumexp(-1))
    assert (entropy >= 0).all() and (logprob <= 1e-4).all()


def test_token_loss_equals_autograd(device: str) -> None:
    hidden, weight, target = inputs(33, 16, 1003, torch.float32, device)

    def losses(logprobs: Tensor, entropy: Tensor, rows: slice) -> Tensor:
        return -logprobs.exp() - 0.1 * entropy

    loss, _, _ = linear_token_loss(
        hidden, weight, target, losses, chunk_tokens=10, temperature=0.8, backend="triton"
    )
    right = linear_logprob(hidden, weight, target, temperature=0.8, backend="torch")
    expected = losses(*right, slice(0, 33)).sum()
    torch.testing.assert_close(loss, expected)
    for a, b in zip(
        torch.autograd.grad(loss, [hidden, weight]),
        torch.autograd.grad(expected, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
def test_more_rows_than_a_grid_axis(device: str) -> None:
    N = 70_000
    hidden, weight, target = inputs(N, 16, 5, torch.float32, device)
    ours = linear_logprob(hidden, weight, target, chunk_tokens=N, backend="triton")
    theirs = linear_logprob(hidden, weight, target, backend="torch")
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_float64_is_refused_by_name(device: str) -> None:
    hidden, weight, target = inputs(3, 4, 7, torch.float64, device)
    with pytest.raises(ValueError, match="hidden in float64: backend 'triton' takes float32"):
        linear_logprob(hidden, weight, target, backend="triton")
