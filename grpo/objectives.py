"""The policy-gradient losses as pure functions of log-probs: one table of presets, one loss.

An objective is a row of `PRESETS` (presets.py). With lp, old, ref, sampled the log-probs of the
completion tokens under the policy, the policy that the step started from, the reference and the
sampler; m the completion mask; L = sum m of a sequence:

    r = exp(lp - old) per token, exp(sum m (lp - old) / L) per sequence, or exp(sum m (lp - old))
    token loss = clip rule(r, A) * off-policy mask * entropy mask * sampler correction + beta * KL
    loss = sum of the token losses, aggregated / denominator - entropy_coef * mean entropy

With the global count of its aggregation as `denominator`, the loss of a batch is exactly the sum of
the losses of its parts, whatever the parts: micro-batches, packed rows or ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .presets import PRESETS as PRESETS
from .presets import Objective, resolve

# exp of it stays finite in float32 (1.1e26): a clipped token's gradient is then 0, not NaN.
MAX_LOG_RATIO = 60.0
_MIN_LOG_WEIGHT, _MAX_LOG_WEIGHT = math.log(1e-8), 20.0  # of VESPO's sequence weight


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
    aggregation, and needs it wherever `denominator` is given and counts something else.
    `entropy_threshold` fixes the bound of the top-entropy mask; None takes the quantile of this
    batch, the one thing here that depends on how a batch is split. Computed in float32, in float64
    if logprobs are, and summed in float64. Metrics are `Mean`s and extremes: float() reads one,
    `merge_metrics` adds them up. Raises ValueError on a bad setting, shape or missing tensor.
    """
    o = resolve(preset, **overrides)
    _check_tensors(o, ref_logprobs_BT, sampling_logprobs_BT, entropy_BT)
    tokenwise = (old_logprobs_BT, ref_logprobs_BT, sampling_logprobs_BT, entropy_BT)
    x = _on_mask(logprobs_BT, mask_BT, advantages_B, *tokenwise)
    certain = _top_entropy(o, x, entropy_threshold)
    weight = _importance_weight(o, x)
    log_ratio = (x.lp - x.old).clamp(max=MAX_LOG_RATIO)
    ratio = _at_level(o, log_ratio, x.mask).exp()
    keep = _off_policy_keep(o, x)
    loss_BT = _clip_rule(o, x, log_ratio, ratio, certain, weight) * keep
    if o.clip != "gmpo":  # its geometric mean has already left the other tokens out
        loss_BT = loss_BT * certain
    if o.clip != "vespo":  # its sequence weight already holds the correction
        loss_BT = loss_BT * weight
    kl = None
    if x.ref is not None:
        kl = kl_estimate(x.lp, x.ref, o.kl_estimator) * (ratio if o.kl_ratio_factor else 1.0)
        if o.beta != 0 and o.kl_place == "loss":
            loss_BT = loss_BT + o.beta * kl
    loss = _aggregate(o, loss_BT * x.mask, x.mask, denominator)
    if o.entropy_coef != 0:
        loss = loss - o.entropy_coef * _mean_entropy(o, x, certain, denominator, num_tokens)
    return loss, _metrics(o, x, log_ratio, ratio, weight, keep, kl)


class _Tensors(NamedTuple):
    """Log-probs, entropy and mask [B, T] and advantages [B, 1] or [B, T]; 0 where masked out."""

    lp: Tensor
    old: Tensor
    ref: Tensor | None
    sampled: Tensor | None
    entropy: Tensor | None
    A: Tensor
    mask: Tensor


def _check_tensors(
    o: Objective, ref: Tensor | None, sampled: Tensor | None, entropy: Tensor | None
) -> None:
    uses_ref = o.beta != 0 and o.kl_place == "loss"
    uses_entropy = o.entropy_coef != 0 or o.top_entropy_quantile < 1
    corrects = o.importance_correction != "none"
    for name, tensor, used, reason in (
        ("ref_logprobs_BT", ref, uses_ref, f"beta={o.beta}"),
        ("sampling_logprobs_BT", sampled, corrects, "importance_correction"),
        ("entropy_BT", entropy, uses_entropy, "entropy_coef or top_entropy_quantile"),
    ):
        if used and tensor is None:
            raise ValueError(f"{name}=None: {reason} needs it")


def _on_mask(lp: Tensor, mask: Tensor, advantages: Tensor, *others: Tensor | None) -> _Tensors:
    """The tensors in one dtype and, so that no NaN or inf leaks, 0 wherever the mask is."""
    dtype = torch.promote_types(lp.dtype, torch.float32)
    names = ("logprobs", "old_logprobs", "ref_logprobs", "sampling_logprobs", "entropy")
    for name, value in zip(names, (lp, *others), strict=True):
        if value is not None and (value.shape != mask.shape or value.dim() != 2):
            shapes = f"{tuple(value.shape)} beside a mask of {tuple(mask.shape)}"
            raise ValueError(f"{name}_BT of shape {shapes}: need [B, T] both")
    seen = mask > 0
    lp = lp.to(dtype).where(seen, 0.0)
    old, ref, sampled, entropy = (
        None if value is None else value.to(dtype).where(seen, 0.0) for value in others
    )
    A = advantages[:, None] if advantages.dim() == 1 else advantages
    if A.shape not in ((mask.shape[0], 1), mask.shape):
        raise ValueError(f"advantages of shape {tuple(advantages.shape)}: need [B] or [B, T]")
    acts = seen if A.shape == seen.shape else seen.any(1, keepdim=True)
    A = A.detach().to(dtype).where(acts, 0.0)
    old = lp.detach() if old is None else old.detach()
    return _Tensors(lp, old, ref, sampled, entropy, A, mask.to(dtype))


def _mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the masked-in tokens of each sequence -> [B, 1]; 0 where there are none."""
    return (values_BT * mask_BT).sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1.0)


def _at_level(o: Objective, log_ratio: Tensor, mask: Tensor) -> Tensor:
    if o.importance_sampling_level == "token":
        return log_ratio
    if o.importance_sampling_level == "sequence":
        return _mean(log_ratio, mask)
    return (log_ratio * mask).sum(1, keepdim=True).clamp(max=MAX_LOG_RATIO)


def _clip_rule(
    o: Objective, x: _Tensors, log_ratio: Tensor, ratio: Tensor, certain: Tensor, weight: Tensor
) -> Tensor:
    """Minus the surrogate of each token [B, T] or sequence [B, 1]; lp carries the gradient."""
    A = x.A
    if o.clip == "none":
        return -ratio * A
    if o.clip == "reinforce":
        return -A * x.lp
    if o.clip == "cispo":
        return -ratio.detach().clamp(max=o.high) * A * x.lp
    if o.clip == "sapo":
        tau = _by_sign(A > 0, o.sapo_temperature_pos, o.sapo_temperature_neg, A)
        return -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * A
    if o.clip == "gmpo":
        one_sided = torch.where(A > 0, log_ratio.clamp(max=o.high), log_ratio.clamp(min=-o.epsilon))
        return -_mean(one_sided, certain).exp() * A
    if o.clip == "vespo":
        return -_vespo_weight(o, x, weight) * A * x.lp
    bounded = ratio.clamp(1 - o.epsilon, 1 + o.high)
    free = ratio if o.delta is None else ratio.clamp(max=o.delta)
    gain = torch.minimum(free * A, bounded * A)
    if o.dual_clip is not None:
        gain = torch.where(A < 0, torch.maximum(gain, o.dual_clip * A), gain)
    return -gain


def _by_sign(positive: Tensor, yes: float, no: float, like: Tensor) -> Tensor:
    return torch.full_like(like, no).masked_fill(positive, yes)


@torch.no_grad()
def _vespo_weight(o: Objective, x: _Tensors, weight: Tensor) -> Tensor:
    """exp(lambda) w^k exp(-lambda w) of the sequence's ratio w, sampler correction included."""
    log_ratio = (x.lp - x.old).clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT)
    log_weight = weight.log().clamp(_MIN_LOG_WEIGHT, _MAX_LOG_WEIGHT)
    log_w = (log_ratio * x.mask).sum(1, keepdim=True) + log_weight.sum(1, keepdim=True)
    log_w = log_w.clamp(_MIN_LOG_WEIGHT, _MAX_LOG_WEIGHT)
    k = _by_sign(x.A >= 0, o.vespo_k_pos, o.vespo_k_neg, x.A)
    lam = _by_sign(x.A >= 0, o.vespo_lambda_pos, o.vespo_lambda_neg, x.A)
    return (lam + k * log_w - lam * log_w.exp()).exp()


@torch.no_grad()
def _importance_weight(o: Objective, x: _Tensors) -> Tensor:
    """exp(old - sampled), bounded or masked: [B, T], or [B, 1] per sequence; 1 where unknown."""
    if o.importance_correction == "none" or x.sampled is None:
        return torch.ones_like(x.mask[:, :1])
    level, rule = o.importance_correction.split("_")
    gap = (x.old - x.sampled).nan_to_num(nan=0.0)
    gap = (gap * x.mask).sum(1, keepdim=True) if level == "sequence" else gap
    w = gap.clamp(max=MAX_LOG_RATIO).exp()
    low = 0.0 if o.importance_min is None else o.importance_min
    high = math.inf if o.importance_max is None else o.importance_max
    if rule == "truncate":
        return w.clamp(low, high)
    return w.masked_fill((w < low) | (w > high), 0.0)


@torch.no_grad()
def _off_policy_keep(o: Objective, x: _Tensors) -> Tensor:
    """0 for sequences of negative advantage that drifted too far from their sampler, else 1."""
    if o.off_policy_mask_threshold is None:
        return torch.ones_like(x.mask[:, :1])
    gap = ((x.old if x.sampled is None else x.sampled) - x.lp).nan_to_num(nan=0.0)
    far = _mean(gap, x.mask) > o.off_policy_mask_threshold
    return 1.0 - ((x.A < 0) & far).to(x.mask.dtype)


def top_entropy_threshold(entropy_N: Tensor, quantile: float) -> Tensor:
    """The entropy that a share `quantile` of the tokens reaches (arXiv 2506.01939)."""
    return torch.quantile(entropy_N.detach().float(), 1 - quantile)


def _top_entropy(o: Objective, x: _Tensors, threshold: float | Tensor | None) -> Tensor:
    """The mask without the tokens below the threshold of entropy."""
    if o.top_entropy_quantile == 1 or x.entropy is None or not x.mask.any():
        return x.mask
    if threshold is None:
        threshold = top_entropy_threshold(x.entropy[x.mask > 0], o.top_entropy_quantile)
    return x.mask * (x.entropy >= threshold)


def _mean_entropy(
    o: Objective,
    x: _Tensors,
    certain: Tensor,
    denominator: float | None,
    num_tokens: float | None,
) -> Tensor:
    assert x.entropy is not None
    total = (x.entropy * certain).sum()
    if denominator is None:
        return total / certain.sum().clamp(min=1.0)
    if num_tokens is None and o.aggregation == "token_mean":
        num_tokens = denominator
    if num_tokens is None:
        raise ValueError("num_tokens=None: entropy_coef needs the global count beside denominator")
    return total / max(num_tokens * o.top_entropy_quantile, 1.0)


def _aggregate(o: Objective, loss_BT: Tensor, mask: Tensor, denominator: float | None) -> Tensor:
    if denominator is None:
        denominator = loss_denominator(mask, o)
    total = _mean(loss_BT, mask) if o.aggregation == "sequence_mean" else loss_BT
    # Terms of both signs nearly cancel: summed in float64, the split of a batch does not show.
    dtype = total.dtype if total.device.type == "mps" else torch.float64
    return total.sum(dtype=dtype) / max(denominator, 1.0)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """Estimate per token, from a sample of the policy, of KL(policy || reference), in nats.

    With d = lp - ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (joschu.net/blog/kl-approx.html).
    Expected gradient in a loss, without the ratio factor: 0, the KL's, the reverse KL's.
    """
    d = (logprobs - ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.exp(-d) - 1 + d
    raise ValueError(f"kl_estimator={estimator!r}: must be one of k1, k2, k3")


@torch.no_grad()
def kl_in_reward(
    rewards_B: Tensor,
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    mask_BT: Tensor,
    *,
    objective: Objective,
) -> Tensor:
    """Rewards less beta times the KL of the sampling policy to the reference.

    kl_level "sequence": less the KL of the whole completion -> [B], for `group_advantages` (RLOO,
    arXiv 2402.14740). "token": less the KL from each token on, a return per token -> [B, T], 0
    where masked out, for `whiten` (REINFORCE++, arXiv 2501.03262 eq. 8). NaN rewards stay NaN.
    """
    x = _on_mask(logprobs_BT, mask_BT, rewards_B, None, ref_logprobs_BT, None, None)
    assert x.ref is not None
    kl_BT = kl_estimate(x.lp, x.ref, objective.kl_estimator) * x.mask
    if objective.kl_level == "sequence":
        return rewards_B - objective.beta * kl_BT.sum(1)
    to_go_BT = kl_BT.flip(1).cumsum(1).flip(1)
    return (rewards_B[:, None] - objective.beta * to_go_BT).where(x.mask > 0, 0.0)


@torch.no_grad()
def _metrics(
    o: Objective,
    x: _Tensors,
    log_ratio: Tensor,
    ratio: Tensor,
    weight: Tensor,
    keep: Tensor,
    kl: Tensor | None,
) -> Metrics:
    """TRL's names where they mean the same; means over tokens, or over sequences of a [B, 1]."""
    counted = {True: x.mask, False: (x.mask > 0).any(1, keepdim=True).to(x.mask.dtype)}

    def mean(values: Tensor) -> Mean:
        count = counted[values.shape == x.mask.shape]
        return Mean((values * count).sum(), count.sum())

    metrics: Metrics = {}
    if x.entropy is not None:
        metrics["entropy"] = mean(x.entropy)
    if kl is not None:
        metrics["kl"] = mean(kl)
    if o.clip in ("ppo", "gmpo"):
        at, centre = (ratio, 1.0) if o.clip == "ppo" else (log_ratio, 0.0)
        low = (at < centre - o.epsilon) & (x.A < 0)
        high = (at > centre + o.high) & (x.A > 0)
        metrics["clip_ratio/low_mean"] = mean(low)
        metrics["clip_ratio/high_mean"] = mean(high)
        metrics["clip_ratio/region_mean"] = mean(low | high)
    if o.clip == "cispo":
        metrics["cispo_clip_ratio"] = mean((ratio > o.high) & (x.A > 0))
    if o.off_policy_mask_threshold is not None:
        metrics["off_policy_mask/dropped"] = mean(1.0 - keep)
    if x.sampled is not None:
        metrics |= _sampling_metrics(x, x.sampled)
    if x.sampled is not None and o.importance_correction != "none":
        seen = counted[weight.shape == x.mask.shape] > 0
        name = "sampling/importance_sampling_ratio"
        metrics[f"{name}/mean"] = mean(weight)
        metrics[f"{name}/min"] = weight.where(seen, math.inf).amin()
        metrics[f"{name}/max"] = weight.where(seen, -math.inf).amax()
    return metrics


def _sampling_metrics(x: _Tensors, sampled: Tensor) -> Metrics:
    """How far the policy is from the sampler: now (k3 estimate of the KL), and before the step."""
    known = x.mask * ~sampled.isnan()
    sampled = sampled.nan_to_num(nan=0.0)
    gap = (x.old - sampled).abs().where(known > 0, 0.0)
    return {
        "sampling/kl": Mean((kl_estimate(sampled, x.lp, "k3") * known).sum(), known.sum()),
        "sampling/sampling_logp_difference/mean": Mean((gap * known).sum(), known.sum()),
        "sampling/sampling_logp_difference/max": gap.amax(),
    }
