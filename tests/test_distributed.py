"""Two processes (gloo) compute what one does: the same samples, loss, gradient and run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from thinkrl.grpo.config import GRPOConfig
from thinkrl.grpo.tasks import make_task
from thinkrl.grpo.tracking import RunFolder
from thinkrl.grpo.trainer import GRPOTrainer
from thinkrl.models.registry import load_model
from thinkrl.models.tokenizer import char_tokenizer

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    # Ragged shares: 6 groups of 4 over 2 processes in micro-batches of 5.
    "reference": {"micro_batch_size": 5, "beta": 0.1, "num_iterations": 2, "max_steps": 2},
    "kl in the reward": {"loss_type": "reinforce_pp", "beta": 0.05},
    "top entropy": {"loss_type": "gspo", "objective": {"top_entropy_quantile": 0.5}},
}
SMALL: dict[str, Any] = {
    "batch_size": 24,
    "num_generations": 4,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "max_steps": 1,
    "max_grad_norm": 0.0,
    "eval_num_generations": 2,
    "seed": 3,
}


def even_share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]


def train_all(root: Path) -> None:
    """Every case in a folder of its own, with the last gradient and the weights in result.pt."""
    torch.set_num_threads(1)
    task = make_task("walk", {"moves": 4})
    tokenizer = char_tokenizer(task.alphabet)
    for name, settings in CASES.items():
        trainer = GRPOTrainer(
            load_model("llama-tiny", vocab_size=len(tokenizer), seed=0),
            even_share,
            GRPOConfig(**{**SMALL, **settings}),
            task.rows("train", limit=64),
            task.rows("eval", limit=5),
            tokenizer,
            folder=RunFolder(root / name),
        )
        assert trainer.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
        trainer.train()
        if trainer.is_main:
            parameters = list(trainer.model.parameters())
            gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
            weights = [p.detach().flatten() for p in parameters]
            result = {"gradient": torch.cat(gradients), "weights": torch.cat(weights)}
            torch.save(result, root / name / "result.pt")


def read(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    result = torch.load(folder / "result.pt", weights_only=True)
    return result, [json.loads(line) for line in lines]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train_all(tmp_path / "one")
    for name, settings in CASES.items():
        one, one_rows = read(tmp_path / "one" / name)
        two, two_rows = read(tmp_path / "two" / name)
        if settings.get("max_steps", 1) == 1:  # later gradients are those of other weights
            gap = (two["gradient"] - one["gradient"]).norm()
            assert gap <= 1e-6 * one["gradient"].norm(), name
        torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=1e-5)
        assert [row["step"] for row in two_rows] == [row["step"] for row in one_rows]
        for first, second in zip(one_rows, two_rows, strict=True):
            assert first.keys() == second.keys()
            for key in first.keys() - {"stage", "tokens_per_s"}:
                if not key.startswith("time/"):
                    tolerance = 1e-6 if key == "loss" else 1e-4
                    expected = pytest.approx(first[key], rel=tolerance, abs=1e-6)
                    assert second[key] == expected, (name, key)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
