"""What a run shows: one live line on a terminal, plain lines in a pipe, and a chart at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .recipe import find_recipe, recipe_facts, recipe_names

Pairs = Sequence[tuple[str, str]]

# Metric, label, style: what the live line and the charts show of a step, where it is there.
FIELDS = (
    ("loss", "loss", "cyan"),
    ("reward", "reward", "bold cyan"),
    ("completions/mean_length", "length", "yellow"),
    ("sampling/kl", "kl", ""),
    ("kl", "ref-kl", ""),
)
PLAIN_SECONDS = 15.0  # a pipe gets a line at least this often, beside one for every 10 %
WINDOW = 10  # steps that speed and time left are averaged over
SIGNAL_WINDOW = 5  # steps before the advice on groups without signal
SAMPLE_CHARACTERS = 400
_LABEL_WIDTH = 9
_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_ASCII_BLOCKS = "_.-=+*%#"


class RunDisplay:
    """Shows one stage. `update` and `note` may come at any time after `header`.

    `quiet` shows nothing: for `--quiet`, and for every process but the first.
    """

    def __init__(
        self, stage: str, max_steps: int, *, quiet: bool = False, console: Console | None = None
    ) -> None:
        self.stage = stage
        self.max_steps = max_steps
        self.quiet = quiet
        self.console = console or Console(highlight=False)
        self.history: dict[str, list[float]] = {}
        self.evaluations: list[Mapping[str, float]] = []
        self._seen: list[tuple[float, int]] = []  # (time, step) of the last updates
        self._live: Live | None = None
        self._printed = (-math.inf, 0)
        self._advised = False

    def header(self, title: str, subtitle: str, lines: Pairs) -> None:
        """Name and question of a run, then labelled facts."""
        if self.quiet:
            return
        self._print(Text.assemble("\n", (title, "bold cyan"), "  ", subtitle, "\n"))
        self.facts(lines)

    def facts(self, lines: Pairs) -> None:
        """Labelled facts, one a line."""
        for label, value in lines:
            self._print(Text.assemble("  ", (label.ljust(_LABEL_WIDTH), "dim"), clean(value)))

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step."""
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(float(value))
        self._seen = [*self._seen[-WINDOW:], (time.monotonic(), step)]
        if self.quiet:
            return
        if self.console.is_terminal:
            self._show_live()
        elif self._line_is_due(step):
            self._print(self._line())
            self._printed = (time.monotonic(), step)
        self._advise()

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the scores of held-out rows; names may start with `eval/`."""
        scores = headline(metrics)
        self.evaluations.append(scores)
        line = Text.assemble("  ", ("eval".ljust(_LABEL_WIDTH), "dim"), f"step {step}")
        for name, value in scores.items():
            line.append(f"  {name} ", "dim").append(number(value))
        self._print(line)

    def replay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the history from metrics.jsonl: of a resumed run, this process saw only a part."""
        self.history, self.evaluations = {}, []
        for row in rows:
            values = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
            if any(name.startswith("eval/") for name in values):
                self.evaluations.append(headline(values))
            else:
                for name, value in values.items():
                    self.history.setdefault(name, []).append(value)

    def sample(self, title: str, prompt: str, completion: str, reward: float | None = None) -> None:
        """Show what the model writes; long texts are cut in the middle."""
        score = "" if reward is None else f"  reward {number(reward)}"
        prompt, completion = (clean(shorten(text)) for text in (prompt, completion))
        head = Text.assemble("  ", (title.ljust(_LABEL_WIDTH), "dim"))
        if "\n" in prompt + completion or len(prompt + completion) > 100:
            indent = "\n" + " " * (_LABEL_WIDTH + 2)
            head.append(prompt.strip().replace("\n", indent), "dim")
            head.append(indent + completion.strip().replace("\n", indent))
            head.append(indent + score.strip() if score else "", "cyan")
        else:
            head.append(prompt, "dim").append(completion).append(score, "cyan")
        self._print(head)

    def note(self, text: str) -> None:
        """A line of advice or explanation."""
        self._print(Text.assemble("  ", ("note".ljust(_LABEL_WIDTH), "yellow"), clean(text)))

    def close(self) -> None:
        """Take the live line away; also when the run failed."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def finish(self, lines: Pairs = ()) -> None:
        """The chart of the run, held-out scores before and after, and labelled facts."""
        self.close()
        if self.quiet:
            return
        self._print(Text())
        for name, label, style in self._fields():
            values = self.history.get(name, [])
            if len(values) > 1 and style:
                self._print(self._chart_row(label, values, style))
        if len(self.evaluations) > 1:
            self._print(Text())
            self._print(before_and_after(self.evaluations[0], self.evaluations[-1]))
        self._print(Text())
        self.facts(lines)

    def _fields(self) -> list[tuple[str, str, str]]:
        hidden = "loss" if "reward" in self.history else None  # that of GRPO says little
        return [field for field in FIELDS if field[0] != hidden]

    def _print(self, what: Any) -> None:
        if not self.quiet:
            self.console.print(what, soft_wrap=isinstance(what, Text))

    def _chart_row(self, label: str, values: Sequence[float], style: str) -> Text:
        width = max(10, min(60, self.console.width - 36))
        bars = sparkline(values, width=width, blocks=self._blocks())
        few = max(1, len(values) // 20)
        first, last = number(average(values[:few])), number(average(values[-few:]))
        row = Text.assemble("  ", (label.ljust(_LABEL_WIDTH), "dim"), f"{first:>7} ")
        return row.append(bars, style).append(f" {last}", "bold")

    def _blocks(self) -> str:
        return _BLOCKS if self.console.encoding.startswith("utf") else _ASCII_BLOCKS

    def _show_live(self) -> None:
        if self._live is None:
            self._live = Live(
                console=self.console,
                get_renderable=self._live_line,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()

    def _live_line(self) -> Text:
        """The longest form that fits: first the bar shrinks, then the line is cut at the right."""
        width = self.console.width
        line = Text()
        for bar_width in (24, 12, 6, 0):
            line = self._line(bar_width=bar_width)
            if line.cell_len <= width:
                return line
        line.truncate(width)
        return line

    def _line(self, *, bar_width: int | None = None) -> Text:
        step = self._seen[-1][1]
        label = self.stage.ljust(_LABEL_WIDTH) if bar_width is None else self.stage + " "
        line = Text.assemble("  ", (label, "dim"))
        if bar_width:
            full = round(bar_width * step / self.max_steps)
            utf = self.console.encoding.startswith("utf")
            done, rest = ("\u2501", "\u2501") if utf else ("=", "-")
            line.append(done * full, "cyan").append(rest * (bar_width - full), "bright_black")
            line.append(" ")
        line.append(f"{step:>{len(str(self.max_steps))}}/{self.max_steps}")
        for name, label, style in self._fields():
            if values := self.history.get(name):
                line.append(f"  {label} ", "dim").append(number(values[-1]), style)
        if speeds := self.history.get("tokens_per_s", [])[-WINDOW:]:
            line.append(f"  {compact(average(speeds))} tok/s")
        left = self._seconds_left()
        if left is not None:
            line.append(f"  {duration(left)} left", "dim")
        return line

    def _seconds_left(self) -> float | None:
        (first_time, first_step), (last_time, step) = self._seen[0], self._seen[-1]
        if step == first_step:
            return None
        pace = (last_time - first_time) / (step - first_step)
        return max(0.0, pace * (self.max_steps - step) - (time.monotonic() - last_time))

    def _line_is_due(self, step: int) -> bool:
        printed_at, printed_step = self._printed
        tenth = 10 * step // self.max_steps > 10 * printed_step // self.max_steps
        late = time.monotonic() - printed_at >= PLAIN_SECONDS
        return tenth or late or step == self.max_steps

    def _advise(self) -> None:
        advice = signal_advice(
            self.history.get("frac_reward_zero_std", []), self.history.get("reward", [])
        )
        if advice and not self._advised:
            self._advised = True
            self.note(advice)


def show_recipes(console: Console | None = None) -> None:
    """The shipped recipes with what their first lines say of them."""
    console = console or Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name in recipe_names():
        table.add_row(Text(name, "bold cyan"))
        for fact, text in recipe_facts(find_recipe(name)).items():
            table.add_row(Text(f"  {fact.lower()}", "dim"), Text(text))
    console.print(table)


def signal_advice(zero_std: Sequence[float], rewards: Sequence[float]) -> str | None:
    """What to do when most groups have equal rewards; None while enough of them differ.

    Also None when the reward has risen clearly since the start: such a run has learned its task.
    """
    recent = zero_std[-SIGNAL_WINDOW:]
    if len(recent) < SIGNAL_WINDOW or not average(recent) >= 0.75 or len(rewards) < SIGNAL_WINDOW:
        return None
    before, now = average(rewards[:SIGNAL_WINDOW]), average(rewards[-SIGNAL_WINDOW:])
    if now - before > 0.1:
        return None
    remedy = (
        "easier prompts, an sft stage before, or more num_generations make some succeed"
        if now < 0.5
        else "harder prompts make some fail"
    )
    return (
        f"{average(recent):.0%} of the groups have equal rewards (mean {number(now)}) and teach "
        f"nothing: {remedy}; trainer.dynamic_sampling=true samples on until groups differ"
    )


def before_and_after(first: Mapping[str, float], last: Mapping[str, float]) -> Table:
    """Held-out scores of the first and the last evaluation, side by side."""
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    for heading in ("held out", "before", "after"):
        table.add_column(heading, justify="left" if heading == "held out" else "right")
    for name in last:
        if name in first:
            after = Text(number(last[name]), "bold")
            table.add_row(name, number(first[name]), after)
    return table


def sparkline(values: Sequence[float], *, width: int, blocks: str = _BLOCKS) -> str:
    """Values as a row of block characters, from the smallest (lowest block) to the largest.

    More values than `width` are averaged into that many bins; fewer give a shorter row. A value
    that is not finite gives a space.
    """
    bins = min(width, len(values))
    edges = [len(values) * i // bins for i in range(bins + 1)] if bins else []
    means = [average(values[a:b]) for a, b in pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = high - low
    cells = []
    for mean in means:
        if not math.isfinite(mean):
            cells.append(" ")
            continue
        level = (mean - low) / span if span > 1e-12 else 0.5
        cells.append(blocks[min(len(blocks) - 1, int(level * len(blocks)))])
    return "".join(cells)


def average(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def number(value: float) -> str:
    """About three significant digits; one and an exponent where a number is very small or large."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if 0 < size < 1e-7:
        return "0.000"  # float noise, of a KL between equals say
    if size >= 1e5 or 0 < size < 1e-3:
        return f"{value:.0e}"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3f}" if size < 1 else f"{value:.2f}"


def compact(value: float) -> str:
    """A count with k or M: 950, 12.3k, 4.1M."""
    for limit, factor, unit in ((1e3, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if value < limit:
            scaled = value / factor
            return f"{scaled:.0f}{unit}" if not unit or scaled >= 100 else f"{scaled:.1f}{unit}"
    return f"{value / 1e9:.1f}G"


def duration(seconds: float) -> str:
    """0:07, 12:34, 3:02:01."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """The scores of an evaluation that the terminal shows, under short names.

    Left out: details of the greedy completions, and what repeats the reward (a reward function
    that is the only one, pass@1 of a reward that is 0 or 1).
    """
    scores = {name.removeprefix("eval/"): value for name, value in metrics.items() if "/" in name}
    functions = [name for name in scores if name.startswith("rewards/")]
    shown = {"reward": scores.get("reward", math.nan)}
    for name in functions if len(functions) > 1 else ():
        shown[name.removeprefix("rewards/").removesuffix("/mean")] = scores[name]
    for name, value in scores.items():
        if name.startswith("pass@") and value != shown["reward"]:
            shown[name] = value
    for name, short in (("greedy/reward", "greedy"), ("completions/mean_length", "length")):
        if name in scores:
            shown[short] = scores[name]
    return shown


def shorten(text: str, limit: int = SAMPLE_CHARACTERS) -> str:
    """A text of at most about `limit` characters; the middle goes, and its length is told."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit // 2], text[-limit // 2 :]
    return f"{head} [... {len(text) - limit} characters ...] {tail}"


def clean(text: str) -> str:
    """Text without control characters: what a model writes must not steer the terminal."""
    return "".join(
        c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
