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

import pytest
import torch
import yaml
from safetensors.torch import load_file

# Cycles of 2 x 2 optimizer steps, a checkpoint every 3: most lie inside a cycle.
RECIPE = {
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


@pytest.mark.parametrize("lora", [False, True])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, lora: bool) -> None:
    recipe = tmp_path / "small.yaml"
    model = {**RECIPE["model"], "lora": {"rank": 4, "dropout": 0.1}} if lora else RECIPE["model"]
    recipe.write_text(yaml.safe_dump({**RECIPE, "model": model}))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(recipe, whole))
    sft = broken / "stages" / "1-sft"
    kill_when(start(recipe, broken), logged(sft, 4))  # past the stage's first checkpoint
    kill_when(start(recipe, broken, "--resume"), logged(broken, 2))  # before any checkpoint
    kill_when(start(recipe, broken, "--resume"), saving(broken, 3))
    kill_when(start(recipe, broken, "--resume"), logged(broken, 8))  # inside the second cycle
    kill_when(start(recipe, broken, "--resume"), logged(broken, 10))
    finish(start(recipe, broken, "--resume"))
    expected, found = weights(whole), weights(broken)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert stable_rows(broken) == stable_rows(whole)
    names = [sorted(p.name for p in (run / "rollouts").iterdir()) for run in (whole, broken)]
    assert names[0] == names[1]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finish(start(recipe, whole))
    process = start(recipe, stopped)
    until = time.monotonic() + 120
    while not logged(stopped, 4)():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in stderr and "Traceback" not in stderr
    assert (stopped / "checkpoints" / "latest" / "trainer_state" / "state.json").is_file()
    finish(start(recipe, stopped, "--resume"))
    assert all(torch.equal(weights(stopped)[name], t) for name, t in weights(whole).items())
