"""A run killed at any moment and resumed ends with the weights of one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

# Cycles of 2 x 2 optimizer steps, a checkpoint every 3: most lie inside a cycle.
RECIPE: dict[str, Any] = {
    "stages": ["sft", "grpo"],
    "cpu_threads": 1,
    "model": {"path": "llama-tiny", "tokenizer": "char"},
    "data": {"train": "walk", "eval": "walk", "task": {"moves": 4}, "limit": 40, "eval_limit": 4},
    "sft": {"max_steps": 8, "batch_size": 16, "learning_rate": 1e-3, "save_steps": 3},
    "trainer": {
        "max_steps": 14,
        "batch_size": 16,
        "num_generations": 4,
        "num_iterations": 2,
        "steps_per_generation": 2,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "beta": 0.05,
        "ref_refresh_steps": 5,
        "save_steps": 3,
        "eval_steps": 4,
        "eval_num_generations": 2,
    },
}


def start(recipe: Path, run: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "thinkrl.grpo.cli", "train", str(recipe), f"run_dir={run}"]
    return subprocess.Popen(
        [*command, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr[-3000:]


def kill_when(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """SIGKILL as soon as `happened`; the run must not have ended before."""
    until = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, f"ended before: {process.communicate()[1][-3000:]}"
        assert time.monotonic() < until, "never happened"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def logged(folder: Path, step: int) -> Callable[[], bool]:
    """Whether metrics.jsonl has the row of a training step."""

    def happened() -> bool:
        path = folder / "metrics.jsonl"
        return path.is_file() and f'"step": {step},' in path.read_text()

    return happened


def saving(folder: Path, step: int) -> Callable[[], bool]:
    """Whether a checkpoint is being written, or just was."""
    root = folder / "checkpoints"
    names = (f".step_{step:06d}.partial", f"step_{step:06d}")
    return lambda: any((root / name).exists() for name in names)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def stable_rows(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock measured."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = ("time/", "tokens_per_s")
    return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]


def same(run: Path, whole: Path) -> None:
    """The same final weights to the last bit, the same metrics, rollouts for the same steps."""
    expected, found = weights(whole), weights(run)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert stable_rows(run) == stable_rows(whole)
    names = [sorted(p.name for p in (r / "rollouts").iterdir()) for r in (whole, run)]
    assert names[0] == names[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """The run that is left alone."""
    run = recipe.with_name("whole")
    finish(start(recipe, run))
    return run


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, recipe: Path, whole: Path) -> None:
    run = tmp_path / "broken"
    sft = run / "stages" / "1-sft"
    kill_when(start(recipe, run), logged(sft, 4))  # past the stage's first checkpoint
    kill_when(start(recipe, run, "--resume"), logged(run, 2))  # before any checkpoint
    kill_when(start(recipe, run, "--resume"), saving(run, 3))
    kill_when(start(recipe, run, "--resume"), logged(run, 8))  # inside the second cycle
    finish(start(recipe, run, "--resume"))
    same(run, whole)


def test_adapters_and_dropout_resume_too(tmp_path: Path) -> None:
    recipe = tmp_path / "lora.yaml"
    model = {**RECIPE["model"], "lora": {"rank": 4, "dropout": 0.1}}
    trainer = {**RECIPE["trainer"], "ref_refresh_steps": 0}
    recipe.write_text(yaml.safe_dump({**RECIPE, "model": model, "trainer": trainer}))
    whole, run = tmp_path / "whole", tmp_path / "broken"
    finish(start(recipe, whole))
    kill_when(start(recipe, run), logged(run, 7))
    finish(start(recipe, run, "--resume"))
    same(run, whole)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, recipe: Path, whole: Path) -> None:
    run = tmp_path / "stopped"
    process = start(recipe, run)
    until = time.monotonic() + 120
    while not logged(run, 4)():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in stderr and "Traceback" not in stderr
    assert (run / "checkpoints" / "latest" / "trainer_state" / "state.json").is_file()
    finish(start(recipe, run, "--resume"))
    same(run, whole)
