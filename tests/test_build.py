"""From a recipe to its materials: what is found out before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

from thinkrl.grpo.build import build_materials, build_tokenizer
from thinkrl.grpo.recipe import load_recipe


def test_golds_that_cannot_be_read_are_named_by_row(tmp_path: Path) -> None:
    rows = [{"prompt": f"1+{i}=", "answer": gold} for i, gold in enumerate(["1", "", "3", "{{"])]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["stages=[grpo]", "rewards=[{name: math_answer}]", "data.train=arithmetic"]
    recipe = load_recipe("quickstart", settings)
    tokenizer = build_tokenizer(recipe)
    recipe = load_recipe("quickstart", [*settings[:2], f"data.train={file}", "data.eval=null"])
    assert build_materials(recipe, tokenizer, context_length=64).bad_golds == [1, 3]
