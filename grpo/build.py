"""From the sections of a recipe to objects: tokenizer, model, prompts, rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.adapters import add_lora, base_model
from ..models.hub import find_folder
from ..models.registry import PRESETS, load_model, resolve_kernels
from ..models.tokenizer import char_tokenizer, load_tokenizer
from ..rewards.compose import RewardSuite
from ..rewards.registry import load_rewards
from .config import Recipe
from .data import PromptSet, SFTSet, count_overlap, load_prompts, load_sft_rows
from .optim import optimizer_class
from .stage import check_trackers
from .tasks import TASKS
from .trainer import objective_of


@dataclass
class Materials:
    """What the stages of a recipe need besides the model; `None` where no stage needs it."""

    tokenizer: Any
    rewards: RewardSuite | None = None
    train: PromptSet | None = None
    held_out: PromptSet | None = None
    demonstrations: SFTSet | None = None
    overlap: int = 0  # train prompts that are also held out
    bad_golds: list[int] = field(default_factory=list)  # train rows that no answer can match


def build_tokenizer(recipe: Recipe) -> Any:
    """The tokenizer that `model.tokenizer` names, or the checkpoint's own.

    Raises ValueError where there is none.
    """
    model, data = recipe.model, recipe.data
    if model.path is None:
        raise ValueError("model.path is not set: name a checkpoint folder, a hub id or a preset")
    if model.tokenizer == "char":
        places = {data.train, data.eval, recipe.sft.train} & set(TASKS)
        if not places:
            raise ValueError(
                f"model.tokenizer = 'char': is for the built-in tasks ({', '.join(TASKS)}); "
                f"data.train is {data.train!r}"
            )
        return char_tokenizer("".join(TASKS[place].alphabet for place in places if place))
    if model.tokenizer is None and model.path in PRESETS:
        raise ValueError(
            f"model.path = {model.path!r}: a preset has no tokenizer; set model.tokenizer to "
            "a folder, a hub id, or char"
        )
    return load_tokenizer(model.tokenizer or find_folder(model.path))


def build_model(
    recipe: Recipe, tokenizer: Any, *, path: str | Path | None = None, device: Any = "cpu"
) -> nn.Module:
    """The policy that a stage trains: from `path` (a stage before), else from `model.path`."""
    settings = recipe.model
    place = str(path or settings.path)
    model: nn.Module = load_model(
        place,
        dtype=settings.dtype,
        device=device,
        kernels=settings.kernels,
        overrides=settings.overrides if place in PRESETS else None,
        vocab_size=len(tokenizer),
        seed=recipe.seed,
        quantization=settings.quantization,
    )
    base_model(model).gradient_checkpointing = settings.gradient_checkpointing
    if settings.lora is not None:
        lora = settings.lora
        model = add_lora(
            base_model(model),
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            target_modules=lora.target_modules,
            seed=recipe.seed,
        )
    return model


def build_materials(recipe: Recipe, tokenizer: Any, *, context_length: int) -> Materials:
    """Data and rewards of all stages, so that a mistake in any is found before the first runs.

    Raises ValueError, in one line, for whatever cannot be loaded or does not fit.
    """
    materials = Materials(tokenizer)
    for stage in recipe.stages:
        config = recipe.stage_config(stage)
        check_trackers(config.report_to)
        optimizer_class(config.optim)
    if "grpo" in recipe.stages:
        _check_objective(recipe)
        materials.rewards = load_rewards(recipe.rewards)
        longest = recipe.trainer.max_completion_length
        if longest >= context_length:
            raise ValueError(
                f"trainer.max_completion_length = {longest}: leaves no room for a prompt in the "
                f"model's context of {context_length} tokens"
            )
        room = {"tokenizer": tokenizer, "context_length": context_length - longest}
        materials.train = load_prompts(recipe.data, split="train", **room)
        if recipe.data.eval is not None:
            materials.held_out = load_prompts(recipe.data, split="eval", **room)
            materials.overlap = count_overlap(materials.train, materials.held_out)
        if any(reward.name == "math_answer" for reward in recipe.rewards):
            from ..rewards.math_answer import check_golds

            prompts = materials.train.prompts
            bad = check_golds([prompt.columns.get("answer") for prompt in prompts])
            materials.bad_golds = [prompts[i].index for i in bad]
    if "sft" in recipe.stages:
        materials.demonstrations = load_sft_rows(
            recipe.sft, recipe.data, tokenizer=tokenizer, context_length=context_length
        )
    return materials


def _check_objective(recipe: Recipe) -> None:
    if recipe.model.lora is not None and recipe.trainer.ref_refresh_steps:
        raise ValueError(
            f"trainer.ref_refresh_steps = {recipe.trainer.ref_refresh_steps}: under LoRA the "
            "reference is the frozen base model, which cannot be refreshed; set it to 0"
        )
    try:
        objective_of(recipe.trainer)
    except ValueError as error:
        unknown = str(error).removeprefix("preset=")
        name = "trainer.loss_type = " if unknown != str(error) else "trainer.objective: "
        raise ValueError(f"{name}{unknown}") from None


def describe_model(model: nn.Module, recipe: Recipe, device: Any) -> str:
    """One line for the header: name, size, precision, device."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = [f"{recipe.model.path}, {millions(total)} parameters"]
    if trained < total:
        parts.append(f"{millions(trained)} trained")
    kernels = resolve_kernels(recipe.model.kernels, device=device)
    parts += [recipe.model.dtype, f"{kernels} kernels"]
    if recipe.model.quantization != "none":
        parts.append(recipe.model.quantization)
    device = torch.device(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        parts.append(f"cpu, {threads} thread{'s' * (threads > 1)}")
    else:
        parts.append(str(device))
    return ", ".join(parts)


def millions(count: int) -> str:
    """A number of parameters: 0.09 M, 494 M, 8.03 B."""
    unit, scale = ("B", 1e9) if count >= 1e9 else ("M", 1e6)
    value = count / scale
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
