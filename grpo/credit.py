"""Credit: from the rewards of sampled groups to an advantage for every sample, by the preset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .advantages import gdpo_advantages, group_advantages, whiten
from .batch import Sample
from .distributed import gather_objects
from .objectives import Objective, kl_in_reward

Groups = Sequence[Sequence[Sample]]


def assign_advantages(
    groups: Groups, objective: Objective, *, reward_weights: Mapping[str, float] | None = None
) -> None:
    """Set `advantage` (or `token_advantages`) of every sample, the same on every process.

    `reward_weights` asks for GDPO: each reward normalised by itself, then summed by weight. A KL in
    the reward is taken from the samples' log-probs, which each process holds for its own share.
    """
    if not groups:
        return
    if reward_weights is not None:
        advantages_PG = _gdpo(groups, reward_weights)
    elif objective.beta and objective.kl_place == "reward" and objective.kl_level == "token":
        _whitened_returns(groups, objective)
        return
    else:
        advantages_PG = group_advantages(
            _rewards_less_kl(groups, objective),
            scale=objective.scale_rewards,
            baseline=objective.baseline,
        )
    for group, row in zip(groups, advantages_PG.tolist(), strict=True):
        for sample, advantage in zip(group, row, strict=True):
            sample.advantage = advantage


def rewards_tensor(rewards_PG: Sequence[Sequence[float | None]]) -> Tensor:
    """Rewards as float32 [P, G], NaN where unscored."""
    rows = [[float("nan") if reward is None else reward for reward in row] for row in rewards_PG]
    return torch.tensor(rows, dtype=torch.float32)


def _gdpo(groups: Groups, weights: Mapping[str, float]) -> Tensor:
    by_name = [
        rewards_tensor([[sample.record["rewards"].get(name) for sample in g] for g in groups])
        for name in weights
    ]
    return gdpo_advantages(torch.stack(by_name, dim=-1), torch.tensor(list(weights.values())))


def _rewards_less_kl(groups: Groups, objective: Objective) -> Tensor:
    rewards_PG = rewards_tensor([[s.record["reward"] for s in group] for group in groups])
    if not objective.beta or objective.kl_place != "reward":
        return rewards_PG
    penalised = [float(reward) for reward in _penalised(groups, objective)]
    return torch.tensor(penalised, dtype=torch.float32).view_as(rewards_PG)


def _whitened_returns(groups: Groups, objective: Objective) -> None:
    """REINFORCE++: a return per token, whitened over all tokens of the batch."""
    samples = [sample for group in groups for sample in group]
    returns = [torch.as_tensor(value) for value in _penalised(groups, objective)]
    whitened = whiten(torch.cat(returns))
    for sample, part in zip(samples, whitened.split([len(r) for r in returns]), strict=True):
        sample.token_advantages = part
        sample.advantage = float(part.mean())  # for the record: training reads the tokens


def _penalised(groups: Groups, objective: Objective) -> list[Tensor]:
    """Rewards less the KL to the reference, [] or [T] per sample, gathered from all processes."""
    samples = [sample for group in groups for sample in group]
    mine = []
    for i, sample in enumerate(samples):
        if sample.old_logprobs is None or sample.ref_logprobs is None:
            continue
        reward = sample.record["reward"]
        penalised = kl_in_reward(
            torch.tensor([float("nan") if reward is None else reward]),
            sample.old_logprobs[None],
            sample.ref_logprobs[None],
            torch.ones(1, len(sample.token_ids)),
            objective=objective,
        )
        mine.append((i, penalised[0]))
    found = dict(gather_objects(mine))
    assert len(found) == len(samples), "each sample's log-probs are on one process"
    return [found[i] for i in range(len(samples))]
