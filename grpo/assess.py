"""`thinkrl eval`: a checkpoint scored on the held-out rows of its recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..models.adapters import base_model
from ..models.tokenizer import eos_token_ids
from ..rewards.registry import load_rewards
from .build import build_model, build_tokenizer, describe_model
from .config import Recipe
from .data import load_prompts
from .distributed import process_state
from .evaluate import evaluate
from .recipe import load_recipe
from .rollout.engine import make_engine
from .terminal import clean, number, shorten
from .trainer import sampling_of


def evaluate_target(
    target: str, overrides: Sequence[str] = (), *, as_json: bool = False
) -> dict[str, float]:
    """Evaluate a recipe's model, or the checkpoint of a run, and print the metrics.

    `target` is a recipe, a run folder (its `final/` is taken), or a checkpoint inside one.
    """
    recipe = recipe_of(target, overrides)
    if recipe.cpu_threads is not None:
        torch.set_num_threads(recipe.cpu_threads)
    device = process_state().device
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer, device=device).to(device)
    config = base_model(model).config
    room = config.max_position_embeddings - recipe.trainer.max_completion_length
    prompts = load_prompts(recipe.data, split="eval", tokenizer=tokenizer, context_length=room)
    engine = make_engine(
        recipe.rollout,
        model,
        tokenizer,
        eos_token_ids=eos_token_ids(tokenizer, config),
        bf16=recipe.trainer.bf16,
    )
    metrics, example = evaluate(
        engine,
        prompts.prompts,
        load_rewards(recipe.rewards),
        config=recipe.trainer,
        sampling=sampling_of(recipe.trainer, recipe.seed),
        step=0,
    )
    if as_json:
        print(json.dumps(metrics))
        return metrics
    console = Console(highlight=False)
    console.print(f"{describe_model(model, recipe, device)}; {prompts.describe()}", markup=False)
    table = Table(box=None, header_style="dim")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name.removeprefix("eval/"), number(value))
    console.print(table)
    sample = shorten(example.record["prompt"] + example.record["completion"])
    console.print(clean(sample), style="dim", markup=False)
    return metrics


def recipe_of(target: str, overrides: Sequence[str]) -> Recipe:
    """The recipe to evaluate by, its model being the checkpoint that `target` points to."""
    folder = Path(target)
    if not folder.is_dir():
        return load_recipe(target, overrides)
    runs = [path for path in (folder, *folder.resolve().parents[:3]) if _is_run(path)]
    if not runs:
        raise ValueError(
            f"{target}: is not in a run folder (no recipe.yaml); evaluate a checkpoint with a "
            "recipe: thinkrl eval RECIPE model.path=CHECKPOINT"
        )
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{target}: holds LoRA adapters only; evaluate {runs[0] / 'final'}")
    checkpoint = folder if (folder / "config.json").is_file() else folder / "final"
    if not checkpoint.is_dir():
        raise ValueError(f"{target}: no final/ yet; name one of its checkpoints/")
    recipe = load_recipe(str(runs[0] / "recipe.yaml"), overrides)
    model = dataclasses.replace(
        recipe.model, path=str(checkpoint), tokenizer=None, overrides={}, lora=None
    )
    return dataclasses.replace(recipe, model=model)


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file()
