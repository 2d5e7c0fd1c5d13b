"""`thinkrl score`: any reward over recorded completions, with explanations and alarms."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rewards.explain import RowScorer, Scored
from .recipe import parse_value
from .row_files import Chunk, check_ending, read_chunks, row_writer

ADDED = ("reward", "explanation", "error")
CHUNK_ROWS = 256
_REPORT_EVERY_S = 10.0  # where standard error is no terminal


@dataclass
class Tally:
    """What a file of rows earned."""

    rows: int = 0
    unscored: int = 0
    errors: int = 0
    total: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    first_error: str = ""

    def add(self, scored: Sequence[Scored]) -> None:
        """Count a chunk's verdicts."""
        for one in scored:
            self.rows += 1
            if one.error is not None:
                self.errors += 1
                self.first_error = self.first_error or f"row {self.rows}: {one.error}"
            if one.reward is None:
                self.unscored += 1
                continue
            self.total += one.reward
            self.lowest = min(self.lowest, one.reward)
            self.highest = max(self.highest, one.reward)

    @property
    def mean(self) -> float:
        """The mean reward of the scored rows; NaN where there are none."""
        count = self.rows - self.unscored
        return self.total / count if count else math.nan

    def alarm(self) -> str | None:
        """What makes a reward teach nothing, where these rows show it."""
        scored = self.rows - self.unscored
        if self.rows and not scored:
            why = f"; first error: {self.first_error}" if self.first_error else ""
            return f"all unscored: no row got a reward{why}"
        if scored < 2 or self.lowest < self.highest:
            return None
        if self.lowest == 0:
            return (
                f"always 0: none of {scored:,} rows earned anything; `explanation` says what was "
                "found in each"
            )
        return f"constant: all {scored:,} rows earned {self.lowest:g}; equal rewards teach nothing"

    def summary(self) -> str:
        """One line: rows, mean, unscored, errors."""
        mean = "no mean" if math.isnan(self.mean) else f"mean reward {self.mean:.4g}"
        return f"{self.rows:,} rows, {mean}, {self.unscored:,} unscored, {self.errors:,} errors"


def parse_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as keyword arguments; values are YAML. Raises ValueError for another."""
    kwargs: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--kwargs {pair!r}: write key=value")
        kwargs[key] = parse_value(text)
    return kwargs


def score_file(
    reward: str,
    source: str,
    target: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    chunk_rows: int = CHUNK_ROWS,
    quiet: bool = False,
) -> Tally:
    """Score the rows of one file into another, chunk by chunk, in order.

    Every row keeps its columns and gets `reward`, `explanation` and `error`; a column that already
    has such a name is kept as `input_<name>`. Raises ValueError with the row's number where a row
    is malformed or lacks a column; nothing is then left under `target`.
    """
    check_ending(source)
    check_ending(target)
    if Path(source).resolve() == Path(target).resolve():
        raise ValueError(f"{target}: is the input; give --output another name")
    scorer = RowScorer(reward, kwargs)
    tally, progress = Tally(), _Progress(quiet)
    try:
        with row_writer(target) as writer:
            for chunk in read_chunks(source, size=chunk_rows):
                scored = _score_chunk(scorer, chunk, source)
                tally.add(scored)
                _keep_columns(chunk, source)
                writer.write(chunk, _added(scored))
                progress.show(tally)
    finally:
        scorer.close()
        progress.end()
    return tally


def _score_chunk(scorer: RowScorer, chunk: Chunk, source: str) -> list[Scored]:
    for number, row in enumerate(chunk.rows, chunk.first):
        fault = scorer.fault(row)
        if fault is not None:
            raise ValueError(f"{source} row {number}: {fault}")
    return scorer.score(chunk.rows)


def _added(scored: Sequence[Scored]) -> dict[str, list[Any]]:
    return {name: [getattr(one, name) for one in scored] for name in ADDED}


def _keep_columns(chunk: Chunk, source: str) -> None:
    """Rename the input's columns that bear an added name."""
    renamed = {name: f"input_{name}" for name in ADDED}
    for number, row in enumerate(chunk.rows, chunk.first):
        for old, new in renamed.items():
            if old in row and new in row:
                raise ValueError(f"{source} row {number}: has both {old} and {new}; rename one")
    chunk.rename(renamed)


class _Progress:
    """How far it is, on standard error: one live line on a terminal, else a line now and then."""

    def __init__(self, quiet: bool) -> None:
        self.live = sys.stderr.isatty()
        self.quiet = quiet
        self.started = self.shown = time.monotonic()
        self.open = False

    def show(self, tally: Tally) -> None:
        now = time.monotonic()
        if self.quiet or now - self.shown < (0.2 if self.live else _REPORT_EVERY_S):
            return
        self.shown, self.open = now, self.live
        line = f"{tally.summary()}, {tally.rows / (now - self.started):,.0f} rows/s"
        print(
            f"\r\033[K{line}" if self.live else line,
            end="" if self.live else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        if self.open:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
