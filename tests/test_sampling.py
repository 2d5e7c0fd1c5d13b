"""Noise, draws and their log-probs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thinkrl.grpo.rollout.sampling import draw, row_key, uniforms
from thinkrl.kernels.linear_logprob import filtered_logprob

SETTINGS = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
]


def noise(n: int, *, seed: int = 0) -> torch.Tensor:
    return uniforms(torch.tensor(row_key(seed, 0, 0)), torch.arange(n))


def test_uniforms_are_the_published_splitmix64_sequence() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    got = uniforms(torch.tensor(0), torch.arange(4)) * 2.0**48
    assert [int(x) for x in got] == [x >> 16 for x in published]


def test_uniforms_are_uniform_and_rows_and_positions_independent() -> None:
    keys_R = torch.tensor([row_key(1, p, g) for p in range(64) for g in range(16)])
    u_RT = uniforms(keys_R[:, None], torch.arange(64))
    assert float(u_RT.min()) >= 0.0 and float(u_RT.max()) < 1.0
    assert u_RT.unique().numel() == u_RT.numel()
    counts = torch.histc(u_RT.float(), 64, 0, 1)
    expected = u_RT.numel() / 64
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi2 - 63) < 5 * math.sqrt(2 * 63)
    centred = u_RT - 0.5
    for a, b in [
        (centred[:, 1:], centred[:, :-1]),  # position
        (centred[1:], centred[:-1]),  # completion
        (centred[16:], centred[:-16]),  # prompt
    ]:
        correlation = float((a * b).mean()) * 12
        assert abs(correlation) < 5 / math.sqrt(a.numel())


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**20))
def test_a_row_key_changes_with_each_of_its_parts(seed: int, prompt: int, completion: int) -> None:
    key = row_key(seed, prompt, completion)
    assert -(2**63) <= key < 2**63
    others = {
        row_key(seed + 1, prompt, completion),
        row_key(seed, prompt + 1, completion),
        row_key(seed, prompt, completion + 1),
        row_key(prompt, seed, completion) if seed != prompt else None,
    }
    assert key not in others


@pytest.mark.parametrize("settings_", SETTINGS, ids=str)
def test_frequencies_are_those_of_the_filtered_distribution(settings_: dict) -> None:
    n, V = 40_000, 20
    logits_V = 2 * torch.randn(V, generator=torch.Generator().manual_seed(1))
    tokens_N, logprobs_N = draw(logits_V.expand(n, V), noise(n), **settings_)
    every = torch.arange(V)
    reference = {
        int(t): float(filtered_logprob(logits_V[None], t[None], **settings_)[0]) for t in every
    }
    counts_V = torch.bincount(tokens_N, minlength=V)
    support = counts_V > 0
    probabilities_V = torch.tensor([math.exp(reference[int(t)]) for t in every])
    assert torch.isclose(probabilities_V[support].sum(), torch.tensor(1.0), atol=1e-5)
    expected_V = n * probabilities_V[support]
    chi2 = float(((counts_V[support] - expected_V) ** 2 / expected_V).sum())
    freedom = int(support.sum()) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)
    assert logprobs_N.tolist() == [reference[t] for t in tokens_N.tolist()]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**31),
    st.integers(1, 200),
    st.sampled_from(SETTINGS),
    st.sampled_from([0.1, 3.0, 30.0]),
)
def test_log_probs_are_exactly_those_that_training_computes(
    seed: int, V: int, settings_: dict, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BV = spread * torch.randn(16, V, generator=generator)
    token_B, logprob_B = draw(logits_BV, noise(16, seed=seed), **settings_)
    expected_B, _ = filtered_logprob(logits_BV, token_B, **settings_)
    assert torch.equal(logprob_B, expected_B)
    assert torch.isfinite(logprob_B).all()


def test_extreme_noise_never_draws_a_token_of_probability_zero() -> None:
    edges = torch.tensor([0.0, 2.0**-48, 0.5, 1 - 2.0**-48], dtype=torch.float64)
    inf = float("inf")
    cases = [[-inf, 0.0, -inf], [-inf, 1.0, 0.5, -inf], [0.0, -inf, -inf], [-200.0, 0.0, -200.0]]
    for case in cases:
        logits_BV = torch.tensor(case).expand(4, len(case))
        token_B, logprob_B = draw(logits_BV, edges)
        assert torch.isfinite(logprob_B).all() and (logprob_B > -100).all(), case
        assert set(token_B.tolist()) <= {i for i, z in enumerate(case) if z > -100}
    tokens_B, _ = draw(torch.zeros(4, 8), edges)
    assert tokens_B.tolist() == [0, 0, 4, 7]


def test_the_cumulative_distribution_is_inverted_like_a_float64_brute_force() -> None:
    generator = torch.Generator().manual_seed(3)
    logits_BV = 3 * torch.randn(2000, 50, generator=generator)
    uniform_B = noise(2000)
    token_B, _ = draw(logits_BV, uniform_B)
    cumulative_BV = logits_BV.double().softmax(-1).cumsum(-1)
    brute_B = (cumulative_BV <= uniform_B[:, None]).sum(-1)
    assert (token_B != brute_B).sum() <= 1  # float32 probabilities: a tie within 1e-7


def test_a_draw_does_not_depend_on_the_rows_beside_it() -> None:
    generator = torch.Generator().manual_seed(4)
    logits_BV, uniform_B = torch.randn(32, 100, generator=generator), noise(32)
    order = torch.randperm(32, generator=generator)
    token_B, logprob_B = draw(logits_BV, uniform_B, top_p=0.8)
    shuffled, shuffled_logprob = draw(logits_BV[order], uniform_B[order], top_p=0.8)
    assert torch.equal(shuffled, token_B[order])
    assert torch.equal(shuffled_logprob, logprob_B[order])


def test_greedy_takes_the_best_token_and_reports_the_model_probability() -> None:
    logits_BV = torch.tensor([[0.0, 2.0, 1.0], [5.0, -1.0, 5.0]])
    token_B, logprob_B = draw(logits_BV, torch.tensor([0.99, 0.99]).double(), temperature=0.0)
    assert token_B.tolist() == [1, 0]
    assert torch.equal(logprob_B, logits_BV.log_softmax(-1)[[0, 1], [1, 0]])


def test_nan_logits_show_in_the_log_prob_and_the_token_stays_in_range() -> None:
    logits_BV = torch.full((2, 7), float("nan"))
    token_B, logprob_B = draw(logits_BV, noise(2))
    assert ((token_B >= 0) & (token_B < 7)).all()
    assert logprob_B.isnan().all()
