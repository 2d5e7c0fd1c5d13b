"""Every setting of a recipe, as a small tree of frozen dataclasses.

`Recipe` is the root. Each field carries its default and one line of documentation, which
`thinkrl train --explain KEY` prints. Reading YAML, overrides and error messages live in
`recipe.py`; nothing here touches a file.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

Kernels = Literal["auto", "torch", "triton"]


def setting(default: Any, doc: str) -> Any:
    """A dataclass field with its default and the line that `--explain` prints."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"doc": doc})
    if callable(default):
        return field(default_factory=default, metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): train these instead of the weights."""

    rank: int = setting(16, "rank r of the adapters")
    alpha: float = setting(32.0, "scale: the update is multiplied by alpha / rank")
    dropout: float = setting(0.0, "dropout on the adapters' input; makes runs noisier, not safer")
    target_modules: tuple[str, ...] = setting(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "names of the linear layers that get an adapter",
    )


@dataclass(frozen=True)
class ModelConfig:
    """Which policy is trained."""

    path: str | None = setting(
        None, "checkpoint folder, Hugging Face id, or the name of a preset of models/registry.py"
    )
    overrides: dict[str, Any] = setting(
        {}, "changes to a preset's sizes (hidden_size: 64, ...); only where path is a preset"
    )
    tokenizer: str | None = setting(
        None,
        "folder or Hugging Face id; default: the checkpoint's own; `char` builds a character "
        "tokenizer for a built-in task",
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the weights; with float32, trainer.bf16 still computes in bfloat16"
    )
    kernels: Kernels = setting("auto", "attention kernels; auto is resolved once, at start")
    gradient_checkpointing: bool = setting(False, "recompute activations: less memory, more time")
    lora: LoraConfig | None = setting(None, "train LoRA adapters; absent: all weights")
    quantization: Literal["none", "4bit", "8bit"] = setting(
        "none", "load the frozen base quantised (QLoRA); needs lora and bitsandbytes"
    )


@dataclass(frozen=True)
class DataConfig:
    """Where prompts come from and how a row becomes a prompt."""

    train: str | None = setting(
        None, "built-in task (walk, countdown, arithmetic), file (.jsonl .json .csv .parquet) or id"
    )
    eval: str | None = setting(None, "held-out rows, same forms; absent: no evaluation")
    train_split: str | None = setting(None, "split of a hub dataset or of a task (default: train)")
    eval_split: str | None = setting(None, "split for eval (default: test, or a task's eval split)")
    columns: dict[str, str] = setting(
        {}, "our column: theirs; prompt and answer are ours, e.g. {prompt: question}"
    )
    task: dict[str, Any] = setting({}, "arguments of a built-in task, e.g. {moves: 12}")
    template: str = setting(
        "none", "none, r1_zero, r1_zero_think, boxed, chat, a Jinja string, or a .jinja file"
    )
    system_prompt: str | None = setting(None, "system message of the chat template")
    max_prompt_length: int | None = setting(
        None, "tokens; longer prompts are dropped and counted; absent: the model's context"
    )
    limit: int | None = setting(None, "use only the first so many training rows")
    eval_limit: int | None = setting(None, "use only the first so many eval rows")


@dataclass(frozen=True)
class RewardConfig:
    """One reward function of the weighted sum."""

    name: str = setting(
        "exact_answer", "built-in, package.module:function, or path/file.py:function"
    )
    weight: float = setting(1.0, "factor in the sum")
    kwargs: dict[str, Any] = setting({}, "passed to the function by keyword")
    weights: dict[str, float] = setting(
        {}, "weight from a step on, e.g. {0: 1.0, 100: 0.5}; before the first of them: weight"
    )
    timeout_s: float | None = setting(
        None, "seconds a call may take (a batch, or a row); then its rows are unscored and counted"
    )
    only_if: str | None = setting(
        None, "name of another reward; where that one is not above 0, this one is 0"
    )
    clip: tuple[float, ...] | None = setting(None, "[lowest, highest] before the weight")
    in_worker: bool = setting(
        False, "run in a process that can be killed: for CPU-heavy functions, and ones that hang"
    )


@dataclass(frozen=True)
class RolloutConfig:
    """The engine that samples completions."""

    engine: Literal["torch"] = setting("torch", "torch: our own, continuous batching")
    max_batch_size: int = setting(256, "rows decoded side by side; bounds the KV cache")


@dataclass(frozen=True)
class OptimConfig:
    """What every training stage shares: steps, optimizer, saving, logging."""

    max_steps: int = setting(100, "optimizer steps")
    learning_rate: float = setting(1e-6, "peak learning rate")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = setting(
        "constant", "shape of the learning rate after the warm-up"
    )
    warmup_steps: int = setting(0, "steps of linear warm-up")
    optim: Literal["adamw", "adamw_8bit", "adamw_paged", "adamw_cpu_offload"] = setting(
        "adamw", "adamw; 8-bit or paged (bitsandbytes); states kept on the CPU (torchao)"
    )
    adam_beta1: float = setting(0.9, "AdamW beta1")
    adam_beta2: float = setting(0.95, "AdamW beta2")
    adam_epsilon: float = setting(1e-8, "AdamW epsilon")
    weight_decay: float = setting(0.0, "AdamW weight decay")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm; 0 = off")
    bf16: bool = setting(False, "compute in bfloat16 (autocast); weights and optimizer unchanged")
    micro_batch_size: int | None = setting(
        None, "sequences per forward pass on each process; absent: as many as fit the tokens below"
    )
    micro_batch_tokens: int = setting(16384, "tokens per forward pass on each process; memory knob")
    packing: bool = setting(True, "lay sequences end to end without padding")
    save_steps: int = setting(
        100,
        "a checkpoint every so many steps; at the end, and of the best evaluation, there is one",
    )
    save_total_limit: int = setting(2, "checkpoints kept (best and latest always are)")
    eval_steps: int = setting(0, "evaluate every so many steps; 0 = before and after only")
    report_to: tuple[str, ...] = setting((), "trackers: tensorboard, wandb, trackio")
    seed: int | None = setting(None, "seed of this stage; absent: the recipe's")


@dataclass(frozen=True)
class GRPOConfig(OptimConfig):
    """The `trainer` section: GRPO. Usable from Python as it is; TRL's names where they exist."""

    batch_size: int = setting(64, "completions per optimizer step, over all processes")
    num_generations: int = setting(8, "G: completions per prompt")
    steps_per_generation: int = setting(1, "optimizer steps that one round of sampling feeds")
    num_iterations: int = setting(1, "mu: passes over each sampled batch")
    shuffle_dataset: bool = setting(True, "a new order of prompts each epoch, from the seed")
    shared_prefix: bool = setting(True, "compute a group's prompt once in training (exact)")

    max_completion_length: int = setting(256, "tokens")
    temperature: float = setting(1.0, "sampling temperature; also of the log-probs in the ratio")
    top_p: float = setting(1.0, "nucleus sampling; 1 = off")
    top_k: int = setting(0, "top-k sampling; 0 = off")
    min_p: float = setting(0.0, "min-p sampling; 0 = off")
    stop: tuple[str, ...] = setting((), "strings that end a completion")

    loss_type: str = setting("grpo", "row of the preset table in objectives.py")
    beta: float = setting(0.0, "weight of the KL to the reference; 0 loads no reference")
    epsilon: float | None = setting(None, "clip range below (and above); absent: the preset's")
    epsilon_high: float | None = setting(None, "clip range above; absent: the preset's")
    delta: float | None = setting(None, "upper bound of the two-sided clip; absent: the preset's")
    kl_estimator: Literal["k1", "k2", "k3"] | None = setting(None, "absent: the preset's")
    importance_sampling_level: Literal["token", "sequence"] | None = setting(
        None, "ratio per token or per sequence (GSPO); absent: the preset's"
    )
    scale_rewards: Literal["group", "batch", "none"] | None = setting(
        None, "what advantages are divided by; absent: the preset's"
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = setting(
        "sum_then_normalize", "normalize_then_sum: each reward by itself (GDPO, arXiv 2601.05242)"
    )
    objective: dict[str, Any] = setting({}, "any other field of objectives.Objective")

    ref_refresh_steps: int = setting(0, "copy the policy into the reference so often; 0 = never")
    dynamic_sampling: bool = setting(
        False, "resample until every group of the batch has signal (DAPO, arXiv 2503.14476)"
    )
    max_sampling_rounds: int = setting(5, "bound of dynamic sampling, in rounds a batch")
    filter_equal_groups: bool = setting(False, "leave groups whose rewards are all equal out")
    mask_truncated_completions: bool = setting(False, "completions cut by length do not train")
    soft_overlong_cache: int = setting(0, "DAPO's soft length penalty over the last so many tokens")
    eval_num_generations: int = setting(4, "k of pass@k: samples per held-out prompt")
    eval_greedy: bool = setting(True, "also evaluate one greedy completion per prompt")

    rollouts_disk_mb: int = setting(2048, "budget for rollouts/ in the run folder; oldest go first")
    run_dir: str | None = setting(None, "run folder; absent: runs/<recipe>-<date>-<time>")
    rollout: RolloutConfig = setting(RolloutConfig, "the engine; a recipe sets it at its top level")

    def __post_init__(self) -> None:
        check_grpo(self)


@dataclass(frozen=True)
class SFTConfig(OptimConfig):
    """The `sft` section: supervised fine-tuning on completions."""

    train: str | None = setting(None, "rows with prompt and completion; absent: data.train")
    columns: dict[str, str] = setting({}, "our column: theirs; absent: data.columns")
    task: dict[str, Any] = setting({}, "arguments of a built-in task; added to data.task")
    batch_size: int = setting(64, "sequences per optimizer step, over all processes")
    max_length: int | None = setting(None, "tokens; longer rows are dropped and counted")

    def __post_init__(self) -> None:
        check_optim(self, "sft")
        counts = {
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "max_length": ((self.max_length or 1) >= 1, "at least 1"),
        }
        _check_bounds(self, "sft", counts)


@dataclass(frozen=True)
class Recipe:
    """A whole run: stages, and the settings each reads."""

    name: str = setting("", "used for the run folder; absent: the file's name")
    question: str = setting("", "what this recipe finds out; shown at the top of a run")
    stages: tuple[Literal["sft", "grpo"], ...] = setting(("grpo",), "run in this order")
    seed: int = setting(0, "seed of everything: data order, sampling, initial weights")
    run_dir: str | None = setting(None, "run folder; absent: runs/<recipe>-<date>-<time>")
    cpu_threads: int | None = setting(None, "threads torch uses on the CPU; absent: its own choice")
    model: ModelConfig = setting(ModelConfig, "the policy")
    data: DataConfig = setting(DataConfig, "prompts")
    rewards: tuple[RewardConfig, ...] = setting(
        lambda: (RewardConfig(),), "reward functions, weighted and summed"
    )
    rollout: RolloutConfig = setting(RolloutConfig, "the engine that samples")
    trainer: GRPOConfig = setting(GRPOConfig, "GRPO")
    sft: SFTConfig = setting(SFTConfig, "supervised fine-tuning")

    def __post_init__(self) -> None:
        check_recipe(self)

    def stage_config(self, stage: str) -> GRPOConfig | SFTConfig:
        """The settings of one stage with the recipe's seed, engine and run folder filled in."""
        if stage == "sft":
            return dataclasses.replace(self.sft, seed=_first(self.sft.seed, self.seed))
        return dataclasses.replace(
            self.trainer,
            seed=_first(self.trainer.seed, self.seed),
            run_dir=_first(self.run_dir, self.trainer.run_dir),
            rollout=self.rollout,
        )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def check_recipe(recipe: Recipe) -> None:
    """Raise ValueError where sections contradict each other; the message starts with the key."""
    counts = {
        "cpu_threads": recipe.cpu_threads,
        "data.limit": recipe.data.limit,
        "data.eval_limit": recipe.data.eval_limit,
        "data.max_prompt_length": recipe.data.max_prompt_length,
        "rollout.max_batch_size": recipe.rollout.max_batch_size,
    }
    for key, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{key} = {count}: must be at least 1")
    if not recipe.stages or len(set(recipe.stages)) < len(recipe.stages):
        raise ValueError(f"stages = {list(recipe.stages)}: name each stage once: sft, grpo")
    if not recipe.rewards and "grpo" in recipe.stages:
        raise ValueError("rewards = []: must name at least one reward function")
    for number, reward in enumerate(recipe.rewards):
        _check_bounds(reward, f"rewards.{number}", _reward_bounds(reward))
    if recipe.model.quantization != "none" and recipe.model.lora is None:
        raise ValueError(
            f"model.quantization = {recipe.model.quantization}: quantised weights cannot be "
            "trained; train adapters on them with model.lora={}"
        )
    if recipe.trainer.eval_steps and recipe.data.eval is None:
        raise ValueError(f"trainer.eval_steps = {recipe.trainer.eval_steps}: needs data.eval")


def _reward_bounds(reward: RewardConfig) -> dict[str, tuple[bool, str]]:
    clip = reward.clip
    return {
        "timeout_s": (reward.timeout_s is None or reward.timeout_s > 0, "above 0"),
        "clip": (clip is None or (len(clip) == 2 and clip[0] <= clip[1]), "[lowest, highest]"),
        "weights": (all(step.isdigit() for step in reward.weights), "a weight by step, {0: 1.0}"),
    }


def check_optim(config: OptimConfig, section: str) -> None:
    """Raise ValueError for a value outside its range; the message starts with the key."""
    bounds: dict[str, tuple[bool, str]] = {
        "max_steps": (config.max_steps >= 1, "at least 1"),
        "learning_rate": (0 <= config.learning_rate < 10, "a rate between 0 and 10"),
        "warmup_steps": (config.warmup_steps >= 0, "0 or more"),
        "micro_batch_tokens": (config.micro_batch_tokens >= 1, "at least 1"),
        "micro_batch_size": ((config.micro_batch_size or 1) >= 1, "at least 1"),
        "adam_beta1": (0 <= config.adam_beta1 < 1, "in [0, 1)"),
        "adam_beta2": (0 <= config.adam_beta2 < 1, "in [0, 1)"),
        "adam_epsilon": (config.adam_epsilon >= 0, "0 or more"),
        "weight_decay": (config.weight_decay >= 0, "0 (off) or more"),
        "max_grad_norm": (config.max_grad_norm >= 0, "0 (off) or more"),
        "save_steps": (config.save_steps >= 0, "0 (only at the end) or more"),
        "save_total_limit": (config.save_total_limit >= 1, "at least 1"),
        "eval_steps": (config.eval_steps >= 0, "0 (before and after only) or more"),
    }
    _check_bounds(config, section, bounds)


def check_grpo(config: GRPOConfig) -> None:
    """Raise ValueError for a value out of range or a combination that cannot work."""
    section = "trainer"
    check_optim(config, section)
    bounds = {
        "batch_size": (config.batch_size >= 1, "at least 1"),
        "num_generations": (
            config.num_generations >= 2,
            "at least 2: an advantage compares the completions of one prompt",
        ),
        "steps_per_generation": (config.steps_per_generation >= 1, "at least 1"),
        "num_iterations": (config.num_iterations >= 1, "at least 1"),
        "max_completion_length": (config.max_completion_length >= 1, "at least 1"),
        "temperature": (config.temperature > 0, "above 0: greedy samples are all equal"),
        "top_p": (0 < config.top_p <= 1, "in (0, 1]"),
        "top_k": (config.top_k >= 0, "0 (off) or more"),
        "min_p": (0 <= config.min_p < 1, "in [0, 1)"),
        "beta": (config.beta >= 0, "0 (no reference) or more"),
        "epsilon": (config.epsilon is None or config.epsilon >= 0, "0 or more"),
        "epsilon_high": (config.epsilon_high is None or config.epsilon_high >= 0, "0 or more"),
        "delta": (config.delta is None or config.delta > 0, "above 0"),
        "ref_refresh_steps": (
            config.ref_refresh_steps == 0 or (config.ref_refresh_steps > 0 and config.beta > 0),
            "0 (never), or a number of steps with trainer.beta above 0",
        ),
        "max_sampling_rounds": (config.max_sampling_rounds >= 1, "at least 1"),
        "rollouts_disk_mb": (config.rollouts_disk_mb >= 0, "0 (only the newest) or more"),
        "eval_num_generations": (config.eval_num_generations >= 1, "at least 1"),
        "soft_overlong_cache": (
            0 <= config.soft_overlong_cache < config.max_completion_length,
            "0 (off) or less than trainer.max_completion_length",
        ),
    }
    _check_bounds(config, section, bounds)
    if config.batch_size % config.num_generations:
        below = config.batch_size // config.num_generations * config.num_generations
        near = [str(n) for n in (below, below + config.num_generations) if n]
        raise ValueError(
            f"trainer.batch_size = {config.batch_size} is not divisible by trainer.num_generations "
            f"= {config.num_generations}: a group must not be split; use "
            f"{' or '.join(near)}"
        )


def _check_bounds(config: Any, section: str, bounds: dict[str, tuple[bool, str]]) -> None:
    for key, (holds, wanted) in bounds.items():
        if not holds:
            raise ValueError(f"{section}.{key} = {getattr(config, key)!r}: must be {wanted}")
