"""The model card (README.md) of an exported checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .config import Recipe
from .recipe import differences
from .terminal import number

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
```"""


def model_card(
    recipe: Recipe,
    stage: str,
    *,
    evaluations: Sequence[Mapping[str, Any]] = (),
    versions: Mapping[str, str] | None = None,
    steps: int,
) -> str:
    """What was trained, on what, with which settings and result; `evaluations` are `eval/` rows."""
    method = {"grpo": "GRPO (arXiv 2402.03300, 2501.12948)", "sft": "supervised fine-tuning"}
    parts = [
        f"---\n{_front_matter(recipe, stage)}---",
        f"# {recipe.name or 'thinkrl run'}",
        recipe.question,
        f"Trained with thinkrl by {method[stage]}, {steps} steps, from `{recipe.model.path}` on "
        f"`{recipe.data.train}`.",
    ]
    if evaluations:
        parts += ["## Held-out results", _results(evaluations[0], evaluations[-1])]
    changed = [
        line
        for line in differences(Recipe(name=recipe.name, question=recipe.question), recipe)
        if not line.startswith("run_dir")
    ]
    parts += [
        "## Settings",
        "What differs from the defaults, as `setting: default -> here`; `recipe.yaml` in the run "
        "folder has all of it.",
        "```text\n" + "\n".join(changed) + "\n```",
    ]
    if recipe.data.template != "none":
        parts.append(f"Prompts go through the template `{_one_line(recipe.data.template)}`.")
    parts += ["## Use", _USE]
    if versions:
        parts.append("Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".")
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(recipe: Recipe, stage: str) -> str:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["thinkrl", stage, *(["reinforcement-learning"] if stage == "grpo" else [])],
    }
    if _HUB_ID.fullmatch(recipe.model.path or ""):
        values["base_model"] = recipe.model.path
    dataset = (recipe.data.train or "").partition(":")[0]
    if _HUB_ID.fullmatch(dataset):
        values["datasets"] = [dataset]
    return yaml.safe_dump(values, sort_keys=False)


def _results(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    rows = ["| metric | before | after |", "|---|---|---|"]
    for name, after in last.items():
        before = first.get(name)
        if name.startswith("eval/") and isinstance(after, int | float):
            shown = number(before) if isinstance(before, int | float) else ""
            rows.append(f"| `{name.removeprefix('eval/')}` | {shown} | {number(after)} |")
    return "\n".join(rows)


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")
