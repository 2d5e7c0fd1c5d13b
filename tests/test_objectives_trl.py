"""Every preset that TRL 1.16 has, against TRL's own code: loss, gradient and metrics in float64."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from thinkrl.grpo.advantages import (
    Scale,
    drop_truncated,
    gdpo_advantages,
    group_advantages,
    soft_overlong_penalty,
)
from thinkrl.grpo.objectives import Objective, policy_loss, resolve
from torch import Tensor

pytest.importorskip("trl")
from .trl_oracle import get_soft_overlong_punishment, tiny_trainer, trl_loss

TOLERANCE = 1e-12
CASES = 60  # random cases a preset

LOSS_TYPES = {
    "grpo": "grpo",
    "dr_grpo": "dr_grpo",
    "dapo": "dapo",
    "bnpo": "bnpo",
    "gspo": "grpo",
    "luspo": "luspo",
    "cispo": "cispo",
    "gmpo": "gmpo",
    "sapo": "sapo",
    "vespo": "vespo",
    "rloo": "rloo",
}
CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def a_batch(rng: random.Random, *, rows: int = 6, width: int = 9) -> dict[str, Tensor]:
    """Random log-probs, their ratios inside, around and far outside the clip ranges."""
    torch.manual_seed(rng.randrange(2**31))
    spread = rng.choice([0.0005, 0.05, 0.4, 1.5])
    lengths = torch.randint(1, width + 1, (rows,))
    lengths[0] = width
    old = -3 * torch.rand(rows, width, dtype=torch.float64)
    advantages = torch.randn(rows, dtype=torch.float64)
    advantages[1] = 0.0
    sampled = old + spread * torch.randn_like(old)
    sampled[3, 0] = math.nan  # a token that the sampler could not score
    return {
        "lp": old + spread * torch.randn_like(old),
        "old": old,
        "ref": old + 0.3 * torch.randn_like(old),
        "sampled": sampled,
        "advantages": advantages,
        "mask": (torch.arange(width) < lengths[:, None]).double(),
        # Exact in float32, in which TRL takes the quantile of entropies.
        "entropy": (2 * torch.rand(rows, width)).double(),
    }


def some_settings(rng: random.Random, preset: str) -> dict[str, Any]:
    """A random combination of the settings that TRL has for this loss."""
    choices: dict[str, list[Any]] = {}
    if preset != "rloo":
        choices |= {"beta": [0.0, 0.05], "top_entropy_quantile": [1.0, 0.5, 0.2]}
    if preset in ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "luspo"):
        choices |= {"delta": [None, 1.5], "epsilon_high": [None, 0.28]}
    if preset not in ("rloo", "gmpo"):
        choices |= {
            "kl_ratio_factor": [False, True],
            "importance_sampling_level": ["token", "sequence"],
            "importance_correction": ["none", "none", *CORRECTIONS],
            "importance_min": [None, 0.5],
            "importance_max": [None, 1.5, 3.0],
            "off_policy_mask_threshold": [None, 0.02],
            "entropy_coef": [0.0, 0.01],
        }
    if preset == "dr_grpo":
        choices["max_completion_length"] = [None, 20]
    if preset == "sapo":
        choices |= {"sapo_temperature_pos": [1.0, 1.3], "sapo_temperature_neg": [1.05, 2.0]}
    if preset == "vespo":
        choices |= {"vespo_k_pos": [2.0, 1.0], "vespo_lambda_neg": [2.0, 0.5]}
    settings = {name: rng.choice(values) for name, values in choices.items()}
    if preset == "gspo" and rng.random() < 0.5:
        settings |= {"epsilon": 0.1, "epsilon_high": 0.2}
    return {name: value for name, value in settings.items() if rng.random() < 0.7}


def sampler_weight(o: Objective, x: dict[str, Tensor]) -> Tensor | None:
    """The importance ratio as TRL's docs define its four modes."""
    if o.importance_correction == "none":
        return None
    gap = ((x["old"] - x["sampled"]) * x["mask"]).nan_to_num(0.0)
    if o.importance_correction.startswith("sequence"):
        gap = gap.sum(1, keepdim=True)
    ratio = gap.exp()
    if o.importance_correction.endswith("truncate"):
        return ratio.clamp(o.importance_min, o.importance_max) if _bounded(o) else ratio
    low = -math.inf if o.importance_min is None else o.importance_min
    high = math.inf if o.importance_max is None else o.importance_max
    return torch.where((low <= ratio) & (ratio <= high), ratio, 0.0)


def _bounded(o: Objective) -> bool:
    return (o.importance_min, o.importance_max) != (None, None)


def theirs(o: Objective, loss_type: str, x: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """TRL's loss under the same settings."""
    settings = {
        "epsilon": o.epsilon,
        "epsilon_high": o.high,
        "importance_sampling_level": o.importance_sampling_level,
        "use_bias_correction_kl": o.kl_ratio_factor,
        "max_completion_length": o.max_completion_length or x["mask"].shape[1],
    }
    same = ("delta", "beta", "top_entropy_quantile", "entropy_coef", "off_policy_mask_threshold")
    also = [f"sapo_temperature_{s}" for s in ("pos", "neg")]
    also += [f"vespo_{name}_{s}" for name in ("k", "lambda") for s in ("pos", "neg")]
    settings |= {name: getattr(o, name) for name in (*same, *also)}
    return trl_loss(
        *(x[name] for name in ("lp", "old", "advantages", "mask")),
        loss_type=loss_type,
        ref=x["ref"],
        sampled=x["sampled"],
        weight=sampler_weight(o, x),
        entropy=x["entropy"],
        **settings,
    )


def assert_equal(ours: Tensor, trl: Tensor, what: str) -> None:
    error = ((ours - trl).abs() / trl.abs().clamp(min=1.0)).max().item()
    assert error <= TOLERANCE, f"{what}: {error:.1e}"


def compare(preset: str, x: dict[str, Tensor], **settings: Any) -> dict[str, float]:
    """Assert that loss, gradients and shared metrics agree; the metrics that were compared."""
    o = resolve(preset, **settings)
    leaves = ("lp", "entropy")
    one, two = ({**x, **{n: x[n].clone().requires_grad_() for n in leaves}} for _ in range(2))
    loss, metrics = policy_loss(
        *(one[name] for name in ("lp", "old", "advantages", "mask")),
        preset=o,
        ref_logprobs_BT=one["ref"],
        sampling_logprobs_BT=one["sampled"],
        entropy_BT=one["entropy"],
    )
    trl, trl_metrics = theirs(o, LOSS_TYPES[preset], two)
    what = f"{preset} {settings}"
    assert_equal(loss, trl, what)
    for name in leaves:
        inputs = one[name], two[name]
        a, b = (
            torch.autograd.grad(y, leaf, retain_graph=True, materialize_grads=True)[0]
            for y, leaf in zip((loss, trl), inputs, strict=True)
        )
        assert_equal(a, b, f"{what} d/d{name}")
    shared = metrics.keys() & trl_metrics.keys()
    for name in shared:
        assert float(metrics[name]) == pytest.approx(trl_metrics[name], rel=1e-6, abs=1e-9), name
    return {name: trl_metrics[name] for name in shared}


@pytest.mark.parametrize("preset", LOSS_TYPES)
def test_loss_gradient_and_metrics_equal_trl(preset: str) -> None:
    rng = random.Random(preset)
    compared: dict[str, list[float]] = {}
    for _ in range(CASES):
        metrics = compare(preset, a_batch(rng), **some_settings(rng, preset))
        for name, value in metrics.items():
            compared.setdefault(name, []).append(value)
    expected = {"entropy", "kl"} - ({"kl"} if preset == "rloo" else set())
    if preset == "cispo":
        expected.add("cispo_clip_ratio")
    elif preset not in ("sapo", "vespo"):
        expected |= {f"clip_ratio/{which}_mean" for which in ("low", "high", "region")}
    assert compared.keys() == expected
    assert all(any(values) for values in compared.values())  # not 0 = 0 throughout


def test_completions_without_tokens_count_as_in_trl() -> None:
    """Masked for being cut off: they train nothing, but stay in means over sequences."""
    rng = random.Random(0)
    for preset in set(LOSS_TYPES) - {"gmpo", "rloo"}:  # TRL adds a constant for them there
        x = a_batch(rng)
        x["mask"][2] = 0.0
        loss, _ = policy_loss(x["lp"], x["old"], x["advantages"], x["mask"], preset=preset)
        trl, _ = theirs(resolve(preset), LOSS_TYPES[preset], x)
        assert_equal(loss, trl, preset)


def test_advantages_per_token_equal_trl() -> None:
    rng = random.Random(0)
    for preset in set(LOSS_TYPES) - {"gmpo", "rloo"}:  # these two take one per sequence
        x = a_batch(rng)
        x["advantages"] = torch.randn_like(x["lp"])
        compare(preset, x, beta=0.1)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_trainer(str(tmp_path_factory.mktemp("trl")), num_generations=4)


def some_rewards(rng: random.Random) -> Tensor:
    """[3, 4, 2] with unscored entries, one completion without any, and a group of equal ones."""
    rewards = torch.tensor([rng.choice([0.0, 0.25, 1.0, 2.0]) for _ in range(24)]).view(3, 4, 2)
    rewards[torch.tensor([rng.random() < 0.15 for _ in range(24)]).view(3, 4, 2)] = math.nan
    rewards[1, 2] = math.nan
    rewards[2] = 0.25
    return rewards


def as_rows(rewards_PGF: Tensor) -> list[list[float | None]]:
    return [[None if x.isnan() else x.item() for x in row] for row in rewards_PGF.flatten(0, 1)]


def test_advantages_equal_trl(trainer: Any) -> None:
    rng = random.Random(0)
    completions = [[4, 5, 1]] * 12
    for _ in range(10):
        rewards = some_rewards(rng)
        weights = torch.tensor([rng.choice([0.3, 0.8]), rng.choice([1.0, 2.0])])
        trainer.reward_weights = weights
        total = (rewards * weights).nansum(-1).masked_fill(rewards.isnan().all(-1), math.nan)
        trainer.multi_objective_aggregation = "sum_then_normalize"
        scales: tuple[Scale, ...] = ("group", "batch", "none")
        for scale in scales:
            trainer.scale_rewards = scale
            trl = trainer.score(as_rows(rewards), completions)["advantages"].view(3, 4)
            ours = group_advantages(total, scale=scale)
            torch.testing.assert_close(ours, trl, atol=1e-6, rtol=1e-5)
        trainer.multi_objective_aggregation = "normalize_then_sum"
        trl = trainer.score(as_rows(rewards), completions)["advantages"].view(3, 4)
        torch.testing.assert_close(gdpo_advantages(rewards, weights), trl, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("minimum", [None, 0.5])
def test_importance_ratios_equal_trl(trainer: Any, correction: str, minimum: float | None) -> None:
    rewards = as_rows(some_rewards(random.Random(0))[:1])
    completions = [[4, 5, 6, 1], [7, 1], [8, 9, 4, 5], [1]]
    sampled = [[-3.0, -2.5, -2.9, -2.0], [-3.5, None], [-2.7, -2.8, -2.7, -2.9], [-6.0]]
    trainer.use_vllm = True
    trainer.vllm_importance_sampling_mode = correction
    trainer.vllm_importance_sampling_clip_min = minimum
    try:
        out = trainer.score(rewards, completions, sampled)
    finally:
        trainer.use_vllm = False
    # A loss of -lp per token has minus the importance ratio as its gradient.
    old = out["old_per_token_logps"]
    lp = old.clone().requires_grad_()
    loss, metrics = policy_loss(
        lp,
        old,
        torch.ones(4),
        out["completion_mask"],
        clip="reinforce",
        aggregation="token_mean",
        denominator=1.0,
        sampling_logprobs_BT=out["sampling_per_token_logps"],
        importance_correction=correction,
        importance_min=minimum,
    )
    (grad,) = torch.autograd.grad(loss, lp)
    expected = out["importance_sampling_ratio"] * out["completion_mask"]
    torch.testing.assert_close(-grad, expected)
    for name, value in metrics.items():
        logged = trainer._metrics["train"].get(name)
        if logged is not None:
            assert float(value) == pytest.approx(logged[-1], rel=1e-5), name
    assert "sampling/importance_sampling_ratio/max" in trainer._metrics["train"]


def test_truncated_completions_and_overlong_penalty_equal_trl(trainer: Any) -> None:
    rewards = as_rows(some_rewards(random.Random(0))[:1])
    completions = [[4, 5, 6, 1], [7, 8], [8, 9, 4, 5], [1]]
    whole = trainer.score(rewards, completions)["completion_mask"]
    trainer.mask_truncated_completions = True
    try:
        cut = trainer.score(rewards, completions)["completion_mask"]
    finally:
        trainer.mask_truncated_completions = False
    truncated = torch.tensor([False, True, True, False])
    assert torch.equal(drop_truncated(whole, truncated), cut)

    lengths = [0, 10, 79, 80, 81, 90, 99, 100, 101, 300]
    trl = get_soft_overlong_punishment(100, 20)(completion_ids=[[0] * n for n in lengths])
    ours = soft_overlong_penalty(torch.tensor(lengths), max_completion_length=100, cache=20)
    torch.testing.assert_close(ours, torch.tensor(trl))
