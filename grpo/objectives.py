"""The policy-gradient losses as pure functions of log-probs: one table of presets, one loss.

An objective is a row of `PRESETS`: how advantages are made, at which level the ratio is taken, how
it is clipped, how token losses add up, and which KL is added. With lp, old, ref, sampled the
log-probs of the completion tokens under the policy, the policy that the step started from, the
reference and the sampler; m the completion mask; L = sum m of a sequence:

    r = exp(lp - old) per token, or exp(sum m (lp - old) / L) per sequence
    token loss = clip rule(r, A) * off-policy mask * entropy mask * sampler correction + beta * KL
    loss = sum of the token losses, aggregated / denominator - entropy_coef * mean entropy

With the global count of its aggregation as `denominator`, the loss of a batch is exactly the sum of
the losses of its parts, whatever the parts: micro-batches, packed rows or ranks.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

# exp of a log-ratio stays finite in float32 (< 1.2e26), so a clipped token's gradient is 0, not NaN.
MAX_LOG_RATIO = 60.0
_MIN_LOG_WEIGHT, _MAX_LOG_WEIGHT = math.log(1e-8), 20.0  # VESPO's clamps on a sequence's log-weight


@dataclass(frozen=True)
class Objective:
    """A row of the preset table. `scale_rewards` and `baseline` are for `group_advantages`."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    baseline: Literal["mean", "leave_one_out", "batch"] = "mean"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    # ppo: min(r A, clamp(r, 1 - epsilon, 1 + epsilon_high) A); none: r A.
    # cispo: sg(min(r, epsilon_high)) A lp; reinforce: A lp; sapo, gmpo, vespo: see _clip_rule.
    clip: Literal["ppo", "cispo", "sapo", "gmpo", "vespo", "reinforce", "none"] = "ppo"
    epsilon: float = 0.2
    epsilon_high: float | None = None  # None: epsilon
    delta: float | None = None  # two-sided: r <= delta where A < 0 (INTELLECT-2, 2505.07291)
    dual_clip: float | None = None  # c > 1: the loss of A < 0 is at most -c A (1912.09729)
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    aggregation: Literal["sequence_mean", "token_mean", "constant", "sequence_sum"] = "token_mean"
    max_completion_length: int | None = None  # of "constant"; None: the width of the batch
    beta: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_place: Literal["loss", "reward"] = "loss"  # reward: see kl_in_reward; the loss adds none
    kl_ratio_factor: bool = False  # times r: unbiased off-policy (DeepSeek-V3.2, 2512.02556)
    entropy_coef: float = 0.0
    top_entropy_quantile: float = 1.0  # train on the most uncertain share of tokens (2506.01939)
    # w = exp(old - sampled) per token or, summed, per sequence; bounded or set to 0 outside bounds.
    # truncate: TIS (fengyao.notion.site/off-policy-rl); mask: MIS, IcePop (ringtech.notion.site).
    importance_correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "none"
    importance_min: float | None = None
    importance_max: float | None = 3.0
    # Drop sequences with A < 0 and mean(sampled - lp) above it (DeepSeek-V3.2, 2512.02556).
    off_policy_mask_threshold: float | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), get_args(hint)
            if allowed and isinstance(allowed[0], str) and value not in allowed:
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
        if self.epsilon < 0 or self.high < 0:
            raise ValueError(f"epsilon={self.epsilon}, epsilon_high={self.high}: must be >= 0")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip={self.dual_clip}: must be above 1, or None for off")
        if not 0 < self.top_entropy_quantile <= 1:
            raise ValueError(f"top_entropy_quantile={self.top_entropy_quantile}: need 0 < q <= 1")

    @property
    def high(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


# Published settings, with beta = 0 throughout: a KL to the reference is asked for by beta.
PRESETS: dict[str, Objective] = {
    # DeepSeek-R1, 2501.12948 eq. 1-3, as in DeepSeekMath, 2402.03300. The paper leaves open: ddof
    # of the group's std (ours: 1), the epsilon under it (1e-4), and the clip range (0.2, as PPO).
    "grpo": Objective(aggregation="sequence_mean"),
    # Dr. GRPO, 2503.20783: no division by length or std, which favour long wrong answers.
    "dr_grpo": Objective(scale_rewards="none", aggregation="constant"),
    # DAPO, 2503.14476: token mean, clip-higher 0.2 / 0.28.
    "dapo": Objective(epsilon_high=0.28),
    # BNPO as TRL names it: a token mean with the symmetric clip.
    "bnpo": Objective(),
    # GSPO, 2507.18071, section 5.1: ratio of sequences, per-token geometric mean.
    "gspo": Objective(
        importance_sampling_level="sequence",
        epsilon=3e-4,
        epsilon_high=4e-4,
        aggregation="sequence_mean",
    ),
    # LUSPO, 2602.05261: GSPO with each sequence weighted by its length.
    "luspo": Objective(importance_sampling_level="sequence", aggregation="sequence_sum"),
    # CISPO, MiniMax-M1, 2506.13585: the ratio is a capped constant weight, no token is dropped.
    # epsilon_high is the cap itself; 5.0 is ScaleRL's, 2510.13786.
    "cispo": Objective(clip="cispo", epsilon_high=5.0),
    # GMPO, 2507.20673: geometric mean of the token ratios, log-ratios clipped at +-0.4.
    "gmpo": Objective(clip="gmpo", epsilon=0.4, aggregation="sequence_mean"),
    # SAPO, 2511.20347: a sigmoid gate instead of a clip, temperature 1.0 for A > 0, else 1.05.
    "sapo": Objective(clip="sapo", aggregation="sequence_mean"),
    # VESPO, 2602.10693: smooth weight w^k e^(lambda (1 - w)) of the whole sequence's ratio w.
    "vespo": Objective(clip="vespo"),
    # RLOO, 2402.14740: REINFORCE on whole sequences, leave-one-out baseline, KL in the reward.
    "rloo": Objective(
        scale_rewards="none",
        baseline="leave_one_out",
        clip="none",
        aggregation="sequence_sum",
        kl_estimator="k1",
        kl_place="reward",
    ),
    # REINFORCE++, 2501.03262: no group; whitened over the batch, PPO clip, KL in the reward.
    "reinforce_pp": Objective(
        scale_rewards="batch", baseline="batch", kl_estimator="k1", kl_place="reward"
    ),
}


def resolve(preset: str | Objective, **overrides: object) -> Objective:
    """The preset's row with some fields replaced; ValueError names the nearest known name."""
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r}: unknown{_nearest(preset, PRESETS)}")
        preset = PRESETS[preset]
    fields = [field.name for field in dataclasses.fields(Objective)]
    for name in overrides:
        if name not in fields:
            raise ValueError(f"{name}: not a setting of an objective{_nearest(name, fields)}")
    return dataclasses.replace(preset, **overrides)  # type: ignore[arg-type]


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(known)}"


class Mean(NamedTuple):
    """A mean in two additive parts; float() gives the mean (NaN of nothing)."""

    total: Tensor
    weight: Tensor

    def __float__(self) -> float:
        weight = float(self.weight)
        return float(self.total) / weight if weight else math.nan


Metrics = dict[str, Mean | Tensor]


def merge_metrics(parts: Iterable[Mapping[str, Mean | Tensor]]) -> Metrics:
    """Metrics of a batch from those of its parts: means by weight, `.../min` and `.../max`."""
    merged: Metrics = {}
    for part in parts:
        for name, value in part.items():
            have = merged.get(name)
            if have is None:
                merged[name] = value
            elif isinstance(have, Mean) and isinstance(value, Mean):
                merged[name] = Mean(have.total + value.total, have.weight + value.weight)
            else:
                assert isinstance(have, Tensor) and isinstance(value, Tensor)
                merge = torch.minimum if name.endswith("/min") else torch.maximum
                merged[name] = merge(have, value)
    return merged


def loss_denominator(mask_or_lengths: Tensor, objective: Objective) -> float:
    """The count that a loss over these completions is divided by; counts of parts add up.

    Takes a mask [B, T] or the completion lengths [B]. token_mean: completion tokens; sequence_mean
    and sequence_sum: sequences, empty ones too; constant: sequences * max_completion_length.
    """
    if objective.aggregation == "token_mean":
        return float(mask_or_lengths.sum())
    sequences = mask_or_lengths.shape[0]
    if objective.aggregation != "constant":
        return float(sequences)
    width = objective.max_completion_length
    if width is None:
        if mask_or_lengths.dim() != 2:
            raise ValueError("max_completion_length=None: aggregation 'constant' needs it")
        width = mask_or_lengths.shape[1]
    return float(sequences * width)


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor | None,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    preset: str | Objective = "grpo",
    ref_logprobs_BT: Tensor | None = None,
    sampling_logprobs_BT: Tensor | None = None,
    entropy_BT: Tensor | None = None,
    denominator: float | None = None,
    num_tokens: float | None = None,
    entropy_threshold: float | None = None,
    **overrides: object,
) -> tuple[Tensor, Metrics]:
    """Loss of a batch of completions (a scalar to minimise) and its metrics.

    All [B, T] tensors are aligned on completion tokens; `mask_BT` is 1 on those that train, and
    what lies under 0 may be anything. `old_logprobs_BT` None: the policy itself (first pass).
    `advantages_B` may be [B, T]. `sampling_logprobs_BT`: what the sampler reported, NaN = unknown.
    `denominator` is the global `loss_denominator`; None counts this batch. `num_tokens` is the
    global count of completion tokens: the entropy bonus is a mean over tokens whatever the
    aggregation, and needs it wherever `denominator` is given. `entropy_threshold` fixes the bound
    of the top-entropy mask; None takes the quantile of this batch, the one thing here that depends
    on how a batch is split. Computed in float32, in float64 if logprobs are. Metrics are `Mean`s
    and extremes: float() reads one, `merge_metrics` adds them up. Raises ValueError on shapes that
    do not agree or when a setting lacks its tensor.
    """
    objective = resolve(preset, **overrides)
    _check_inputs(objective, logprobs_BT, ref_logprobs_BT, sampling_logprobs_BT, entropy_BT)
    dtype = torch.promote_types(logprobs_BT.dtype, torch.float32)
    mask = _like("mask_BT", mask_BT, logprobs_BT).to(dtype)

    def on_mask(name: str, x: Tensor | None) -> Tensor | None:
        return None if x is None else _like(name, x, mask).to(dtype).where(mask > 0, 0.0)

    lp = on_mask("logprobs_BT", logprobs_BT)
    assert lp is not None
    old = on_mask("old_logprobs_BT", old_logprobs_BT)
    old = lp.detach() if old is None else old.detach()
    ref = on_mask("ref_logprobs_BT", ref_logprobs_BT)
    sampled = on_mask("sampling_logprobs_BT", sampling_logprobs_BT)
    entropy = on_mask("entropy_BT", entropy_BT)
    A = (advantages_B[:, None] if advantages_B.dim() == 1 else advantages_B).to(dtype).detach()
    if A.shape not in ((mask.shape[0], 1), mask.shape):
        raise ValueError(f"advantages of shape {tuple(advantages_B.shape)}: need [B] or [B, T]")

    certain = mask
    if objective.top_entropy_quantile < 1 and entropy is not None:
        quantile = objective.top_entropy_quantile
        certain = _top_entropy(entropy.detach(), mask, quantile, entropy_threshold)
    weight = _importance_weight(old, sampled, mask, objective)
    log_ratio = (lp - old).clamp(max=MAX_LOG_RATIO)
    level = log_ratio if objective.importance_sampling_level == "token" else _mean(log_ratio, mask)
    ratio = level.exp()
    loss_BT = _clip_rule(objective, ratio, A, lp, log_ratio, mask, certain, weight)
    keep = torch.ones_like(mask[:, :1])
    if objective.off_policy_mask_threshold is not None:
        gap = torch.nan_to_num((old if sampled is None else sampled) - lp.detach())
        far = _mean(gap, mask) > objective.off_policy_mask_threshold
        keep = 1.0 - ((A < 0) & far).to(dtype)
    loss_BT = loss_BT * keep
    if objective.clip != "gmpo":  # its geometric mean has already left the other tokens out
        loss_BT = loss_BT * certain
    if objective.clip != "vespo":  # its sequence weight already holds the correction
        loss_BT = loss_BT * weight
    kl = None
    if ref is not None:
        kl = kl_estimate(lp, ref, objective.kl_estimator)
        kl = kl * ratio if objective.kl_ratio_factor else kl
        if objective.beta != 0 and objective.kl_place == "loss":
            loss_BT = loss_BT + objective.beta * kl
    loss = _aggregate(loss_BT * mask, mask, objective, denominator)
    if objective.entropy_coef != 0:
        assert entropy is not None
        acting = certain.sum() if denominator is None else _share(num_tokens, objective)
        bonus = (entropy * certain).sum() / max(float(acting), 1.0)
        loss = loss - objective.entropy_coef * bonus
    metrics = _metrics(objective, ratio, A, mask, lp, old, sampled, weight, keep, kl, entropy)
    return loss, metrics
