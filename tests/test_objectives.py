"""Objectives on numbers worked out by hand, and the properties that every preset must have."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from thinkrl.grpo.objectives import (
    PRESETS,
    Mean,
    kl_estimate,
    kl_in_reward,
    loss_denominator,
    merge_metrics,
    policy_loss,
    resolve,
    top_entropy_threshold,
)
from torch import Tensor

# Two completions, of 3 and 2 tokens. Under `old` every token has probability 1/4; the policy's
# ratios to it are 1.5, 1, 0.5 (advantage +1) and 1.5, 0.5 (advantage -1).
RATIOS = torch.tensor([[1.5, 1.0, 0.5], [1.5, 0.5, 1.0]], dtype=torch.float64)
OLD = torch.full((2, 3), 0.25, dtype=torch.float64).log()
MASK = torch.tensor([[1.0, 1, 1], [1, 1, 0]], dtype=torch.float64)
A = torch.tensor([1.0, -1.0], dtype=torch.float64)
LP = OLD + RATIOS.log()


def hand_loss(preset: str = "bnpo", *, advantages: Tensor = A, **settings: Any) -> float:
    return float(policy_loss(LP, OLD, advantages, MASK, preset=preset, **settings)[0])


def hand_grad(preset: str = "bnpo", **settings: Any) -> Tensor:
    lp = LP.clone().requires_grad_()
    policy_loss(lp, OLD, A, MASK, preset=preset, **settings)[0].backward()
    assert lp.grad is not None
    return lp.grad


# PPO's token losses at epsilon 0.2: -min(1.5, 1.2), -1, -0.5 and 1.5, 0.8: sums -2.7 and 2.3.
BY_HAND = {
    "grpo": (-2.7 / 3 + 2.3 / 2) / 2,
    "dr_grpo": (-2.7 + 2.3) / (2 * 3),
    "dapo": (-1.28 - 1 - 0.5 + 2.3) / 5,
    "bnpo": (-2.7 + 2.3) / 5,
    # ratios 0.75^(1/3) = 0.908560 and 0.75^(1/2) = 0.866025; the second is cut at 1 - 3e-4
    "gspo": (-0.9085602964 + 0.9997) / 2,
    "luspo": (-3 * 0.9085602964 + 2 * 0.8660254038) / 2,
    # log-probs ln 0.375 = -0.980829, ln 0.25 = -1.386294, ln 0.125 = -2.079442
    "cispo": (1.5 * 0.9808292530 + 1.3862943611 + 0.5 * 2.0794415417) / 5
    + (-1.5 * 0.9808292530 - 0.5 * 2.0794415417) / 5,
    # log-ratios 0.405465 (cut at 0.4), 0, -0.693147 and 0.405465, -0.693147 (cut at -0.4)
    "gmpo": (-math.exp((0.4 - 0.6931471806) / 3) + math.exp((0.4054651081 - 0.4) / 2)) / 2,
    # sigmoid(x) + sigmoid(-x) = 1: gates 4 + 2 over 3 tokens, 4 / 1.05 over 2
    "sapo": (-6 / 3 + 4 / 1.05 / 2) / 2,
    # w = 0.75: e^(3 - 2.25) 0.75^2 = 1.190813 for A > 0, e^(2 - 1.5) 0.75^3 = 0.695554 for A < 0
    "vespo": (1.1908125094 * 4.4465651557 - 0.6955542861 * 3.0602707947) / 5,
    # ratio of the whole completion 0.75, which A < 0 holds at 0.8
    "rloo": (-0.75 + 0.8) / 2,
    "reinforce_pp": (-2.7 + 2.3) / 5,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_by_hand(preset: str) -> None:
    assert hand_loss(preset) == pytest.approx(BY_HAND[preset], abs=1e-8)


def test_gradients_by_hand() -> None:
    clipped = [[0, -1 / 3, -0.5 / 3], [1.5 / 2, 0, 0]]
    torch.testing.assert_close(hand_grad("grpo"), torch.tensor(clipped).double() / 2)
    # CISPO drops no token: every gradient is the ratio, as a constant, over the token count.
    capped = torch.tensor([[-1.2, -1, -0.5], [1.2, 0.5, 0]]).double() / 5
    torch.testing.assert_close(hand_grad("cispo", epsilon_high=1.2), capped)
    reinforce = torch.tensor([[-1.0, -1, -1], [1, 1, 0]]).double() / 5
    torch.testing.assert_close(hand_grad(clip="reinforce"), reinforce)
    unclipped = torch.tensor([[-1.5, -1, -0.5], [1.5, 0.5, 0]]).double() / 5
    torch.testing.assert_close(hand_grad(clip="none"), unclipped)


def one_token(ratio: float, advantage: float, **settings: Any) -> tuple[float, float]:
    """Loss and gradient of a single token whose policy log-prob is -1."""
    lp = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    old = lp.detach() - math.log(ratio)
    A = torch.tensor([advantage], dtype=torch.float64)
    settings = {"preset": "bnpo", **settings}
    loss, _ = policy_loss(lp, old, A, torch.ones(1, 1), **settings)
    loss.backward()
    assert lp.grad is not None
    return loss.item(), lp.grad.item()


@pytest.mark.parametrize(
    ("settings", "ratio", "advantage", "loss", "grad"),
    [
        ({}, 10, -1, 10, 10),  # PPO leaves this side open
        ({"delta": 4}, 10, -1, 4, 0),
        ({"delta": 4}, 10, 1, -1.2, 0),
        ({"delta": 4}, 3, -1, 3, 3),
        ({"dual_clip": 3}, 10, -1, 3, 0),
        ({"dual_clip": 3}, 2, -1, 2, 2),
        ({"dual_clip": 3}, 10, 1, -1.2, 0),
        ({"epsilon": 0.1, "epsilon_high": 0.5}, 1.4, 2, -2.8, -2.8),
        ({"epsilon": 0.1, "epsilon_high": 0.5}, 1.6, 2, -3, 0),
        ({"epsilon": 0.1, "epsilon_high": 0.5}, 0.8, -2, 1.8, 0),
        ({"preset": "cispo"}, 8, 1, 5, -5),  # the cap of 5 on the weight; -5 * 1 * lp
        ({"preset": "dapo"}, 1.27, 1, -1.27, -1.27),
        ({"preset": "dapo"}, 1.29, 1, -1.28, 0),
        ({"preset": "gspo"}, 1.0003, 1, -1.0003, -1.0003),
        ({"preset": "gspo"}, 1.0005, 1, -1.0004, 0),
    ],
)
def test_clip_rules_on_one_token(
    settings: dict[str, Any], ratio: float, advantage: float, loss: float, grad: float
) -> None:
    assert one_token(ratio, advantage, **settings) == pytest.approx((loss, grad), abs=1e-12)


def test_aggregations_and_given_denominators() -> None:
    sums = -2.7 + 2.3
    assert hand_loss(aggregation="constant", max_completion_length=10) == pytest.approx(sums / 20)
    assert hand_loss(aggregation="sequence_sum") == pytest.approx(sums / 2)
    assert hand_loss(aggregation="token_mean", denominator=50) == pytest.approx(sums / 50)
    assert hand_loss("grpo", denominator=8) == pytest.approx((-2.7 / 3 + 2.3 / 2) / 8)
    lengths = MASK.sum(1)
    for aggregation, count in (
        ("token_mean", 5),
        ("sequence_mean", 2),
        ("sequence_sum", 2),
        ("constant", 14),
    ):
        o = resolve("grpo", aggregation=aggregation, max_completion_length=7)
        assert loss_denominator(MASK, o) == loss_denominator(lengths, o) == count
    with pytest.raises(ValueError, match="max_completion_length=None"):
        loss_denominator(lengths, resolve("dr_grpo"))


def test_kl_estimators_by_hand() -> None:
    lp, ref = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    assert kl_estimate(lp, ref, "k1").item() == pytest.approx(0.6931472)
    assert kl_estimate(lp, ref, "k2").item() == pytest.approx(0.2402265)
    assert kl_estimate(lp, ref, "k3").item() == pytest.approx(0.5 - 1 + 0.6931472)
    with pytest.raises(ValueError, match="kl_estimator='k4'"):
        kl_estimate(lp, ref, "k4")


def test_kl_in_the_loss_by_hand() -> None:
    ref = OLD - math.log(2)  # the reference gives 1/8: policy / ref = 3, 2, 1 and 3, 1
    k3 = [math.log(3) + 1 / 3 - 1, math.log(2) + 1 / 2 - 1, 0.0]
    plain = k3[0] + k3[1] + k3[2] + k3[0] + k3[2]
    assert hand_loss(beta=0.1, ref_logprobs_BT=ref) == pytest.approx((-0.4 + 0.1 * plain) / 5)
    with_ratio = 1.5 * k3[0] + k3[1] + 1.5 * k3[0]
    loss = hand_loss(beta=0.1, ref_logprobs_BT=ref, kl_ratio_factor=True)
    assert loss == pytest.approx((-0.4 + 0.1 * with_ratio) / 5)
    in_reward = hand_loss(beta=0.1, ref_logprobs_BT=ref, kl_place="reward")
    assert in_reward == pytest.approx(-0.4 / 5)


def test_expected_gradient_of_the_kl_estimators() -> None:
    """Over all tokens of a small vocabulary, weighted by the probability of sampling each."""
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    ref, other = torch.randn(2, 5, dtype=torch.float64).log_softmax(1)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    def expected(estimator: str, *, old: Tensor | None = None) -> Tensor:
        """Each token is a sequence of its own; the mask carries the probabilities."""
        sampled_with = (logp if old is None else old).detach().exp()
        loss, _ = policy_loss(
            logp[:, None],
            None if old is None else old[:, None],
            torch.zeros(5),
            sampled_with[:, None],
            preset="bnpo",
            ref_logprobs_BT=ref[:, None],
            beta=1.0,
            kl_estimator=estimator,
            kl_ratio_factor=old is not None,
            denominator=1.0,
        )
        return gradient(loss)

    forward = gradient((logp.exp() * (logp - ref)).sum())
    reverse = gradient((ref.exp() * (ref - logp)).sum())
    torch.testing.assert_close(expected("k1"), torch.zeros_like(logits))
    torch.testing.assert_close(expected("k2"), forward)
    torch.testing.assert_close(expected("k3"), reverse)
    # With the ratio factor, k1 and k3 are unbiased wherever the samples come from.
    torch.testing.assert_close(expected("k1", old=other), forward)
    torch.testing.assert_close(expected("k3", old=other), forward)


def test_kl_in_the_reward_by_hand() -> None:
    ref = OLD - RATIOS.log()  # log-ratios to the reference: ln 1.5, 0, ln 0.5 and ln 1.5, ln 0.5
    rewards = torch.tensor([1.0, math.nan], dtype=torch.float64)
    up, down = math.log(1.5), math.log(0.5)
    o = resolve("rloo", beta=0.1)
    got = kl_in_reward(rewards, OLD, ref, MASK, objective=o)
    assert got[0].item() == pytest.approx(1 - 0.1 * (up + down))
    assert got[1].isnan()
    o = resolve("reinforce_pp", beta=0.1)
    got = kl_in_reward(torch.tensor([1.0, 2.0]), OLD, ref, MASK, objective=o)
    to_go = [[up + down, down, down], [up + down, down, 0]]
    expected = (torch.tensor([[1.0], [2.0]]) - 0.1 * torch.tensor(to_go)) * MASK
    torch.testing.assert_close(got, expected.double(), atol=1e-7, rtol=0)
    o = resolve("rloo", beta=2.0, kl_estimator="k2")
    got = kl_in_reward(torch.zeros(2), OLD, ref, MASK, objective=o)
    assert got[1].item() == pytest.approx(-(up**2 + down**2), rel=1e-6)


@pytest.mark.parametrize(
    ("correction", "limits", "weights"),
    [
        # old / sampled = 4, 1, unknown and 0.25, 0.5: per sequence 4 and 0.125
        ("token_truncate", {}, [[3, 1, 1], [0.25, 0.5]]),
        ("token_mask", {}, [[0, 1, 1], [0.25, 0.5]]),
        ("token_mask", {"importance_min": 0.3, "importance_max": 5}, [[4, 1, 1], [0, 0.5]]),
        ("token_truncate", {"importance_min": 0.3}, [[3, 1, 1], [0.3, 0.5]]),
        ("token_truncate", {"importance_max": None}, [[4, 1, 1], [0.25, 0.5]]),
        ("sequence_truncate", {}, [[3, 3, 3], [0.125, 0.125]]),
        ("sequence_mask", {}, [[0, 0, 0], [0.125, 0.125]]),
        ("sequence_mask", {"importance_min": 0.2, "importance_max": 4.5}, [[4, 4, 4], [0, 0]]),
    ],
)
def test_sampler_corrections_by_hand(
    correction: str, limits: dict[str, Any], weights: list[list[float]]
) -> None:
    ratio = torch.tensor([[4.0, 1.0, math.nan], [0.25, 0.5, math.inf]], dtype=torch.float64)
    loss = hand_loss(
        sampling_logprobs_BT=OLD - ratio.log(), importance_correction=correction, **limits
    )
    terms = [-1.2, -1.0, -0.5], [1.5, 0.8]
    flat = zip((t for row in terms for t in row), (w for row in weights for w in row), strict=True)
    assert loss == pytest.approx(sum(t * w for t, w in flat) / 5)


def test_off_policy_sequences_are_dropped_by_hand() -> None:
    # mean(sampled - lp): -mean ln(1.5, 1, 0.5) = 0.0959, -mean ln(1.5, 0.5) = 0.1438
    assert hand_loss(off_policy_mask_threshold=0.14) == pytest.approx(-2.7 / 5)
    assert hand_loss(off_policy_mask_threshold=0.15) == pytest.approx(-0.4 / 5)
    closer = OLD - 0.1  # the sampler's log-probs, where they are known, decide instead of old
    loss = hand_loss(off_policy_mask_threshold=0.14, sampling_logprobs_BT=closer)
    assert loss == pytest.approx(-0.4 / 5)
    _, metrics = policy_loss(LP, OLD, A, MASK, off_policy_mask_threshold=0.14)
    assert float(metrics["off_policy_mask/dropped"]) == 0.5


def test_top_entropy_tokens_and_entropy_bonus_by_hand() -> None:
    entropy = torch.tensor([[5.0, 1, 4], [2, 3, math.nan]], dtype=torch.float64)
    assert top_entropy_threshold(entropy[MASK > 0], 0.4).item() == pytest.approx(3.4)
    kept: Any = {
        "entropy_BT": entropy,
        "top_entropy_quantile": 0.4,
    }  # the tokens of entropy 5 and 4
    assert hand_loss(**kept) == pytest.approx((-1.2 - 0.5) / 5)
    assert hand_loss(**kept, entropy_threshold=2.5) == pytest.approx((-1.2 - 0.5 + 0.8) / 5)
    assert hand_loss(**kept, entropy_coef=0.1) == pytest.approx((-1.2 - 0.5) / 5 - 0.1 * 4.5)
    for preset in ("grpo", "dr_grpo", "bnpo"):  # a mean over tokens, however the losses add up
        loss = hand_loss(preset, entropy_BT=entropy, entropy_coef=0.1)
        assert loss == pytest.approx(BY_HAND[preset] - 0.1 * 3)
    # GMPO leaves the tokens out of the geometric mean: (0.4 + ln 0.5) / 2 and nothing, ratio 1.
    loss = hand_loss("gmpo", **kept)
    assert loss == pytest.approx((-math.exp((0.4 + math.log(0.5)) / 2) + 1) / 2)


def test_metrics_by_hand() -> None:
    _, m = policy_loss(
        LP,
        OLD,
        A,
        MASK,
        preset="dapo",
        ref_logprobs_BT=OLD,
        sampling_logprobs_BT=torch.tensor([[0.25, 0.125, math.nan], [0.5, 0.25, 0.1]]).log(),
        entropy_BT=torch.tensor([[1.0, 2, 3], [4, 5, 99]]),
        kl_estimator="k1",
        importance_correction="token_truncate",
        importance_max=1.5,
    )
    got = {name: float(value) for name, value in m.items()}
    assert got == pytest.approx(
        {
            "entropy": 3.0,
            "kl": (2 * math.log(1.5) + 2 * math.log(0.5)) / 5,
            "clip_ratio/low_mean": 1 / 5,
            "clip_ratio/high_mean": 1 / 5,
            "clip_ratio/region_mean": 2 / 5,
            # policy / sampler = 1.5, 2, unknown, 0.75, 0.5: mean of r - 1 - ln r
            "sampling/kl": (0.5 + 1 - 0.25 - 0.5 - math.log(1.5 * 2 * 0.75 * 0.5)) / 4,
            "sampling/sampling_logp_difference/mean": 2 * math.log(2) / 4,
            "sampling/sampling_logp_difference/max": math.log(2),
            "sampling/importance_sampling_ratio/mean": (1 + 1.5 + 1 + 0.5 + 1) / 5,
            "sampling/importance_sampling_ratio/min": 0.5,
            "sampling/importance_sampling_ratio/max": 1.5,
        },
        rel=1e-6,
    )
    _, gspo = policy_loss(LP, OLD, A, MASK, preset="gspo")  # per sequence: the second is clipped
    assert float(gspo["clip_ratio/low_mean"]) == 0.5
    _, cispo = policy_loss(LP, OLD, A, MASK, preset="cispo", epsilon_high=1.2)
    assert float(cispo["cispo_clip_ratio"]) == 1 / 5


def random_batch(seed: int, *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    B, T = 7, 11
    old = -3 * torch.rand(B, T, dtype=dtype)
    lengths = torch.randint(0, T + 1, (B,))
    lengths[:2] = torch.tensor([0, T])
    return {
        "lp": old + 0.3 * torch.randn_like(old),
        "old": old,
        "advantages": torch.randn(B, dtype=dtype),
        "mask": (torch.arange(T) < lengths[:, None]).to(dtype),
        "ref": old + 0.3 * torch.randn_like(old),
        "sampled": old + 0.1 * torch.randn_like(old),
        "entropy": 2 * torch.rand_like(old),
    }


EVERYTHING: dict[str, Any] = {
    "beta": 0.1,
    "kl_ratio_factor": True,
    "entropy_coef": 0.02,
    "top_entropy_quantile": 0.7,
    "importance_correction": "token_truncate",
    "off_policy_mask_threshold": 0.05,
}


def run(preset: str, x: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor, Any]:
    """Loss, gradient in the log-probs, metrics."""
    lp = x["lp"].clone().requires_grad_()
    loss, metrics = policy_loss(
        lp,
        x["old"],
        x["advantages"],
        x["mask"],
        preset=preset,
        ref_logprobs_BT=x["ref"],
        sampling_logprobs_BT=x["sampled"],
        entropy_BT=x["entropy"],
        **settings,
    )
    (grad,) = torch.autograd.grad(loss, lp)
    return loss.detach(), grad, metrics


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_the_sum_of_its_parts(preset: str, dtype: torch.dtype) -> None:
    """Loss, gradient and metrics, for any split, with each part padded to its own width."""
    tolerance: Any = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {}
    for seed in range(5):
        x = random_batch(seed, dtype=dtype)
        o = resolve(preset, **EVERYTHING, max_completion_length=16)
        settings = {
            **EVERYTHING,
            "max_completion_length": 16,
            "denominator": loss_denominator(x["mask"], o),
            "num_tokens": float(x["mask"].sum()),
            "entropy_threshold": top_entropy_threshold(x["entropy"][x["mask"] > 0], 0.7),
        }
        loss, grad, metrics = run(preset, x, **settings)
        order = torch.randperm(7)
        parts = []
        total = torch.zeros((), dtype=torch.float64)
        for rows in order.split([1, 3, 2, 1]):
            width = max(1, int(x["mask"][rows].sum(1).max()))
            part = {k: v[rows] if v.dim() == 1 else v[rows, :width] for k, v in x.items()}
            part_loss, part_grad, part_metrics = run(preset, part, **settings)
            total += part_loss
            parts.append(part_metrics)
            torch.testing.assert_close(part_grad, grad[rows, :width], **tolerance)
        torch.testing.assert_close(total, loss, **tolerance)
        merged = merge_metrics(parts)
        assert merged.keys() == metrics.keys()
        for name, value in metrics.items():
            assert float(merged[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_nothing_leaks_from_under_the_mask(preset: str, junk: float) -> None:
    x = random_batch(3, dtype=torch.float32)
    out = x["mask"] == 0
    dirty = {
        name: value.masked_fill(out, junk) if value.dim() == 2 and name != "mask" else value
        for name, value in x.items()
    }
    dirty["advantages"] = x["advantages"].masked_fill(out.all(1), junk)
    assert out.all(1).any()
    clean_loss, clean_grad, clean_metrics = run(preset, x, **EVERYTHING)
    loss, grad, metrics = run(preset, dirty, **EVERYTHING)
    assert loss.isfinite() and torch.equal(loss, clean_loss)
    assert torch.equal(grad, clean_grad) and not grad[out].any()
    assert {n: float(v) for n, v in metrics.items()} == {
        n: float(v) for n, v in clean_metrics.items()
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_ratio_is_exactly_one_on_policy(preset: str) -> None:
    """Given as its own old log-probs or not at all: the same loss to the last bit, no clipping."""
    x = random_batch(1, dtype=torch.float32)
    one = policy_loss(x["lp"], x["lp"].clone(), x["advantages"], x["mask"], preset=preset)
    two = policy_loss(x["lp"], None, x["advantages"], x["mask"], preset=preset)
    assert torch.equal(one[0], two[0])
    for name, value in one[1].items():
        assert float(value) == 0.0, name
    if PRESETS[preset].clip in ("ppo", "gmpo"):  # min(r A, ...) = A exactly, so 64 A's sum to 64
        ones = torch.ones(8, 8)
        lp = -torch.rand(8, 8)
        loss, _ = policy_loss(lp, lp, torch.ones(8), ones, preset=preset)
        assert loss.item() == (-8.0 if preset == "luspo" else -1.0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shift", [-300.0, -100.0, 100.0, 300.0])
def test_extreme_ratios_stay_finite(preset: str, shift: float) -> None:
    lp = torch.full((2, 4), -400.0, requires_grad=True)
    old = lp.detach() - shift
    for advantages in (torch.tensor([1.0, -1.0]), torch.zeros(2)):
        loss, _ = policy_loss(
            lp, old, advantages, torch.ones(2, 4), preset=preset, ref_logprobs_BT=old, beta=0.1
        )
        (grad,) = torch.autograd.grad(loss, lp)
        assert loss.isfinite() and grad.isfinite().all()


def test_advantages_per_token_and_lower_precision() -> None:
    per_token = torch.tensor([[1.0, 1, 1], [-1, -1, math.nan]], dtype=torch.float64)
    for preset in PRESETS:
        assert hand_loss(preset, advantages=per_token) == pytest.approx(hand_loss(preset))
    varied = torch.tensor([[2.0, 0, -1], [-1, 3, 0]], dtype=torch.float64)
    assert hand_loss(advantages=varied) == pytest.approx((-2.4 + 0.8 + 1.5 - 1.5) / 5)
    low, rounded = LP.bfloat16(), OLD.bfloat16()
    loss, _ = policy_loss(low, rounded, A, MASK)
    assert torch.equal(loss, policy_loss(low.float(), rounded.float(), A, MASK)[0])


def test_all_masked_out_is_zero() -> None:
    lp = LP.clone().requires_grad_()
    x: Any = {"ref_logprobs_BT": OLD, "sampling_logprobs_BT": OLD, "entropy_BT": OLD}
    loss, metrics = policy_loss(lp, OLD, A, torch.zeros(2, 3), preset="dapo", **EVERYTHING, **x)
    (grad,) = torch.autograd.grad(loss, lp)
    assert loss.item() == 0 and not grad.any()
    assert math.isnan(float(metrics["kl"]))  # the mean of nothing


def test_merge_metrics() -> None:
    def mean(total: float, weight: float) -> Mean:
        return Mean(torch.tensor(total), torch.tensor(weight))

    parts = [
        {"kl": mean(3.0, 2.0), "ratio/min": torch.tensor(0.5), "ratio/max": torch.tensor(0.5)},
        {"kl": mean(1.0, 6.0), "ratio/min": torch.tensor(0.2), "ratio/max": torch.tensor(0.2)},
        {"entropy": mean(4.0, 2.0)},
    ]
    merged = {name: float(value) for name, value in merge_metrics(parts).items()}
    assert merged == pytest.approx({"kl": 0.5, "entropy": 2.0, "ratio/min": 0.2, "ratio/max": 0.5})
    assert merge_metrics([]) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "dappo"}, "preset='dappo': unknown; did you mean 'dapo'?"),
        ({"epsilom": 0.1}, "epsilom: not a setting of an objective; did you mean 'epsilon'?"),
        ({"epsilon": "wide"}, "epsilon='wide': must be a number"),
        ({"epsilon": True}, "epsilon=True: must be a number"),
        ({"epsilon": math.nan}, "epsilon=nan: must be a number"),
        ({"epsilon": -0.1}, "epsilon=-0.1: must be 0 or more"),
        ({"delta": [2]}, "delta=[2]: must be a number or null"),
        ({"delta": 0.5}, "delta=0.5: must be above 1, or null for off"),
        ({"dual_clip": 3, "clip": "sapo"}, "dual_clip=3.0: belongs to clip 'ppo'; "),
        ({"clip": "ppo2"}, "clip='ppo2': must be one of ppo, cispo"),
        ({"kl_ratio_factor": "yes"}, "kl_ratio_factor='yes': must be true or false"),
        ({"max_completion_length": 1.5}, "max_completion_length=1.5: must be a whole number"),
        ({"top_entropy_quantile": 1.2}, "top_entropy_quantile=1.2: must be a share"),
        ({"top_entropy_quantile": 0}, "top_entropy_quantile=0.0: must be above 0"),
        ({"importance_min": 4}, "importance_max=3.0: must be above importance_min=4.0"),
        ({"baseline": "batch"}, "scale_rewards='group': must be 'batch' or 'none'"),
        ({"kl_level": "token"}, "kl_level='token': needs baseline 'batch'"),
        ({"beta": 0.1}, "ref_logprobs_BT=None: beta=0.1 needs it"),
        ({"importance_correction": "token_mask"}, "sampling_logprobs_BT=None: importance_corr"),
        ({"entropy_coef": 0.1}, "entropy_BT=None: entropy_coef or top_entropy_quantile needs it"),
        ({"top_entropy_quantile": 0.2}, "entropy_BT=None: entropy_coef or top_entropy_quantile"),
        (
            {"entropy_coef": 0.1, "entropy_BT": OLD, "denominator": 4.0},
            "num_tokens=None: entropy_coef needs the global count beside denominator",
        ),
        ({"ref_logprobs_BT": OLD[:1]}, "ref_logprobs_BT of shape (1, 3) beside a mask of (2, 3)"),
    ],
)
def test_a_mistake_gets_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        policy_loss(LP, OLD, A, MASK, **settings)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_shapes_that_do_not_agree() -> None:
    with pytest.raises(ValueError, match=r"advantages of shape \(3,\): need \[B\] or \[B, T\]"):
        policy_loss(LP, OLD, torch.zeros(3), MASK)
    with pytest.raises(ValueError, match=r"logprobs_BT of shape \(6,\)"):
        policy_loss(LP.flatten(), OLD.flatten(), A, MASK.flatten())


def test_numbers_may_come_as_text() -> None:
    o = resolve("gspo", epsilon="3e-4", max_completion_length="64", epsilon_high=1)
    assert (o.epsilon, o.max_completion_length, o.epsilon_high) == (3e-4, 64, 1.0)
