"""The run folder: whole files, strict JSON, rollouts within their budget, resume points."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from thinkrl.grpo import tracking
from thinkrl.grpo.tracking import RunFolder, find_run, new_run_dir, replacing


def test_metrics_are_strict_json_one_object_a_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.log_metrics({"step": 1, "reward": torch.tensor(0.5), "lr": np.float32(0.25)})
    folder.log_metrics({"step": 2, "reward": math.nan, "grad_norm": math.inf, "note": "x"})
    lines = folder.metrics_path.read_text().splitlines()
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert first == {"step": 1, "reward": 0.5, "lr": 0.25}
    assert second == {"step": 2, "reward": None, "grad_norm": None, "note": "x"}


def test_truncate_forgets_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in range(6):
        folder.log_metrics({"step": step})
        folder.write_rollouts(step, {"step": [step]})
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 6, "rewa')  # killed in the middle of a line
    (tmp_path / "rollouts" / ".step_000006.parquet.1.partial").write_text("half")
    folder.truncate_after(3)
    assert [row["step"] for row in folder.read_metrics()] == [0, 1, 2, 3]
    assert folder.metrics_path.read_text().endswith("}\n")
    names = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert names == [f"step_{step:06d}.parquet" for step in range(4)]


def test_rollouts_hold_nested_columns(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    columns = {
        "step": [7, 7],
        "completion_ids": [[1, 2, 3], [4]],
        "rewards": [{"exact_answer": 1.0}, {"exact_answer": None}],
        "trace": [{}, {}],
    }
    folder.write_rollouts(7, columns)
    rows = pq.read_table(folder.rollouts_path(7)).to_pylist()
    assert rows[0]["completion_ids"] == [1, 2, 3]
    assert rows[1]["rewards"] == {"exact_answer": None}
    assert rows[0]["trace"] is None


def test_rollouts_of_unequal_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step 1: columns differ in length"):
        RunFolder(tmp_path).write_rollouts(1, {"step": [1], "prompt": ["a", "b"]})
    assert not (tmp_path / "rollouts").exists()


def test_the_oldest_rollouts_go_first(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    noise = np.random.default_rng(0)
    for step in (9, 10, 11, 12):  # by number, not by name or time
        folder.write_rollouts(step, {"x": list(noise.random(5000))}, budget_mb=0.1)
    kept = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert kept == ["step_000011.parquet", "step_000012.parquet"]
    folder.write_rollouts(13, {"x": list(noise.random(5000))}, budget_mb=0)
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["step_000013.parquet"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "recipe.yaml"
    target.write_text("old")
    with pytest.raises(OSError, match="disk"), replacing(target) as partial:
        partial.write_text("half of the new")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    assert target.read_text() == "old"


def test_environment_keeps_the_first_start_and_adds_resumes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    values = tracking.environment()
    assert values["versions"]["torch"] == torch.__version__
    assert values["device"]
    for command in (["first"], ["second"], ["third"]):
        folder.write_environment({**values, "command": command})
    stored = json.loads((tmp_path / "environment.json").read_text())
    assert stored["command"] == ["first"]
    assert [entry["command"] for entry in stored["resumed"]] == [["second"], ["third"]]


def test_git_commit_marks_local_changes(tmp_path: Path) -> None:
    assert tracking.git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    clean = tracking.git_commit(tmp_path)
    assert clean is not None and len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert tracking.git_commit(tmp_path) == clean + "+"


def test_runs_are_named_by_time_and_never_shared(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tracking.time, "strftime", lambda _: "20260102-030405")
    first, second = new_run_dir("my recipe", tmp_path), new_run_dir("my recipe", tmp_path)
    assert first.name == "my-recipe-20260102-030405"
    assert second.name == "my-recipe-20260102-030405-2"


def test_the_newest_run_of_a_recipe_is_found(tmp_path: Path) -> None:
    names = [
        "math-20260102-030405",
        "math-20260102-030405-9",
        "math-20260102-030405-10",
        "math-20260101-235959",
        "math-dapo-20270101-000000",
        "math-notes",
    ]
    for name in names:
        (tmp_path / name).mkdir()
    assert find_run("math", tmp_path) == tmp_path / "math-20260102-030405-10"
    assert find_run("math-dapo", tmp_path) == tmp_path / "math-dapo-20270101-000000"
    assert find_run("other", tmp_path) is None
    assert find_run("math", tmp_path / "absent") is None
