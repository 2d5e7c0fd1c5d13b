"""Runs that go wrong: damaged folders, failing processes, unscored batches, odd settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from thinkrl.grpo.checkpoint import RunError
from thinkrl.grpo.cli import main
from thinkrl.grpo.config import GRPOConfig
from thinkrl.grpo.data import as_sft_rows
from thinkrl.grpo.tasks import make_task
from thinkrl.grpo.tracking import RunFolder
from thinkrl.grpo.trainer import GRPOTrainer
from thinkrl.models.registry import load_model
from thinkrl.models.tokenizer import char_tokenizer
from thinkrl.rewards.signature import RewardError

SMALL: dict[str, Any] = {
    "batch_size": 8,
    "num_generations": 2,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "max_steps": 2,
    "eval_num_generations": 2,
    "seed": 3,
}


def even_share(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]


def fails_elsewhere(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
    """Raises in the second process alone, at the second step."""
    if os.environ.get("RANK") == "1" and trainer_state.global_step == 1:
        raise RuntimeError("the judge is down")
    return [float(len(text)) for text in completions]


def make_trainer(folder: Path, **settings: Any) -> GRPOTrainer:
    task = make_task("walk", {"moves": 4})
    tokenizer = char_tokenizer(task.alphabet)
    rewards = settings.pop("rewards", even_share)
    held_out = settings.pop("held_out", None)
    return GRPOTrainer(
        load_model("llama-tiny", vocab_size=len(tokenizer), seed=0),
        rewards,
        GRPOConfig(**{**SMALL, **settings}),
        task.rows("train", limit=32),
        held_out and task.rows("eval", limit=held_out),
        tokenizer,
        folder=RunFolder(folder),
    )


# -- several processes --------------------------------------------------------------------------


def run_here(processes: int, case: str, folder: Path) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, __file__, case, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def train_ragged(folder: Path) -> dict[str, float]:
    """Of three processes two have one micro-batch of 3, the third has two (3 + 1)."""
    settings = {"batch_size": 10, "micro_batch_size": 3, "num_iterations": 2, "beta": 0.1}
    return make_trainer(folder, max_steps=4, max_grad_norm=0.0, **settings).train()


def test_a_process_without_work_keeps_in_step_with_a_reference(tmp_path: Path) -> None:
    done = run_here(3, "ragged", tmp_path / "three")
    assert done.returncode == 0, done.stderr[-3000:]
    one = train_ragged(tmp_path / "one")
    rows = (tmp_path / "three" / "metrics.jsonl").read_text().splitlines()
    three = json.loads(rows[-1])
    for name in ("loss", "kl", "grad_norm", "reward"):
        assert three[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name


def test_an_error_of_one_process_is_raised_in_all(tmp_path: Path) -> None:
    done = run_here(2, "failing", tmp_path)
    for rank in (0, 1):
        told = tmp_path / f"told-{rank}"
        assert told.is_file(), done.stderr[-3000:]
        assert "the judge is down" in told.read_text()


# -- rewards ------------------------------------------------------------------------------------


def test_a_batch_that_nothing_scores_is_an_error(tmp_path: Path) -> None:
    def nothing(completions: list[str], **_: Any) -> list[None]:
        return [None] * len(completions)

    with pytest.raises(RewardError, match="nothing gave None for all 8 completions"):
        make_trainer(tmp_path, rewards=nothing).train()


def test_a_few_unscored_rounds_are_borne_later(tmp_path: Path) -> None:
    def sometimes(completions: list[str], trainer_state: Any, **_: Any) -> list[float | None]:
        scored = trainer_state.global_step in (0, 3)
        return [float(len(text)) if scored else None for text in completions]

    make_trainer(tmp_path / "a", rewards=sometimes, max_steps=4).train()
    with pytest.raises(RunError, match=r"step 7: .*nothing would be learned"):
        make_trainer(tmp_path / "b", rewards=sometimes, max_steps=8).train()


# -- checkpoints and resume -----------------------------------------------------------------------


def test_the_best_evaluation_has_a_checkpoint(tmp_path: Path) -> None:
    def by_step(completions: list[str], trainer_state: Any, **_: Any) -> list[float]:
        return [[0.0, 0.1, 0.5, 0.4, 0.3][trainer_state.global_step]] * len(completions)

    settings = {"max_steps": 4, "eval_steps": 1, "save_total_limit": 1}
    make_trainer(tmp_path, rewards=by_step, held_out=2, **settings).train()
    assert (tmp_path / "checkpoints" / "best").resolve().name == "step_000002"
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "step_000004"


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path).train()
    rows = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run"):
        make_trainer(tmp_path).train()
    assert (tmp_path / "metrics.jsonl").read_text() == rows


def test_a_shorter_cycle_on_resume_samples_again(tmp_path: Path) -> None:
    make_trainer(tmp_path, num_iterations=4, max_steps=3).train()
    resumed = make_trainer(tmp_path, num_iterations=1, max_steps=6)
    resumed.train(resume=True)
    assert sorted(p.name for p in (tmp_path / "rollouts").iterdir()) == [
        "step_000001.parquet",
        "step_000005.parquet",
        "step_000006.parquet",
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": "x"}'])
def test_a_damaged_state_is_named(tmp_path: Path, text: str) -> None:
    make_trainer(tmp_path).train()
    latest = tmp_path / "checkpoints" / "latest" / "trainer_state"
    (latest / "state.json").write_text(text)
    with pytest.raises(RunError, match=r"state\.json: cannot be read: .*; delete .*step_000002"):
        make_trainer(tmp_path, max_steps=3).train(resume=True)


def test_a_damaged_tensor_file_is_named(tmp_path: Path) -> None:
    make_trainer(tmp_path).train()
    file = tmp_path / "checkpoints" / "latest" / "trainer_state" / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=r"optimizer\.pt: cannot be read"):
        make_trainer(tmp_path, max_steps=3).train(resume=True)
    shutil.rmtree(tmp_path / "checkpoints" / "step_000002")
    make_trainer(tmp_path, max_steps=3).train(resume=True)


def test_damaged_metrics_and_environment_do_not_stop_a_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log_metrics({"step": 1, "loss": 0.5})
    with folder.metrics_path.open("ab") as file:
        file.write(b"\0\0\xff{\n")
    folder.log_metrics({"step": 2, "loss": 0.25})
    assert [row["step"] for row in folder.read_metrics()] == [1, 2]
    folder.truncate_after(1)
    assert [row["step"] for row in folder.read_metrics()] == [1]
    (tmp_path / "environment.json").write_text('{"star')
    folder.write_environment({"processes": 1})
    assert json.loads((tmp_path / "environment.json").read_text()) == {"processes": 1}


def test_a_dry_run_touches_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--dry-run and --resume" in mistake(capsys, "quickstart", "--dry-run", "--resume")


def test_a_run_dir_that_cannot_be_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    overrides = ["stages=[grpo]", "data.limit=8", "run_dir=file"]
    assert "run_dir = file: cannot be made" in mistake(capsys, "quickstart", *overrides)


def test_rollouts_hold_the_groups_that_dynamic_sampling_left_out(tmp_path: Path) -> None:
    def every_other_prompt(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> Any:
        ids = zip(prompts, completion_ids, strict=True)
        return [float(len(c) % 3) if "+" in p[-3:] else 0.0 for p, c in ids]

    settings = {"dynamic_sampling": True, "max_sampling_rounds": 20}
    trainer = make_trainer(tmp_path, rewards=every_other_prompt, **settings)
    trained = {sample.group for sample in trainer.collect().samples}
    table = pq.read_table(tmp_path / "rollouts" / "step_000001.parquet").to_pylist()
    written = {row["group"] for row in table}
    assert written == set(range(trainer.order.position)) and trained < written


def test_metrics_count_the_groups_that_are_filtered_out(tmp_path: Path) -> None:
    def one_group(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        scores = [sum(ids) % 7 for ids in completion_ids]
        return [float(s) if p == prompts[0] else 1.0 for s, p in zip(scores, prompts, strict=True)]

    plain = make_trainer(tmp_path / "a", rewards=one_group).train_step()
    filtered = make_trainer(tmp_path / "b", rewards=one_group, filter_equal_groups=True)
    metrics = filtered.train_step()
    for name in ("reward", "reward_std", "frac_reward_zero_std", "completions/mean_length"):
        assert metrics[name] == pytest.approx(plain[name]), name
    assert metrics["frac_reward_zero_std"] == 0.75


def test_a_demonstration_without_a_prompt_is_named() -> None:
    rows = [{"prompt": "1+", "completion": "1"}, {"prompt": "", "completion": "1"}]
    with pytest.raises(ValueError, match="row 2: the prompt is empty"):
        as_sft_rows(rows, tokenizer=char_tokenizer("1+"))


def test_a_step_of_truncated_completions_alone_moves_nothing(tmp_path: Path) -> None:
    masked = {"mask_truncated_completions": True, "max_completion_length": 1, "seed": 5}
    trainer = make_trainer(tmp_path, objective={"top_entropy_quantile": 0.2}, **masked)
    samples = [s for s in trainer.collect().samples if not s.trains]
    assert samples and trainer.update(samples)["grad_norm"] == 0.0


# -- settings -----------------------------------------------------------------------------------


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["train", *words]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_a_tracker_that_cannot_track_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = mistake(capsys, "quickstart", "trainer.report_to=[tensorbord]")
    assert "'tensorbord': no such tracker" in error and "tensorboard" in error
    assert not Path("runs").exists()  # found before the stage that comes first has run
    with pytest.raises(ValueError, match="report_to = 'aim': its library is not installed"):
        make_trainer(tmp_path / "run", report_to=("aim",))


def test_settings_out_of_range_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for override in ("weight_decay=-1", "adam_epsilon=-1", "rollouts_disk_mb=-1"):
        key = override.partition("=")[0]
        assert f"trainer.{key} = -1" in mistake(capsys, "quickstart", f"trainer.{override}")
    error = mistake(capsys, "quickstart", "trainer.objective={beta: 0.1}")
    assert "trainer.beta" in error
    gdpo = "trainer.multi_objective_aggregation=normalize_then_sum"
    rloo = ["trainer.loss_type=rloo", "trainer.beta=0.1"]
    assert "kl_place='reward'" in mistake(capsys, "quickstart", gdpo, *rloo)
    lora = ["model.lora={}", "trainer.beta=0.1", "trainer.ref_refresh_steps=5"]
    assert "trainer.ref_refresh_steps = 5: under LoRA" in mistake(capsys, "quickstart", *lora)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "ragged":
        train_ragged(Path(sys.argv[2]))
    else:
        try:
            make_trainer(Path(sys.argv[2]), rewards=fails_elsewhere).train()
        except RunError as raised:
            # Exit code 0: the launcher kills no other. A file each: lines of two would mix.
            (Path(sys.argv[2]) / f"told-{os.environ['RANK']}").write_text(str(raised))
