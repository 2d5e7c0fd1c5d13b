"""`--processes` and accelerate's launcher: so many processes, one voice, one exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

RECIPE = {
    "cpu_threads": 1,
    "model": {"path": "llama-tiny", "tokenizer": "char"},
    "data": {"train": "walk", "task": {"moves": 4}, "limit": 40},
    "trainer": {
        "max_steps": 2,
        "batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 8,
    },
}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    return subprocess.run(
        [*command], cwd=folder, capture_output=True, text=True, env=clean(), timeout=300
    )


def clean() -> dict[str, str]:
    """The environment of a shell, without what a launcher of these tests may have set."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    return {**kept, "OMP_NUM_THREADS": "1"}


def processes(run_dir: Path) -> int:
    return json.loads((run_dir / "environment.json").read_text())["processes"]


def test_processes_flag_trains_in_two_processes_with_one_voice(tmp_path: Path) -> None:
    thinkrl = [sys.executable, "-P", "-m", "thinkrl.grpo.cli", "train", "small.yaml"]
    done = run(tmp_path, *thinkrl, "run_dir=run", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert processes(tmp_path / "run") == 2
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    assert done.stdout.count("run dir") + done.stdout.count("  run ") <= 2
    wrong = run(tmp_path, *thinkrl, "data.train=nowhere.jsonl", "--processes", "2")
    assert wrong.returncode == 2
    assert wrong.stderr.count("nowhere.jsonl") == 1 and "Traceback" not in wrong.stderr


def test_accelerate_launch_gets_the_processes_it_asks_for(tmp_path: Path) -> None:
    accelerate = [sys.executable, "-P", "-m", "accelerate.commands.accelerate_cli", "launch"]
    options = ["--cpu", "--num_processes", "2", "-m", "thinkrl.grpo.cli", "train", "small.yaml"]
    done = run(tmp_path, *accelerate, *options, "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert processes(tmp_path / "run") == 2
