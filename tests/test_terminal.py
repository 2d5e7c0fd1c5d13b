"""What a run shows on a terminal and in a pipe."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from thinkrl.grpo import terminal
from thinkrl.grpo.terminal import (
    RunDisplay,
    clean,
    compact,
    duration,
    headline,
    number,
    shorten,
    signal_advice,
    sparkline,
)


def display(
    *, tty: bool = False, width: int = 100, max_steps: int = 20, quiet: bool = False
) -> tuple[RunDisplay, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=tty, width=width, highlight=False, color_system=None)
    return RunDisplay("grpo", max_steps, quiet=quiet, console=console), out


def step_metrics(step: int, **more: float) -> dict[str, float]:
    return {
        "reward": step / 20,
        "completions/mean_length": 10.0 + step,
        "sampling/kl": 3e-7,
        "tokens_per_s": 1234.0,
        **more,
    }


def test_a_pipe_gets_one_plain_line_for_every_tenth() -> None:
    shown, out = display()
    for step in range(1, 21):
        shown.update(step, step_metrics(step))
    lines = out.getvalue().splitlines()
    assert len(lines) == 11  # the first step and each tenth
    assert "20/20" in lines[-1]
    for part in ("reward 1.00", "length 30.0", "kl 3e-07", "1.2k tok/s", "0:00 left"):
        assert part in lines[-1]
    assert "ref-kl" not in out.getvalue()
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_slow_steps_get_a_line_each(monkeypatch) -> None:
    now = iter(range(0, 10**6, 20))  # every look at the clock is 20 s later
    monkeypatch.setattr(terminal.time, "monotonic", lambda: float(next(now)))
    shown, out = display(max_steps=1000)
    for step in range(1, 6):
        shown.update(step, step_metrics(step))
    assert len(out.getvalue().splitlines()) == 5


def test_the_reference_kl_is_shown_where_there_is_one() -> None:
    shown, out = display(max_steps=1)
    shown.update(1, step_metrics(1, kl=0.0125))
    assert "ref-kl 0.013" in out.getvalue() or "ref-kl 0.012" in out.getvalue()


def test_time_left_is_the_pace_of_the_last_steps(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    shown, out = display(max_steps=100)
    for step in range(41, 51):  # a resumed run counts only its own steps
        now[0] += 30.0
        shown.update(step, step_metrics(step))
    assert "25:00 left" in out.getvalue().splitlines()[-1]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_live_line_fits_the_terminal(width: int) -> None:
    shown, out = display(tty=True, width=width, max_steps=1000)
    for step in range(1, 30):
        shown.update(step, step_metrics(step, kl=0.5))
    line = shown._live_line()
    shown.close()
    assert line.cell_len <= width
    assert "29/1000" in line.plain
    assert ("\u2501" in line.plain) == (width == 200)
    assert ("tok/s" in line.plain) == (width >= 80)
    assert out.getvalue().count("\n") <= 2  # one line, rewritten in place


def test_finish_charts_reward_and_length_and_compares_evaluations() -> None:
    shown, out = display()
    shown.evaluation(0, {"eval/reward": 0.25, "eval/completions/mean_length": 7.0})
    for step in range(1, 21):
        shown.update(step, step_metrics(step))
    shown.evaluation(20, {"eval/reward": 0.95, "eval/completions/mean_length": 15.0})
    shown.finish([("run", "runs/example")])
    rows = [line.split() for line in out.getvalue().splitlines()]
    bars = "".join(b * n for b, n in zip(terminal._BLOCKS, (3, 2, 3, 2, 2, 3, 2, 3), strict=True))
    assert ["reward", "0.050", bars, "1.00"] in rows
    assert ["length", "11.0", bars, "30.0"] in rows
    assert ["reward", "0.250", "0.950"] in rows
    assert ["length", "7.00", "15.0"] in rows
    assert ["run", "runs/example"] in rows


def test_a_terminal_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors="strict", write_through=True)
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    shown = RunDisplay("grpo", 4, console=console)
    for step in range(1, 5):
        shown.update(step, step_metrics(step))
    shown.finish()
    assert b"===" in raw.getvalue() and b"#" in raw.getvalue()


def test_quiet_shows_nothing() -> None:
    shown, out = display(quiet=True)
    shown.header("name", "question", [("run", "x")])
    shown.note("advice")
    shown.sample("before", "1+1=", "2", 1.0)
    shown.evaluation(0, {"eval/reward": 0.5})
    for step in range(1, 21):
        shown.update(step, step_metrics(step, frac_reward_zero_std=1.0))
    shown.finish([("run", "x")])
    assert out.getvalue() == ""


def test_model_output_cannot_steer_the_terminal_or_the_markup() -> None:
    shown, out = display(tty=True)
    shown.sample("before", "say [bold]hi[/bold]", "\x1b[2Jgone\x07\r[/red]", 0.0)
    text = out.getvalue()
    assert "\x1b[2J" not in text and "\x07" not in text and "\r" not in text
    assert "[bold]hi[/bold]" in text and "\\x1b[2Jgone\\x07\\r[/red]" in text


def test_long_samples_are_cut_in_the_middle_and_say_so() -> None:
    assert shorten("a" * 600 + "b" * 600, 100) == f"{'a' * 50} [... 1100 characters ...] {'b' * 50}"
    shown, out = display(width=60)
    shown.sample("after", "p" * 300, "line one\nline two", 0.5)
    lines = out.getvalue().splitlines()
    assert lines[-1].strip() == "reward 0.500"
    assert lines[-2].strip() == "line two"


def test_advice_only_when_groups_teach_nothing_and_nothing_was_learned() -> None:
    flat, lively = [0.9] * 8, [0.3] * 8
    few = signal_advice(flat, [0.02] * 8)
    many = signal_advice(flat, [0.98] * 8)
    assert few is not None and "easier prompts" in few and "90%" in few
    assert many is not None and "harder prompts" in many
    assert signal_advice(lively, [0.02] * 8) is None
    assert signal_advice(flat[:4], [0.0] * 4) is None
    assert signal_advice(flat, [0.1, 0.1, 0.1, 0.5, 0.9, 0.95, 0.95, 0.95]) is None
    assert signal_advice([math.nan] * 8, [0.0] * 8) is None


def test_advice_is_given_once() -> None:
    shown, out = display()
    for step in range(1, 21):
        shown.update(step, step_metrics(0, frac_reward_zero_std=0.95))
    assert out.getvalue().count("teach nothing") == 1


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], width=8) == terminal._BLOCKS
    assert sparkline([0, 0, 10, 10], width=2) == terminal._BLOCKS[0] + terminal._BLOCKS[-1]
    assert len(set(sparkline([5.0] * 10, width=10))) == 1
    assert sparkline([0.0, math.nan, 1.0], width=3)[1] == " "
    assert sparkline([math.inf], width=3) == " "
    assert sparkline([], width=10) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.25, "0.250"),
        (3.14159, "3.14"),
        (15.04, "15.0"),
        (512.4, "512"),
        (123456.0, "1e+05"),
        (3e-7, "3e-07"),
        (-8e-10, "0.000"),
        (-0.5, "-0.500"),
        (math.nan, "nan"),
    ],
)
def test_numbers_stay_short(value: float, text: str) -> None:
    assert number(value) == text


def test_counts_and_durations() -> None:
    assert [compact(x) for x in (7, 999, 1234, 123456, 4.1e6, 2e9)] == [
        *("7", "999", "1.2k", "123k", "4.1M", "2.0G")
    ]
    assert [duration(x) for x in (7, 754, 10921)] == ["0:07", "12:34", "3:02:01"]


def test_clean_keeps_ordinary_text() -> None:
    text = "caf\u00e9 \u2264 2\tx\n<think>"
    assert clean(text) == text


def test_headline_leaves_out_what_repeats_itself() -> None:
    metrics = {
        "step": 5.0,
        "eval/reward": 0.25,
        "eval/rewards/exact_answer/mean": 0.25,
        "eval/pass@1": 0.25,
        "eval/pass@4": 0.5,
        "eval/greedy/reward": 0.3,
        "eval/greedy/pass@1": 0.3,
        "eval/completions/mean_length": 7.0,
    }
    assert headline(metrics) == {"reward": 0.25, "pass@4": 0.5, "greedy": 0.3, "length": 7.0}
    two = headline({**metrics, "eval/reward": 0.4, "eval/rewards/think_format/mean": 0.75})
    assert two["exact_answer"] == 0.25 and two["think_format"] == 0.75 and two["pass@1"] == 0.25


def test_a_resumed_run_charts_all_of_its_steps() -> None:
    shown, out = display()
    rows = [{"step": i, "stage": "grpo", "reward": i / 10, "lr": None} for i in range(11)]
    shown.update(10, {"reward": 1.0})
    shown.replay([{"step": 0, "eval/reward": 0.1}, *rows, {"step": 10, "eval/reward": 0.9}])
    shown.finish()
    text = out.getvalue()
    assert "0.000 " + sparkline([float(i) for i in range(11)], width=60) + " 1.00" in text
    assert ["reward", "0.100", "0.900"] in [line.split() for line in text.splitlines()]
