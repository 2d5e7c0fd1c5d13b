"""The command line: exit codes, what it prints, and whole small runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from thinkrl.grpo.cli import COMMANDS, main
from thinkrl.grpo.recipe import load_recipe, recipe_names
from thinkrl.grpo.tracking import RunFolder
from thinkrl.models.registry import load_model
from transformers import AutoModelForCausalLM, AutoTokenizer

SMALL = [
    "data.task={moves: 4, train_rows: 64, eval_rows: 16, sft_rows: 256}",
    *("data.eval_limit=8", "sft.max_steps=3", "sft.batch_size=16"),
    *("trainer.max_steps=2", "trainer.batch_size=16", "trainer.max_completion_length=8"),
]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("THINKRL_DEBUG", raising=False)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "quick"
    assert main(["train", "quickstart", *SMALL, f"run_dir={path}", "--quiet"]) == 0
    return path


def eval_rows(run: Path) -> list[dict]:
    return [row for row in RunFolder(run).read_metrics() if "eval/reward" in row]


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("trian quickstart", "trian: no such command; commands: train,"),
        ("train", "a recipe is needed"),
        ("train quickstart --bogus", "unrecognized arguments: --bogus"),
        ("train quickstart trainer.max_stepz=3", "did you mean trainer.max_steps?"),
        ("train quickstar", "did you mean quickstart?"),
        ("train absent.yaml", "recipe absent.yaml: no such file"),
        ("train quickstart trainer.loss_type=gppo", "trainer.loss_type = 'gppo': unknown"),
        ("train quickstart trainer.objective.epsilonn=1", "did you mean 'epsilon'?"),
        ("train quickstart rewards=[exact_answr]", "did you mean exact_answer?"),
        ("train quickstart data.task.mvoes=3", "did you mean moves?"),
        ("train quickstart data.eval=absent.jsonl", "absent.jsonl: no such file"),
        ("train quickstart model.path=absent", "model.path = 'absent': no such folder"),
        ("train quickstart model.path=null", "model.path is not set"),
        ("train quickstart model.tokenizer=null", "a preset has no tokenizer"),
        ("train quickstart trainer.max_completion_length=4000", "context of 2048 tokens"),
        ("train quickstart --resume", "no run of quickstart in runs/"),
        ("train quickstart --resume trainer.max_steps=9", "no run of quickstart in runs/"),
        ("train quickstart --resume absent", "absent: not a run folder"),
        ("train --explain trainer.bet", "did you mean trainer.beta?"),
        ("eval absent", "no such file and no recipe of that name"),
        ("eval .", "is not in a run folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command: str, said: str, capsys) -> None:
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("thinkrl: ") and err.count("\n") == 1
    assert said in err
    assert not Path("runs").exists()


def test_only_the_first_process_of_a_launch_speaks(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "quickstar"]) == 2
    assert capsys.readouterr() == ("", "")


def test_debugging_shows_where_a_mistake_was_noticed(monkeypatch, capsys) -> None:
    monkeypatch.setenv("THINKRL_DEBUG", "1")
    assert main(["train", "quickstar"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('gold')", "KeyError"),
        ("return [0.0]", "1"),
        ("return [float('nan')] * len(completions)", "nan"),
    ],
)
def test_a_reward_that_fails_is_named(body: str, said: str, capsys) -> None:
    Path("mine.py").write_text(f"def mine(completions, **columns):\n    {body}\n")
    overrides = [*SMALL, "stages=grpo", "rewards=[mine.py:mine]"]
    assert main(["train", "quickstart", *overrides, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "'mine'" in err and said in err


def test_what_is_no_mistake_of_the_user_keeps_its_traceback(monkeypatch, capsys) -> None:
    def broken(argv: list[str]) -> int:
        return int("x")  # a ValueError, but not one of our checks

    monkeypatch.setitem(COMMANDS, "recipes", broken)
    assert main(["recipes"]) == 1
    assert "Traceback" in capsys.readouterr().err


# -- what it prints -----------------------------------------------------------------------------


def test_help_and_version(capsys) -> None:
    assert main([]) == 2 and main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"\n  {name} " in usage for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("thinkrl 0.")
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "thinkrl.grpo.cli", "train", "--explain", "trainer.beta"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("trainer.beta: number = 0.0")


def test_recipes_are_listed_with_what_they_find_out(capsys) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name in recipe_names():
        assert name in out
    assert out.count("expected") >= 4 and "two CPU cores" in out


# -- runs ---------------------------------------------------------------------------------------


def test_a_run_folder_has_everything(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert names == {
        *("recipe.yaml", "environment.json", "metrics.jsonl", "rollouts", "checkpoints"),
        *("final", "stages"),
    }
    assert load_recipe(str(finished_run / "recipe.yaml")) == load_recipe(
        "quickstart", [*SMALL, f"run_dir={finished_run}"]
    )
    assert json.loads((finished_run / "environment.json").read_text())["versions"]["torch"]
    steps = [row for row in RunFolder(finished_run).read_metrics() if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert [row["step"] for row in eval_rows(finished_run)] == [0, 2]
    warm_start = finished_run / "stages" / "1-sft"
    assert (warm_start / "final" / "model.safetensors").is_file()
    assert len(RunFolder(warm_start).read_metrics()) == 3
    card = (finished_run / "final" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| `reward` |" in card and "trainer.max_steps: 100 -> 2" in card


def test_the_trained_model_opens_in_transformers(finished_run: Path) -> None:
    final = finished_run / "final"
    theirs = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    tokens = torch.tensor([tokenizer("7-+-+=<think>")["input_ids"]])
    ours = load_model(str(final))
    with torch.no_grad():
        torch.testing.assert_close(
            ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-5, rtol=1e-5
        )


def test_eval_of_a_run_gives_the_numbers_of_its_last_evaluation(finished_run: Path, capsys) -> None:
    last = eval_rows(finished_run)[-1]
    for target in (finished_run, finished_run / "final", finished_run / "checkpoints" / "latest"):
        assert main(["eval", str(target), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {name: last[name] for name in found}
    assert main(["eval", str(finished_run), "data.eval_limit=2"]) == 0
    assert "2 prompts" in " ".join(capsys.readouterr().out.split())


def test_a_finished_run_goes_on_with_more_steps(capsys) -> None:
    command = ["train", "quickstart", *SMALL]
    assert main([*command, "--quiet"]) == 0
    (run,) = Path("runs").iterdir()
    assert capsys.readouterr().out == f"{run}\n"
    assert main([*command, "--resume"]) == 0
    assert "this run is finished" in capsys.readouterr().out
    assert main([*command, "--resume", "trainer.max_steps=3"]) == 0
    out = capsys.readouterr().out
    assert "trainer.max_steps: 2 -> 3" in out and "3/3" in out and "2/3" not in out
    steps = [row["step"] for row in RunFolder(run).read_metrics() if "reward" in row]
    assert steps == [1, 2, 3]
    environment = json.loads((run / "environment.json").read_text())
    assert len(environment["resumed"]) == 1  # a resume that had nothing to do leaves no trace


def test_a_run_folder_is_not_used_twice_nor_for_another_model(finished_run: Path, capsys) -> None:
    command = ["train", "quickstart", *SMALL, f"run_dir={finished_run}"]
    assert main(command) == 2
    assert "holds a run already; resume it with --resume" in capsys.readouterr().err
    assert main([*command, "--resume", "model.path=llama-small"]) == 2
    assert "'llama-tiny' -> 'llama-small'" in capsys.readouterr().err


def test_a_dry_run_estimates_and_leaves_nothing_behind(tmp_path: Path, capsys) -> None:
    assert main(["train", "quickstart", *SMALL, "trainer.max_steps=500", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "num_generations: 8" in out  # the resolved recipe
    assert "for 500 steps without evaluation" in out and "peak memory so far" in out
    assert list(tmp_path.iterdir()) == []


def test_sft_runs_the_supervised_stage_alone() -> None:
    assert main(["sft", "quickstart", *SMALL, "run_dir=warm", "--quiet"]) == 0
    rows = RunFolder("warm").read_metrics()
    assert [row["stage"] for row in rows] == ["sft"] * 3
    assert not Path("warm/stages").exists() and Path("warm/final").is_dir()


def test_the_starter_runs_as_it_is(capsys) -> None:
    assert main(["init", "start"]) == 0
    assert "now: thinkrl train start/my_recipe.yaml" in capsys.readouterr().out
    short = [*SMALL, "run_dir=run", "--quiet"]
    assert main(["train", "start/my_recipe.yaml", *short]) == 0
    row = RunFolder("run").read_metrics()[-1]
    assert "eval/rewards/right_answer/mean" in row and "eval/rewards/has_thought/mean" in row
    assert main(["init", "start"]) == 2
    assert "start/my_recipe.yaml, start/my_reward.py: there already" in capsys.readouterr().err


def test_ctrl_c_saves_and_says_how_to_go_on() -> None:
    command = [
        *(sys.executable, "-m", "thinkrl.grpo.cli", "train", "quickstart", *SMALL),
        *("trainer.max_steps=100000", "run_dir=run"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        metrics = Path("run/metrics.jsonl")
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) > 3:
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        err = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    assert "saved; go on with: thinkrl train quickstart" in last and last.endswith("--resume run")
    step = int(last.split("stopped after step ")[1].split()[0])
    one_more = f"trainer.max_steps={step + 1}"
    assert main(["train", "quickstart", *SMALL, "--resume", "run", one_more, "--quiet"]) == 0
    rows = [row["step"] for row in RunFolder("run").read_metrics() if "reward" in row]
    assert rows == list(range(1, step + 2))
