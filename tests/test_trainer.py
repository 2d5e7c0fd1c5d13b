"""The GRPO trainer: exact ratios, invariant gradients, guards, and what it writes down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from thinkrl.grpo.checkpoint import RunError
from thinkrl.grpo.config import GRPOConfig
from thinkrl.grpo.tasks import make_task
from thinkrl.grpo.tracking import RunFolder
from thinkrl.grpo.trainer import GRPOTrainer
from thinkrl.models.adapters import base_model
from thinkrl.models.registry import load_model
from thinkrl.models.tokenizer import char_tokenizer
from torch import nn

TASK = make_task("walk", {"moves": 4})
SMALL = {
    "batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "max_steps": 2,
    "seed": 3,
}


def even_share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward with signal from the first step: the share of even token ids."""
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]


def make_trainer(folder: Path, **settings: Any) -> GRPOTrainer:
    rewards = settings.pop("rewards", even_share)
    model = settings.pop("model", None)
    eval_rows = settings.pop("eval_rows", None)
    tokenizer = char_tokenizer(TASK.alphabet)
    return GRPOTrainer(
        model or load_model("llama-tiny", vocab_size=len(tokenizer), seed=0),
        rewards,
        GRPOConfig(**{**SMALL, **settings}),
        TASK.rows("train", limit=64),
        eval_rows,
        tokenizer,
        folder=RunFolder(folder),
    )


def flat_gradient(model: nn.Module) -> torch.Tensor:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in grads]).double()


def flat_weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("layout", [{}, {"shared_prefix": False}, {"packing": False}])
def test_the_first_ratio_is_exactly_one(tmp_path: Path, layout: dict[str, bool]) -> None:
    trainer = make_trainer(tmp_path, num_iterations=2, steps_per_generation=2, **layout)
    cycle = trainer.collect()
    trainer.model.train()
    for run in trainer.my_runs(cycle.samples[:16])[0]:
        batch = trainer.collate(run)
        logprobs_BT, _ = trainer.policy.token_logprobs(batch)
        old_BT = batch.tokenwise("old_logprobs")
        assert old_BT is not None and torch.equal(old_BT, logprobs_BT.detach())


def test_the_sampler_reports_the_log_probs_that_training_computes(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, temperature=0.8, top_k=20, top_p=0.95)
    batch = trainer.collate(trainer.collect().samples)
    logprobs_BT, _ = trainer.policy.token_logprobs(batch)
    sampled_BT = batch.tokenwise("sampling_logprobs")
    assert sampled_BT is not None
    assert (sampled_BT - logprobs_BT).abs().max() < 1e-5


INVARIANT = [
    {"micro_batch_size": 1},
    {"micro_batch_size": 3},
    {"micro_batch_tokens": 30},
    {"packing": False},
    {"packing": False, "micro_batch_size": 5},
    {"shared_prefix": False, "micro_batch_size": 7},
]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_micro_batches_and_packing_change_nothing(tmp_path: Path, loss_type: str) -> None:
    def first_step(i: int, settings: dict[str, Any]) -> tuple[float, torch.Tensor]:
        options = {"objective": {"entropy_coef": 0.01}, "max_grad_norm": 0.0, "beta": 0.1}
        trainer = make_trainer(tmp_path / str(i), loss_type=loss_type, **{**options, **settings})
        with torch.no_grad():  # a policy that has left its reference, so that the KL has a gradient
            for p in trainer.model.parameters():
                p.mul_(1.05)
        metrics = trainer.train_step()
        return metrics["loss"], flat_gradient(trainer.model)

    loss, gradient = first_step(0, {})
    assert gradient.norm() > 1e-4
    for i, settings in enumerate(INVARIANT, 1):
        other_loss, other = first_step(i, settings)
        assert abs(other_loss - loss) <= 1e-6 * max(abs(loss), 1e-2), settings
        assert (other - gradient).norm() <= 1e-6 * gradient.norm(), settings


def test_the_loss_is_that_of_the_whole_batch_at_once(tmp_path: Path) -> None:
    """Against the formula written out: token mean of -A r over one unpadded sequence at a time."""
    trainer = make_trainer(tmp_path, loss_type="dapo", max_grad_norm=0.0, micro_batch_size=3)
    cycle = trainer.collect()
    trainer.update(cycle.samples)
    measured = flat_gradient(trainer.model)
    trainer = make_trainer(tmp_path / "again", loss_type="dapo")
    total = sum(len(s.token_ids) for s in cycle.samples)
    loss = torch.zeros(())
    for sample in cycle.samples:
        ids = torch.tensor([sample.prompt_ids + sample.token_ids])
        hidden = trainer.model(ids, positions_BT=torch.arange(ids.shape[1])[None])
        logprobs_TV = torch.log_softmax(base_model(trainer.model).logits(hidden)[0], -1)
        first = len(sample.prompt_ids)
        picked = logprobs_TV[first - 1 : -1].gather(1, ids[0, first:, None])
        loss = loss - sample.advantage * picked.sum() / total
    loss.backward()
    expected = flat_gradient(trainer.model)
    assert (measured - expected).norm() <= 1e-5 * expected.norm()


def test_same_seed_same_run(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        trainer = make_trainer(tmp_path / name)
        trainer.train()
        runs.append(flat_weights(trainer.model))
    assert torch.equal(*runs)
    other = make_trainer(tmp_path / "c", seed=4)
    other.train()
    assert not torch.equal(runs[0], flat_weights(other.model))


def test_reward_rises(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=30, learning_rate=3e-3, batch_size=64)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2


def test_the_run_folder_tells_the_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, eval_rows=TASK.rows("eval", limit=4), eval_num_generations=2)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    names = [
        "reward",
        "reward_std",
        "rewards/even_share/mean",
        "frac_reward_zero_std",
        "completions/mean_length",
        "entropy",
        "clip_ratio/region_mean",
        "grad_norm",
        "lr",
        "num_tokens",
        "sampling/kl",
        "time/rollout",
        "time/reward",
        "time/train",
        "time/sync",
    ]
    assert all(name in row for row in steps for name in names)
    assert steps[1]["num_tokens"] > steps[0]["num_tokens"]
    evaluations = [row for row in rows if "eval/pass@2" in row]
    assert [row["step"] for row in evaluations] == [0, 2]
    assert "eval/greedy/pass@1" in evaluations[0]
    table = pq.read_table(tmp_path / "rollouts" / "step_000001.parquet").to_pylist()
    assert len(table) == 16
    first = table[0]
    assert len(first["completion_ids"]) == len(first["logprobs"])
    assert first["rewards"]["even_share"] == pytest.approx(first["reward"])
    groups = {row["group"] for row in table}
    assert len(groups) == 4
    for group in groups:
        assert sum(r["advantage"] for r in table if r["group"] == group) == pytest.approx(
            0, abs=1e-4
        )
    assert (tmp_path / "checkpoints" / "latest" / "model.safetensors").is_file()
    assert (tmp_path / "final" / "config.json").is_file()


def test_a_beta_needs_a_reference_and_starts_at_no_kl(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, beta=0.1)
    assert trainer.policy.reference is not None
    assert abs(trainer.train_step()["kl"]) < 1e-9
    assert trainer.train_step()["kl"] > 1e-6
    assert make_trainer(tmp_path / "none", beta=0.0).policy.reference is None


def test_the_reference_is_refreshed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, beta=0.1, ref_refresh_steps=2, max_steps=3)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[1]["kl"] > 1e-6
    assert abs(rows[2]["kl"]) < 1e-9


@pytest.mark.parametrize("loss_type", ["rloo", "reinforce_pp"])
def test_kl_in_the_reward_pulls_towards_the_reference(tmp_path: Path, loss_type: str) -> None:
    def last_kl(name: str, beta: float) -> float:
        trainer = make_trainer(
            tmp_path / name, loss_type=loss_type, beta=beta, max_steps=12, learning_rate=2e-3
        )
        return trainer.train()["kl"]

    assert last_kl("pulled", 2.0) < 0.7 * last_kl("free", 1e-9)


def test_gdpo_gives_each_reward_its_own_scale(tmp_path: Path) -> None:
    def tiny(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [1e-3 * (ids[0] % 2) for ids in completion_ids]

    both = [even_share, tiny]
    setting = {"multi_objective_aggregation": "normalize_then_sum"}
    apart = make_trainer(tmp_path / "a", rewards=both, **setting).collect().samples
    summed = make_trainer(tmp_path / "b", rewards=both).collect().samples
    assert [s.token_ids for s in apart] == [s.token_ids for s in summed]
    assert any(abs(a.advantage - b.advantage) > 0.1 for a, b in zip(apart, summed, strict=True))


def test_equal_groups_are_left_out_and_a_batch_of_them_moves_nothing(tmp_path: Path) -> None:
    def constant(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = make_trainer(tmp_path, rewards=constant, filter_equal_groups=True)
    before = flat_weights(trainer.model).clone()
    metrics = trainer.train()
    assert torch.equal(before, flat_weights(trainer.model))
    assert metrics["loss"] == 0.0


def test_dynamic_sampling_fills_the_batch_or_stops_at_its_bound(tmp_path: Path) -> None:
    def rare(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        signal = [int(prompt[0]) < 3 for prompt in prompts]
        pairs = zip(signal, completion_ids, strict=True)
        return [float(ids[0]) if has else 0.0 for has, ids in pairs]

    trainer = make_trainer(tmp_path, rewards=rare, dynamic_sampling=True, max_sampling_rounds=50)
    cycle = trainer.collect()
    assert len(cycle.samples) == 16
    assert cycle.metrics["dynamic_sampling/rounds"] > 1
    assert all(int(s.record["prompt"][0]) < 3 for s in cycle.samples)
    bounded = make_trainer(
        tmp_path / "b", rewards=rare, dynamic_sampling=True, max_sampling_rounds=1
    )
    cycle = bounded.collect()
    assert cycle.metrics["dynamic_sampling/rounds"] == 1
    assert 0 < len(cycle.samples) < 16
    assert all(int(s.record["prompt"][0]) < 3 for s in cycle.samples)


def test_truncated_completions_are_masked(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, mask_truncated_completions=True)
    samples = trainer.collect().samples
    truncated = [s for s in samples if s.record["finish_reason"] == "length"]
    assert truncated and not any(s.trains for s in truncated)
    assert all(len(s.token_ids) == 8 for s in truncated)


def test_a_loss_that_is_not_finite_stops_before_the_weights(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    cycle = trainer.collect()
    before = flat_weights(trainer.model).clone()
    cycle.samples[5].advantage = float("nan")
    with pytest.raises(RunError, match="not finite; the weights are unharmed"):
        trainer.update(cycle.samples)
    assert torch.equal(before, flat_weights(trainer.model))
    saved = torch.load(tmp_path / "bad_batch_step_000001.pt", weights_only=True)
    assert len(saved["samples"]) == 16


def test_top_entropy_tokens_are_chosen_over_the_whole_step(tmp_path: Path) -> None:
    settings = {"objective": {"top_entropy_quantile": 0.3}, "max_grad_norm": 0.0}
    whole = make_trainer(tmp_path / "a", **settings)
    whole.train_step()
    split = make_trainer(tmp_path / "b", micro_batch_size=3, **settings)
    split.train_step()
    expected = flat_gradient(whole.model)
    assert (flat_gradient(split.model) - expected).norm() <= 1e-6 * expected.norm()


def test_wrong_use_is_told_in_one_line(tmp_path: Path) -> None:
    tokenizer = char_tokenizer(TASK.alphabet)
    model = load_model("llama-tiny", vocab_size=len(tokenizer), seed=0)
    with pytest.raises(ValueError, match="num_generations"):
        GRPOConfig(num_generations=1)
    with pytest.raises(ValueError, match="train_dataset: missing"):
        GRPOTrainer(model, even_share, GRPOConfig(**SMALL), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="tokenizer: missing"):
        GRPOTrainer(model, even_share, GRPOConfig(**SMALL), [{"prompt": "1+="}])
    with pytest.raises(ValueError, match="epsilonn"):
        make_trainer(tmp_path, objective={"epsilonn": 0.1})
