"""Supervised fine-tuning: loss on completions only, exact over micro-batches, LoRA, guards."""

from __future__ import annotations

import itertools
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from thinkrl.grpo.checkpoint import Checkpoints, RunError, write_folder
from thinkrl.grpo.config import SFTConfig
from thinkrl.grpo.optim import learning_rate, make_optimizer
from thinkrl.grpo.sft import SFTTrainer
from thinkrl.grpo.tracking import RunFolder
from thinkrl.models.adapters import add_lora, base_model
from thinkrl.models.registry import load_model
from thinkrl.models.tokenizer import char_tokenizer
from torch import nn

TOKENIZER = char_tokenizer("0123456789+-=")
ROWS = [
    (TOKENIZER.encode(f"{a}+{b}="), [*TOKENIZER.encode(str(a + b)), TOKENIZER.eos_token_id])
    for a in range(10)
    for b in range(10)
]
SMALL: dict[str, Any] = {"max_steps": 3, "batch_size": 12, "learning_rate": 1e-3, "seed": 1}


def make_trainer(folder: Path, model: nn.Module | None = None, **settings: Any) -> SFTTrainer:
    model = model or load_model("llama-tiny", vocab_size=len(TOKENIZER), seed=0)
    config = SFTConfig(**{**SMALL, **settings})
    return SFTTrainer(model, config, ROWS, TOKENIZER, folder=RunFolder(folder))


def flat_gradient(model: nn.Module) -> torch.Tensor:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in grads]).double()


def test_the_loss_is_the_mean_over_completion_tokens_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_grad_norm=0.0)
    rows = [ROWS[i] for i in trainer.order.take(12)]
    trainer.order.position = 0
    metrics = trainer.train_step()
    fresh = load_model("llama-tiny", vocab_size=len(TOKENIZER), seed=0)
    total, loss = sum(len(c) for _, c in rows), torch.zeros(())
    for prompt, completion in rows:
        ids = torch.tensor([prompt + completion])
        labels = torch.tensor([[-100] * len(prompt) + completion])
        logits = fresh.logits(fresh(ids, positions_BT=torch.arange(ids.shape[1])[None]))
        shifted = logits[:, :-1].flatten(0, 1)
        loss = loss + nn.functional.cross_entropy(
            shifted, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
    (loss / total).backward()
    assert metrics["loss"] == pytest.approx(float(loss.detach() / total), rel=1e-5)
    expected = flat_gradient(fresh)
    assert (flat_gradient(trainer.model) - expected).norm() <= 1e-5 * expected.norm()


def test_micro_batches_and_packing_change_nothing(tmp_path: Path) -> None:
    gradients = []
    options = [{}, {"micro_batch_size": 5}, {"micro_batch_tokens": 17}, {"packing": False}]
    for i, settings in enumerate(options):
        trainer = make_trainer(tmp_path / str(i), max_grad_norm=0.0, **settings)
        trainer.train_step()
        gradients.append(flat_gradient(trainer.model))
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() <= 1e-6 * gradients[0].norm()


def test_it_learns_and_leaves_a_run_folder(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=60, learning_rate=4e-3)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    again = load_model(str(tmp_path / "final"))
    state = trainer.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())


def test_lora_trains_the_adapters_and_exports_them_merged(tmp_path: Path) -> None:
    plain = load_model("llama-tiny", vocab_size=len(TOKENIZER), seed=0)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    model = add_lora(plain, rank=4, seed=0)
    trainer = make_trainer(tmp_path, model, max_steps=5, learning_rate=1e-2)
    trainer.train()
    frozen = base_model(model).state_dict()
    for name, tensor in before.items():
        wrapped = name.replace(".weight", ".base_layer.weight")
        assert torch.equal(frozen[name if name in frozen else wrapped], tensor)
    merged = load_model(str(tmp_path / "final"))
    ids, positions = torch.tensor([ROWS[7][0]]), torch.arange(len(ROWS[7][0]))[None]
    model.eval()
    with torch.no_grad():
        adapted = model(ids, positions_BT=positions)
        torch.testing.assert_close(merged(ids, positions_BT=positions), adapted)
        assert not torch.allclose(load_original(before)(ids, positions_BT=positions), adapted)
    assert (tmp_path / "final" / "adapter" / "adapter_model.safetensors").is_file()


def load_original(state: dict[str, torch.Tensor]) -> nn.Module:
    model = load_model("llama-tiny", vocab_size=len(TOKENIZER), seed=5)
    model.load_state_dict(state)
    return model


def test_the_learning_rate_follows_its_schedule() -> None:
    linear = SFTConfig(max_steps=10, warmup_steps=2, learning_rate=1.0, lr_scheduler_type="linear")
    rates = [learning_rate(linear, step) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(0.1)
    steps = [a - b for a, b in itertools.pairwise(rates[2:])]
    assert all(step == pytest.approx(steps[0]) for step in steps)
    cosine = SFTConfig(max_steps=11, learning_rate=2.0, lr_scheduler_type="cosine")
    assert learning_rate(cosine, 0) == 2.0
    assert learning_rate(cosine, 5) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert learning_rate(cosine, 10) == pytest.approx(0.2)


def test_an_optimizer_whose_library_is_missing_is_a_clear_line() -> None:
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="needs the package torchao"):
        make_optimizer(SFTConfig(optim="adamw_cpu_offload"), [parameter])
    parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter trains"):
        make_optimizer(SFTConfig(), [parameter])


def test_checkpoints_are_kept_by_number_and_the_best_always(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)

    def write(folder: Path) -> None:
        (folder / "trainer_state").mkdir()
        (folder / "trainer_state" / "state.json").write_text("{}")

    for step in (1, 2, 3, 4, 5):
        checkpoints.save(step, write, best=step == 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best",
        "latest",
        "step_000002",
        "step_000004",
        "step_000005",
    ]
    assert (tmp_path / "latest").resolve().name == "step_000005"
    assert (tmp_path / "best").resolve().name == "step_000002"
    (tmp_path / "step_000006").mkdir()  # something without a state is no checkpoint
    latest = checkpoints.latest()
    assert latest is not None and latest.name == "step_000005"


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: writing beyond it fails the same way."""
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        trainer.step = 2
        with pytest.raises(RunError, match=r"not saved: .*run_dir on another disk"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()].count("latest") == 1
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_000001"]


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "final"

    def write(folder: Path) -> None:
        (folder / "a.txt").write_text("old")

    write_folder(final, write)

    def broken(folder: Path) -> None:
        (folder / "a.txt").write_text("new")
        raise KeyError("a bug in between")

    with pytest.raises(KeyError):
        write_folder(final, broken)
    assert (final / "a.txt").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final"]
