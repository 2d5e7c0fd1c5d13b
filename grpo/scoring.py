"""From rollouts to scored samples, and from samples to metrics and rows of the run folder."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch

from ..rewards.compose import RewardSuite, Scores
from .advantages import soft_overlong_penalty
from .batch import Sample
from .config import GRPOConfig
from .rollout.engine import Group, Prompt, Rollout


def score_groups(
    rewards: RewardSuite, groups: Sequence[Group], *, config: GRPOConfig, step: int
) -> list[list[Sample]]:
    """A scored sample per rollout, group by group; the reward is None where no function gave one.

    Raises RewardError when a reward function fails; the message names function and row.
    """
    pairs = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    if not pairs:
        return []
    trainer_state = SimpleNamespace(global_step=step, max_steps=config.max_steps)
    scores = score(rewards, pairs, trainer_state=trainer_state)
    samples = iter([_sample(*pair, scores, i, config) for i, pair in enumerate(pairs)])
    return [[next(samples) for _ in group.rollouts] for group in groups]


def score(
    rewards: RewardSuite, pairs: Sequence[tuple[Prompt, Rollout]], *, trainer_state: Any
) -> Scores:
    """Call the reward functions as TRL does: a conversational prompt has a message as completion.

    The dataset's columns are passed by name, and `truncated`: whether the length limit cut it.
    """
    names = {name for prompt, _ in pairs for name in prompt.columns}
    columns = {name: [prompt.columns.get(name) for prompt, _ in pairs] for name in sorted(names)}
    columns.setdefault("truncated", [rollout.finish_reason == "length" for _, rollout in pairs])
    return rewards.score(
        [prompt.text if prompt.messages is None else prompt.messages for prompt, _ in pairs],
        [_completion(prompt, rollout) for prompt, rollout in pairs],
        [rollout.token_ids for _, rollout in pairs],
        columns,
        trainer_state,
    )


def _completion(prompt: Prompt, rollout: Rollout) -> str | list[dict[str, str]]:
    if prompt.messages is None:
        return rollout.text
    return [{"role": "assistant", "content": rollout.text}]


def _sample(prompt: Prompt, rollout: Rollout, scores: Scores, i: int, config: GRPOConfig) -> Sample:
    rewards = {name: values[i] for name, values in scores.by_name.items()}
    total = scores.total[i]
    truncated = rollout.finish_reason == "length"
    if config.soft_overlong_cache:
        penalty = soft_overlong_penalty(
            torch.tensor(len(rollout.token_ids)),
            max_completion_length=config.max_completion_length,
            cache=config.soft_overlong_cache,
        )
        rewards["soft_overlong"] = float(penalty)
        total = None if total is None else total + float(penalty)
    return Sample(
        prompt_ids=prompt.token_ids,
        token_ids=rollout.token_ids,
        group=prompt.index,
        trains=not (truncated and config.mask_truncated_completions),
        sampling_logprobs=rollout.logprobs,
        trace=rollout.trace,
        record={
            "prompt": prompt.text,
            "completion": rollout.text,
            "rewards": rewards,
            "reward": total,
            "finish_reason": rollout.finish_reason,
            "extra": {name: _storable(values[i]) for name, values in scores.extra.items()},
            "metrics": scores.metrics if i == 0 else {},
        },
    )


def _storable(value: Any) -> Any:
    """What a reward logged, as a checkpoint and a parquet file can hold it."""
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def has_signal(group: Sequence[Sample]) -> bool:
    """Whether the rewards of a group differ in float32: if not, it teaches nothing."""
    rewards = _scored(sample.record["reward"] for sample in group)
    return len(torch.tensor(rewards, dtype=torch.float32).unique()) > 1


def all_unscored(groups: Sequence[Sequence[Sample]]) -> bool:
    """Whether the functions left every completion unscored, though none was lost to a timeout."""
    records = [sample.record for group in groups for sample in group]
    lost = ("/timeouts", "/crashes")
    return all(record["reward"] is None for record in records) and not any(
        name.endswith(lost) and value for one in records for name, value in one["metrics"].items()
    )


def rollout_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Rewards and lengths (tokens) of the samples, under TRL's names."""
    if not samples:
        return {}
    groups = [list(run) for _, run in groupby(samples, key=lambda sample: sample.group)]
    deviations = [_std(_scored(s.record["reward"] for s in group)) for group in groups]
    lengths = [len(sample.token_ids) for sample in samples]
    ended = [len(s.token_ids) for s in samples if s.record["finish_reason"] != "length"]
    metrics = {
        "reward": _mean(_scored(s.record["reward"] for s in samples)),
        "reward_std": _mean(deviations),
        "frac_reward_zero_std": _mean([not has_signal(group) for group in groups]),
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1.0 - len(ended) / len(samples),
        "completions/mean_terminated_length": _mean(ended),
    }
    for name in samples[0].record["rewards"]:
        values = _scored(s.record["rewards"].get(name) for s in samples)
        metrics |= {f"rewards/{name}/mean": _mean(values), f"rewards/{name}/std": _std(values)}
    logged = [sample.record["metrics"] for sample in samples]  # one of each process and round
    for name in {name: None for found in logged for name in found}:
        metrics[name] = _mean([found[name] for found in logged if name in found])
    return metrics


def rollout_columns(step: int, samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """The samples as columns of `rollouts/step_*.parquet`, one row each."""
    records = [sample.record for sample in samples]
    columns: dict[str, list[Any]] = {
        "step": [step] * len(samples),
        "group": [sample.group for sample in samples],
        "prompt": [record["prompt"] for record in records],
        "completion": [record["completion"] for record in records],
        "completion_ids": [sample.token_ids for sample in samples],
        "logprobs": [sample.sampling_logprobs for sample in samples],
        "rewards": [record["rewards"] for record in records],
        "reward": [record["reward"] for record in records],
        "advantage": [sample.advantage for sample in samples],
        "finish_reason": [record["finish_reason"] for record in records],
        "trace": [json.dumps(sample.trace) for sample in samples],
    }
    for name in records[0]["extra"] if records else ():
        columns.setdefault(name, [record["extra"].get(name) for record in records])
    return columns


def _scored(values: Any) -> list[float]:
    return [float(value) for value in values if value is not None]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
