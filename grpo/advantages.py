"""Advantages: rewards of groups of completions in, one number per completion out.

Pure functions on [P, G] tensors (P prompts, G completions each). NaN is an unscored completion: it
enters no mean and no deviation and gets advantage 0. Rewards are rounded to float32, statistics
taken in float64 and advantages returned in float32. Standard deviations have ddof = 1; the GRPO
papers (arXiv 2402.03300, 2501.12948 eq. 3) print `std` without saying which, and no epsilon.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]
Baseline = Literal["mean", "leave_one_out", "batch"]


def group_advantages(
    rewards_PG: Tensor,
    *,
    scale: Scale = "group",
    baseline: Baseline = "mean",
    epsilon: float = 1e-4,
) -> Tensor:
    """(reward - baseline) / (std + epsilon) -> advantages_PG, float32.

    `baseline`: the group's mean (GRPO, arXiv 2501.12948 eq. 3), the mean of the other completions
    of the group (RLOO, arXiv 2402.14740), or the mean of the batch (REINFORCE++, arXiv 2501.03262:
    with scale "batch" this is global whitening). `scale` divides by the group's std, the batch's
    (arXiv 2508.08221), or nothing (Dr. GRPO, arXiv 2503.20783). Where all rewards that enter the
    baseline are equal, the advantages are exactly 0. Raises ValueError on an unknown option, on a
    shape other than [P, G], or on an infinite reward.
    """
    _check_option("scale", scale, Scale)
    _check_option("baseline", baseline, Baseline)
    if epsilon < 0:
        raise ValueError(f"epsilon={epsilon}: must not be negative")
    if (baseline, scale) == ("batch", "group"):
        raise ValueError("scale='group': a baseline of the batch needs scale 'batch' or 'none'")
    rewards = _rewards(rewards_PG, dims=2, shape="[P, G]")
    dims = (0, 1) if baseline == "batch" else (1,)
    centred, n = _centre(rewards, dims)
    if baseline == "leave_one_out":
        # r_i - mean of the others = n / (n - 1) (r_i - mean of all)
        centred = centred * n / (n - 1).clamp(min=1)
    if scale == "group":
        centred = centred / (_std(rewards, (1,)) + epsilon)
    elif scale == "batch":
        centred = centred / (_std(rewards, (0, 1)) + epsilon)
    return centred.nan_to_num(nan=0.0).float()


def whiten(values: Tensor, *, mask: Tensor | None = None, epsilon: float = 1e-4) -> Tensor:
    """Values of any shape, to mean 0 and std 1 over all that are not NaN and not masked out.

    REINFORCE++ (arXiv 2501.03262) whitens token advantages [B, T] over the whole batch; `mask` is
    then the completion mask. All equal: exactly 0. Masked entries and NaN: 0. float32.
    """
    values = _rewards(values, dims=None, shape="any")
    if mask is not None:
        values = values.masked_fill(~mask.bool(), float("nan"))
    dims = tuple(range(values.dim()))
    centred, _ = _centre(values, dims)
    return (centred / (_std(values, dims) + epsilon)).nan_to_num(nan=0.0).float()


def gdpo_advantages(
    rewards_PGF: Tensor,
    weights_F: Tensor | None = None,
    *,
    batch_normalize: bool = True,
    epsilon: float = 1e-4,
) -> Tensor:
    """Normalise each of F rewards within its group, then sum with weights -> advantages_PG.

    Keeps a rare reward from drowning in the deviation of another (GDPO, arXiv 2601.05242). With
    `batch_normalize`, as in the paper, the sums are whitened over the batch. A reward that is NaN
    counts 0 in the sum; a completion without any gets 0.
    """
    rewards = _rewards(rewards_PGF, dims=3, shape="[P, G, F]")
    weights = torch.ones(rewards.shape[-1]) if weights_F is None else weights_F
    if weights.shape != rewards.shape[-1:]:
        raise ValueError(f"weights of shape {tuple(weights.shape)}: need one per reward function")
    centred, _ = _centre(rewards, (1,))
    normalised = centred / (_std(rewards, (1,)) + epsilon)
    total_PG = (normalised * weights.to(rewards)).nansum(-1)
    total_PG = total_PG.masked_fill(rewards.isnan().all(-1), float("nan"))
    return whiten(total_PG, epsilon=epsilon) if batch_normalize else total_PG.nan_to_num().float()


def soft_overlong_penalty(lengths: Tensor, *, max_completion_length: int, cache: int) -> Tensor:
    """DAPO's length penalty in [-1, 0] per completion (arXiv 2503.14476, eq. 13), float32.

    0 up to `max_completion_length - cache` tokens, then falling linearly to -1 at the maximum, and
    -1 beyond. Added to the reward. Raises ValueError unless 0 < cache <= max_completion_length.
    """
    if not 0 < cache <= max_completion_length:
        raise ValueError(f"cache={cache}: must be in 1..{max_completion_length} tokens")
    left = (max_completion_length - cache) - torch.as_tensor(lengths).to(torch.float64)
    return (left / cache).clamp(-1.0, 0.0).float()


def drop_truncated(mask_BT: Tensor, truncated_B: Tensor) -> Tensor:
    """The completion mask without the completions that were cut by the length limit.

    DAPO's overlong filtering (arXiv 2503.14476, section 3.4): they train nothing, but still count
    in their group's statistics and in per-sequence denominators.
    """
    return mask_BT * ~truncated_B.bool()[:, None]


def _check_option(name: str, value: str, options: object) -> None:
    allowed = getattr(options, "__args__", ())
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")


def _rewards(rewards: Tensor, *, dims: int | None, shape: str) -> Tensor:
    if dims is not None and rewards.dim() != dims:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)}: need {shape}")
    rewards = rewards.float().double()  # rewards that are equal in float32 are equal
    if rewards.isinf().any():
        raise ValueError("rewards: an infinite value; a reward must be a finite number or NaN")
    return rewards


def _centre(values: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Values minus their mean over `dims` (exactly 0 where all are equal), and their count."""
    scored = ~values.isnan()
    low = values.masked_fill(~scored, float("inf")).amin(dims, keepdim=True)
    high = values.masked_fill(~scored, float("-inf")).amax(dims, keepdim=True)
    centred = values - values.nanmean(dims, keepdim=True)
    centred = torch.where(scored & (low == high), 0.0, centred)
    return centred, scored.sum(dims, keepdim=True)


def _std(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Standard deviation over what is not NaN, ddof = 1; 0 for a single value."""
    centred, n = _centre(values, dims)
    return (centred.square().nansum(dims, keepdim=True) / (n - 1).clamp(min=1)).sqrt()
