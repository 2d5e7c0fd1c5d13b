"""Held-out evaluation: mean reward and unbiased pass@k of sampled and greedy completions."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import torch.distributed as dist

from ..rewards.compose import RewardSuite
from .batch import Sample
from .config import GRPOConfig
from .distributed import gather_interleaved, on_every_process
from .rollout.engine import Prompt, RolloutEngine, Sampling
from .scoring import score_groups

_SEED_OFFSET = 1 << 32  # noise that training never draws
PASS_THRESHOLD = 0.5  # of the first reward function: above it, a completion solves its prompt


def evaluate(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    rewards: RewardSuite,
    *,
    config: GRPOConfig,
    sampling: Sampling,
    step: int,
) -> tuple[dict[str, float], Sample]:
    """Metrics `eval/...` over all prompts, and the first completion as an example.

    `eval/pass@k` for k = 1, 2, 4, ... up to `eval_num_generations` samples of a prompt, and with
    `eval_greedy` also `eval/greedy/...` of one greedy completion. The noise is the same at every
    evaluation: a change of a metric is a change of the policy.
    """
    sampling = dataclasses.replace(sampling, seed=sampling.seed + _SEED_OFFSET)
    n = config.eval_num_generations
    draw = dataclasses.replace(sampling, num_generations=n)
    groups = _sampled(engine, prompts, rewards, config=config, sampling=draw, step=step)
    names = list(rewards.functions)
    metrics = {f"eval/{name}": value for name, value in _summary(groups, names).items()}
    if config.eval_greedy:
        greedy = dataclasses.replace(sampling, num_generations=1, temperature=0.0)
        answers = _sampled(engine, prompts, rewards, config=config, sampling=greedy, step=step)
        summary = _summary(answers, names)
        metrics |= {f"eval/greedy/{name}": value for name, value in summary.items()}
    return metrics, groups[0][0]


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Probability that at least one of k draws passes, unbiased from n samples (2107.03374)."""
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def _sampled(
    engine: RolloutEngine,
    prompts: Sequence[Prompt],
    rewards: RewardSuite,
    *,
    config: GRPOConfig,
    sampling: Sampling,
    step: int,
) -> list[list[Sample]]:
    """Scored groups of all prompts, each process sampling its share."""
    running = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if running else (0, 1)
    mine = prompts[rank::world_size]

    def scored() -> list[list[Sample]]:
        groups = engine.generate(mine, sampling) if mine else []
        return score_groups(rewards, groups, config=config, step=step)

    return gather_interleaved(on_every_process(scored))


def _summary(groups: Sequence[Sequence[Sample]], names: Sequence[str]) -> dict[str, float]:
    samples = [sample for group in groups for sample in group]
    rewards = [s.record["reward"] for s in samples if s.record["reward"] is not None]
    summary = {
        "reward": statistics.fmean(rewards) if rewards else float("nan"),
        "completions/mean_length": statistics.fmean(len(s.token_ids) for s in samples),
    }
    for name in names:
        values = [s.record["rewards"][name] for s in samples]
        scored = [value for value in values if value is not None]
        summary[f"rewards/{name}/mean"] = statistics.fmean(scored) if scored else float("nan")
    n = len(groups[0])
    passed = [sum(_passes(sample, names[0]) for sample in group) for group in groups]
    k = 1
    while k <= n:
        summary[f"pass@{k}"] = statistics.fmean(pass_at_k(n, c, k) for c in passed)
        k *= 2
    return summary


def _passes(sample: Sample, name: str) -> bool:
    return (sample.record["rewards"][name] or 0.0) > PASS_THRESHOLD
