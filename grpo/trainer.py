"""GRPO (2402.03300, 2501.12948): sample, score, advantages, log-probs, objective, step, sync."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.adapters import has_lora
from ..models.registry import load_model
from ..models.tokenizer import eos_token_ids, load_tokenizer
from ..rewards.compose import RewardSuite
from ..rewards.registry import load_reward
from ..rewards.signature import RewardError
from . import checkpoint as ckpt
from .batch import MicroBatch, Sample, shard
from .config import GRPOConfig
from .credit import assign_advantages
from .data import PromptOrder, PromptSet, as_prompts
from .distributed import gather_interleaved, gather_objects, on_every_process, on_first_process
from .evaluate import evaluate
from .objectives import (
    Metrics,
    Objective,
    loss_denominator,
    policy_loss,
    resolve,
    top_entropy_threshold,
)
from .rollout.engine import Prompt, RolloutEngine, Sampling, make_engine
from .scoring import all_unscored, has_signal, rollout_columns, rollout_metrics, score_groups
from .stage import Stage
from .terminal import RunDisplay
from .tracking import RunFolder, new_run_dir

MAX_UNSCORED_ROUNDS = 3  # of sampling, in a row, once training has begun

RewardFunction = str | Callable[..., Any]


@dataclasses.dataclass
class Cycle:
    """What one round of sampling feeds: optimizer steps over its samples, `used` of them done."""

    samples: list[Sample]
    metrics: dict[str, float]
    used: int = 0


class GRPOTrainer(Stage):
    """Group-relative policy optimisation of one of the package's models.

    `model` is a model, a PEFT-wrapped one, or a path or preset for `load_model`. `reward_funcs`
    have TRL's signature, or are names that `rewards.registry.load_reward` knows. The datasets are
    lists of rows with a `prompt` (text or messages) and further columns, a `datasets.Dataset`, or
    a `PromptSet`. Raises ValueError for what cannot work, before anything is sampled.
    """

    name = "grpo"

    def __init__(
        self,
        model: nn.Module | str,
        reward_funcs: RewardFunction | RewardSuite | Sequence[RewardFunction],
        config: GRPOConfig | None = None,
        train_dataset: PromptSet | Iterable[dict[str, Any]] | None = None,
        eval_dataset: PromptSet | Iterable[dict[str, Any]] | None = None,
        tokenizer: Any = None,
        *,
        reward_weights: Sequence[float] | None = None,
        engine: RolloutEngine | None = None,
        folder: RunFolder | None = None,
        display: RunDisplay | None = None,
    ) -> None:
        config = config or GRPOConfig()
        model, tokenizer = _model_and_tokenizer(model, tokenizer)
        if train_dataset is None:
            raise ValueError("train_dataset: missing; give rows with a prompt")
        self.train_prompts = _prompt_set(train_dataset, tokenizer, "train_dataset")
        self.eval_prompts = (
            None if eval_dataset is None else _prompt_set(eval_dataset, tokenizer, "eval_dataset")
        )
        self.rewards = _reward_suite(reward_funcs, reward_weights)
        self.objective = objective_of(config)
        if config.ref_refresh_steps and has_lora(model):
            raise ValueError(
                "trainer.ref_refresh_steps: under LoRA the reference is the frozen base model, "
                "which cannot be refreshed; set it to 0"
            )
        folder = folder or RunFolder(config.run_dir or on_first_process(_own_run_dir))
        super().__init__(model, config, tokenizer=tokenizer, folder=folder, display=display)
        self.config: GRPOConfig = config
        self.order = PromptOrder(
            len(self.train_prompts.prompts), seed=self.seed, shuffle=config.shuffle_dataset
        )
        self.engine = engine or make_engine(
            config.rollout,
            self.model,
            tokenizer,
            eos_token_ids=eos_token_ids(tokenizer, self.policy.model_config),
            bf16=config.bf16,
        )
        self.cycle: Cycle | None = None
        self._unscored_rounds = 0
        if config.beta:
            self.policy.keep_reference()

    @property
    def steps_per_cycle(self) -> int:
        """Optimizer steps that one round of sampling feeds."""
        return self.config.num_iterations * self.config.steps_per_generation

    def train_step(self) -> dict[str, float]:
        """One optimizer step; every `steps_per_cycle`-th samples first."""
        if self.cycle is None:
            self.cycle = self.collect()
        cycle, config = self.cycle, self.config
        part = cycle.used % config.steps_per_generation
        samples = shard(cycle.samples, rank=part, world_size=config.steps_per_generation)
        with self.timed("train"):
            metrics = self.update(samples)
        metrics |= rollout_metrics(samples) | cycle.metrics
        cycle.used += 1
        if cycle.used >= self.steps_per_cycle:  # a resume may have shortened the cycle
            self.cycle = None
        refresh = config.ref_refresh_steps
        if config.beta and refresh and (self.step + 1) % refresh == 0:
            self.policy.keep_reference()
        return metrics

    # -- sample, score, advantages --------------------------------------------------------------

    def collect(self) -> Cycle:
        """One round of sampling, scored, with advantages and the log-probs that the steps need."""
        with self.timed("sync"):
            self.engine.sync(self.policy, version=self.step)
        groups, left_out, metrics = self._sample_groups()
        self._check_scored(groups)
        kept = [g for g in groups if has_signal(g)] if self.config.filter_equal_groups else groups
        samples = [sample for group in kept for sample in group]
        if len(kept) < len(groups):  # what is reported is the policy's, not the selection's
            metrics |= rollout_metrics([sample for group in groups for sample in group])
        with self.timed("train"):
            self._log_probs(samples)
        several = self.config.multi_objective_aggregation == "normalize_then_sum"
        weights = self.rewards.weights if several else None
        assign_advantages(kept, self.objective, reward_weights=weights)
        self._write_rollouts([sample for group in [*groups, *left_out] for sample in group])
        return Cycle(samples, metrics)

    def _check_scored(self, groups: list[list[Sample]]) -> None:
        """Raise RewardError when no completion is scored at first, or some rounds in a row."""
        self._unscored_rounds = self._unscored_rounds + 1 if all_unscored(groups) else 0
        if self._unscored_rounds >= (MAX_UNSCORED_ROUNDS if self.step else 1):
            raise RewardError(
                f"rewards: {', '.join(self.rewards.functions)} gave None for all "
                f"{sum(map(len, groups))} completions; None means not scored: nothing would be "
                "learned"
            )

    def _sample_groups(self) -> tuple[list[list[Sample]], list[list[Sample]], dict[str, float]]:
        """Scored groups to train on; with dynamic sampling, those with signal, and the others."""
        config = self.config
        wanted = config.batch_size * config.steps_per_generation // config.num_generations
        if not config.dynamic_sampling:
            return self._sample_round(wanted), [], {}
        kept: list[list[Sample]] = []
        left_out: list[list[Sample]] = []
        rounds = 0
        while len(kept) < wanted and rounds < config.max_sampling_rounds:
            for group in self._sample_round(wanted - len(kept)):
                (kept if has_signal(group) else left_out).append(group)
            rounds += 1
        if not kept:  # the step moves nothing, and the metrics say so
            kept, left_out = left_out[-wanted:], left_out[:-wanted]
        counts = {"dynamic_sampling/rounds": rounds, "dynamic_sampling/groups": len(kept)}
        return kept, left_out, {name: float(count) for name, count in counts.items()}

    def _sample_round(self, num_prompts: int) -> list[list[Sample]]:
        """Groups of the next prompts of the order, sampled and scored; on every process."""
        first = self.order.position
        rows = self.order.take(num_prompts)
        # The draw number seeds a prompt's noise: another epoch draws other completions.
        prompts = [
            dataclasses.replace(self.train_prompts.prompts[row], index=first + i)
            for i, row in enumerate(rows)
        ]
        mine = prompts[self.accelerator.process_index :: self.accelerator.num_processes]
        scored = on_every_process(lambda: self._sample_and_score(mine))
        return gather_interleaved(scored)

    def _sample_and_score(self, prompts: Sequence[Prompt]) -> list[list[Sample]]:
        sampling = sampling_of(self.config, self.seed)
        with self.timed("rollout"):
            sampled = self.engine.generate(prompts, sampling) if prompts else []
        with self.timed("reward"):
            return score_groups(self.rewards, sampled, config=self.config, step=self.step)

    def _write_rollouts(self, samples: list[Sample]) -> None:
        if self.is_main:
            step = self.step + 1
            columns = rollout_columns(step, samples)
            self.folder.write_rollouts(step, columns, budget_mb=self.config.rollouts_disk_mb)

    # -- log-probs, objective, step ---------------------------------------------------------------

    @torch.no_grad()
    def _log_probs(self, samples: list[Sample]) -> None:
        """Old log-probs where steps of this cycle will see a changed policy; reference's with beta.

        Taken in the micro-batches that the steps use, so that the first ratio is exactly 1. A KL
        in the reward needs both before there are advantages.
        """
        in_reward = self.config.beta > 0 and self.objective.kl_place == "reward"
        old_needed = self.steps_per_cycle > 1 or in_reward
        if not samples or not (old_needed or self.config.beta):
            return
        self.model.eval()
        parts = self.config.steps_per_generation
        for part in range(parts):
            block = shard(samples, rank=part, world_size=parts)
            runs, _ = self.my_runs(block) if block else ([], 0)
            for run in runs:
                batch = self.collate(run)
                if old_needed:
                    store(run, "old_logprobs", self.policy.token_logprobs(batch)[0])
                if self.config.beta:
                    store(run, "ref_logprobs", self.policy.reference_logprobs(batch))

    def update(self, samples: list[Sample]) -> dict[str, float]:
        """One optimizer step on these samples of all processes."""
        trained = sum(sample.num_trained for sample in samples)
        tokens = sum(len(sample.prompt_ids) + len(sample.token_ids) for sample in samples)
        if not samples:  # every group was filtered out
            return {"loss": 0.0, "grad_norm": 0.0, "step_tokens": 0.0}
        lengths_B = torch.tensor([sample.num_trained for sample in samples])
        denominator = max(loss_denominator(lengths_B, self.objective), 1.0)
        threshold = self._entropy_threshold(samples)

        def loss_of(batch: MicroBatch) -> tuple[Tensor, Metrics]:
            logprobs_BT, entropy_BT = self.policy.token_logprobs(batch)
            return policy_loss(
                logprobs_BT,
                batch.tokenwise("old_logprobs"),
                batch.advantages(),
                batch.mask_BT,
                preset=self.objective,
                ref_logprobs_BT=batch.tokenwise("ref_logprobs"),
                sampling_logprobs_BT=batch.tokenwise("sampling_logprobs"),
                entropy_BT=entropy_BT,
                denominator=denominator,
                num_tokens=float(max(trained, 1)),
                entropy_threshold=threshold,
            )

        return {**self.optimize(samples, loss_of), "step_tokens": float(tokens)}

    @torch.no_grad()
    def _entropy_threshold(self, samples: list[Sample]) -> float | None:
        """The bound of the top-entropy mask over all micro-batches and processes of the step."""
        if self.objective.top_entropy_quantile >= 1:
            return None
        runs, idle = self.my_runs(samples)
        entropies = []
        for i, run in enumerate(runs):
            batch = self.collate(run)
            entropy_BT = self.policy.token_logprobs(batch)[1]
            if i < len(runs) - idle:
                entropies.append(entropy_BT[batch.mask_BT > 0].float().cpu())
        entropy_N = torch.cat(gather_objects(entropies))
        if not len(entropy_N):  # every completion is masked out
            return None
        return float(top_entropy_threshold(entropy_N, self.objective.top_entropy_quantile))

    # -- evaluation, state ------------------------------------------------------------------------

    def evaluate(self) -> float | None:
        """Sample and score the held-out prompts; `best` goes by their mean reward."""
        if self.eval_prompts is None:
            return None
        self.engine.sync(self.policy, version=self.step)
        metrics, example = evaluate(
            self.engine,
            self.eval_prompts.prompts,
            self.rewards,
            config=self.config,
            sampling=sampling_of(self.config, self.seed),
            step=self.step,
        )
        self.log_row(metrics)
        if self.is_main:
            self.display.evaluation(self.step, metrics)
            if self.step in (0, self.config.max_steps):
                record = example.record
                title = "before" if self.step == 0 else "after"
                self.display.sample(title, record["prompt"], record["completion"], record["reward"])
        return metrics["eval/reward"]

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where the order stands, and the round of sampling that is half used, if one is."""
        counters: dict[str, Any] = {"position": self.order.position}
        tensors: dict[str, Any] = {}
        if self.cycle is not None:
            tensors["cycle"] = dataclasses.asdict(self._whole_cycle(self.cycle))
        if self.config.ref_refresh_steps and self.policy.reference is not None:
            tensors["reference"] = self.policy.reference.state_dict()
        return counters, tensors

    def load_state(self, counters: dict[str, Any], folder: Path) -> None:
        """Put back what `state` returned."""
        self.order.position = counters["position"]
        if (folder / ckpt.STATE / "cycle.pt").is_file():
            cycle = ckpt.read_tensors(folder, "cycle")
            cycle["samples"] = [Sample(**sample) for sample in cycle["samples"]]
            self.cycle = Cycle(**cycle)
        if (folder / ckpt.STATE / "reference.pt").is_file():
            assert self.policy.reference is not None
            self.policy.reference.load_state_dict(ckpt.read_tensors(folder, "reference"))

    def _whole_cycle(self, cycle: Cycle) -> Cycle:
        """The cycle with the log-probs of all processes' samples: each holds its own only."""
        mine = [
            (i, sample.old_logprobs, sample.ref_logprobs)
            for i, sample in enumerate(cycle.samples)
            if sample.old_logprobs is not None or sample.ref_logprobs is not None
        ]
        samples = list(cycle.samples)
        for i, old, ref in gather_objects(mine):
            samples[i] = dataclasses.replace(samples[i], old_logprobs=old, ref_logprobs=ref)
        return dataclasses.replace(cycle, samples=samples)


def objective_of(config: GRPOConfig) -> Objective:
    """The preset's row with the settings that the configuration overrides."""
    named = ("epsilon", "epsilon_high", "delta", "kl_estimator", "importance_sampling_level")
    overrides = {name: getattr(config, name) for name in (*named, "scale_rewards")}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    overrides |= {"max_completion_length": config.max_completion_length, "beta": config.beta}
    if "beta" in config.objective:
        raise ValueError("beta: is trainer.beta, which also decides whether a reference is loaded")
    objective = resolve(config.loss_type, **(overrides | config.objective))
    apart = config.multi_objective_aggregation == "normalize_then_sum"
    if apart and objective.beta and objective.kl_place == "reward":
        raise ValueError(
            "kl_place='reward': there is no summed reward to take the KL from where "
            "multi_objective_aggregation is normalize_then_sum; set kl_place to loss, or beta to 0"
        )
    return objective


def sampling_of(config: GRPOConfig, seed: int) -> Sampling:
    """How training completions are drawn."""
    return Sampling(
        num_generations=config.num_generations,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        stop=config.stop,
        seed=seed,
    )


def store(samples: Sequence[Sample], name: str, values_BT: Tensor) -> None:
    """Keep per-token values of a micro-batch with its samples."""
    for sample, values_T in zip(samples, values_BT.cpu(), strict=True):
        setattr(sample, name, values_T[: len(sample.token_ids)].clone())


def _model_and_tokenizer(model: nn.Module | str, tokenizer: Any) -> tuple[nn.Module, Any]:
    if isinstance(model, str):
        tokenizer = tokenizer or load_tokenizer(model)
        model = load_model(model)
    if tokenizer is None:
        raise ValueError("tokenizer: missing; a model that is not a path needs one")
    return model, tokenizer


def _own_run_dir() -> Path:
    return new_run_dir("grpo")


def _reward_suite(reward_funcs: Any, weights: Sequence[float] | None) -> RewardSuite:
    if isinstance(reward_funcs, RewardSuite):
        return reward_funcs
    one = callable(reward_funcs) or isinstance(reward_funcs, str)
    functions: list[Any] = [reward_funcs] if one else [*reward_funcs]  # type: ignore[misc]
    loaded = [load_reward(f) if isinstance(f, str) else f for f in functions]
    return RewardSuite(loaded, weights)


def _prompt_set(dataset: Any, tokenizer: Any, name: str) -> PromptSet:
    prompts = (
        dataset if isinstance(dataset, PromptSet) else as_prompts(dataset, tokenizer=tokenizer)
    )
    if not prompts.prompts:
        raise ValueError(
            f"{name}: no prompt left to train on ({prompts.dropped} dropped as too long)"
        )
    return prompts
