"""What the README says is run: its examples, its tree, its names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from thinkrl.grpo.cli import COMMANDS, main
from thinkrl.grpo.recipe import recipe_names
from thinkrl.grpo.schema import explain
from thinkrl.grpo.tracking import RunFolder

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
SECTIONS = ("model", "data", "rewards", "rollout", "trainer", "sft")


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_reward_and_the_recipe_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = []
    for text in (*blocks("python"), *blocks("yaml")):
        if named := re.match(r"# (\S+)\n", text):
            Path(named[1]).write_text(text)
            written.append(named[1])
    assert written == ["brevity.py", "brevity.yaml"]
    small = [
        *("data.task={moves: 4, train_rows: 64, eval_rows: 16, sft_rows: 256}", "run_dir=run"),
        *("data.eval_limit=4", "sft.max_steps=2", "sft.batch_size=8", "trainer.max_steps=2"),
        "trainer.batch_size=16",
    ]
    assert main(["train", "brevity.yaml", *small, "--quiet"]) == 0
    rows = [row for row in RunFolder("run").read_metrics() if "reward" in row]
    assert len(rows) == 2
    assert 0 < rows[0]["rewards/brevity/mean"] < 1
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6) and rows[1]["kl"] > 0


def test_the_python_example_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = (text for text in blocks("python") if "GRPOTrainer" in text)
    names: dict = {}
    exec(example, names)
    assert names["metrics"]["num_tokens"] > 0
    table = TEXT[TEXT.index("| metric |") :].split("\n\n")[0]
    first_column = "".join(line.split("|")[1] for line in table.splitlines())
    documented = set(re.findall(r"`([\w/@<>]+)`", first_column))
    always = {name for name in documented if not re.search(r"[<@]|^eval/|^kl$", name)}
    rows = [row for run in Path("runs").iterdir() for row in RunFolder(run).read_metrics()]
    assert always <= set(rows[-1])


def test_the_tree_shows_every_file() -> None:
    (tree,) = (text for text in blocks("text") if text.startswith("grpo/"))
    shown, folder = set(), ""
    for line in tree.splitlines():
        name, phrase = line[:26].strip(), line[26:].strip()
        assert name and phrase, line
        if not line.startswith(" "):
            folder = name
        else:
            shown.add(folder + name)
    on_disk = {
        path.relative_to(ROOT).as_posix()
        for folder in ("grpo", "rewards", "models", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert shown == on_disk


def test_settings_that_are_named_exist() -> None:
    dotted = re.findall(rf"`((?:{'|'.join(SECTIONS)})\.\w+)`", TEXT)
    same_as_trl = TEXT[TEXT.index("Names that mean the same") :].split("The others")[0]
    names = [*dotted, *(f"trainer.{name}" for name in re.findall(r"`(\w+)`", same_as_trl))]
    assert len(names) > 25
    for name in names:
        assert explain(name)


def test_commands_and_recipes_that_are_named_exist() -> None:
    commands = re.findall(r"^thinkrl (\w+)|`thinkrl (\w+)", TEXT, flags=re.MULTILINE)
    assert {a or b for a, b in commands} <= set(COMMANDS)
    table = TEXT[TEXT.index("| recipe |") :].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == set(recipe_names())
