"""Rewards of recorded rows with their grounds: what `thinkrl score` adds to each row.

A built-in reward of the table below says how it came to its verdict. Any other function may have an
attribute `explain`, called as the function is, which returns an object (or None) per completion;
without one, what it passed to `log_extra` is its explanation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from .answer_format import format_fault
from .completion import completion_text, prompt_texts
from .compose import RewardSuite
from .registry import BUILTINS, load_reward
from .signature import (
    ONE_ROW,
    RESERVED,
    RewardError,
    accepted_arguments,
    required_arguments,
    takes_one_row,
)

Row = dict[str, Any]
ALIASES = {"answer": "gold"}  # a column that a reward asks for: what rows may call it instead
_ALWAYS = {*RESERVED, *ONE_ROW.values()} - {"completion_ids"}  # never asked of a row's columns


@dataclass(frozen=True)
class Scored:
    """One row's verdict: no reward where it could not be scored, and then perhaps why."""

    reward: float | None
    explanation: dict[str, Any] | None = None
    error: str | None = None


class RowScorer:
    """Scores rows: objects with `completion`, perhaps `prompt`, and what the reward asks for.

    Raises ValueError for an unknown reward, a keyword it does not take, and, for a built-in one,
    settings with which it cannot work on any row.
    """

    def __init__(self, name: str, kwargs: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.kwargs = dict(kwargs or {})
        self.function = load_reward(name, self.kwargs)
        self.needs = [key for key in required_arguments(self.function) if key not in _ALWAYS]
        self._suite = RewardSuite([self.function])
        if name in BUILTINS:  # of no rows, it still checks its settings
            try:
                self._suite.score([], [], [], {key: [] for key in self.needs})
            except RewardError as error:
                if not isinstance(error.__cause__, RewardError):  # a column that its verifier needs
                    raise ValueError(f"reward {name!r}: {error.__cause__ or error}") from error

    def close(self) -> None:
        """End what async rewards run on."""
        self._suite.close()

    def fault(self, row: Row) -> str | None:
        """Why a row is no input for this reward: a missing column, or a completion of no kind."""
        for key in ("completion", *self.needs):
            if key not in row and ALIASES.get(key) not in row:
                also = f" (or {ALIASES[key]})" if key in ALIASES else ""
                there = ", ".join(map(str, row)) or "none"
                return f"no column {key}{also}, which {self.name} needs; columns: {there}"
        completion = row["completion"]
        if isinstance(completion, str):
            return None
        if not isinstance(completion, list) or not all(isinstance(m, dict) for m in completion):
            return f"completion is {_shown(completion)}; it must be text or a list of messages"
        return None

    def score(self, rows: Sequence[Row]) -> list[Scored]:
        """A verdict per row, in order. A row that makes the function raise has the error's text."""
        if not rows:
            return []
        try:
            return self._score_all(rows)
        except ValueError as error:  # a RewardError, or a built-in verifier's own
            if len(rows) == 1:
                return [Scored(None, error=_reason(error))]
        middle = len(rows) // 2
        return [*self.score(rows[:middle]), *self.score(rows[middle:])]

    def _score_all(self, rows: Sequence[Row]) -> list[Scored]:
        completions = [row["completion"] for row in rows]
        columns = self._columns(rows)
        if explainer := EXPLAINERS.get(self.name):
            return explainer(completions, columns, self.kwargs)
        prompts, ids = columns.pop("prompt"), columns.pop("completion_ids", None)
        state = SimpleNamespace(global_step=0, max_steps=1)
        scores = self._suite.score(prompts, completions, ids, columns, state)
        explain = getattr(self.function, "explain", None)
        if explain is None:
            grounds = [
                {key: values[i] for key, values in scores.extra.items()} or None
                for i in range(len(rows))
            ]
        else:
            arguments = {"prompts": prompts, "completions": completions, **columns}
            grounds = _explained(explain, arguments)
        return [Scored(reward, why) for reward, why in zip(scores.total, grounds, strict=True)]

    def _columns(self, rows: Sequence[Row]) -> dict[str, list[Any]]:
        """The rows as columns: null where a row has none, aliases under the name asked for."""
        names = dict.fromkeys(key for row in rows for key in row if key != "completion")
        columns = {name: [row.get(name) for row in rows] for name in names}
        for name, alias in ALIASES.items():
            if alias in columns:
                columns[name] = [row[name] if name in row else row.get(alias) for row in rows]
        columns["prompt"] = [prompt or "" for prompt in columns.get("prompt", [""] * len(rows))]
        return columns


def _explained(explain: Callable[..., Any], arguments: dict[str, Any]) -> list[Any]:
    if not takes_one_row(explain):
        return list(explain(**accepted_arguments(explain, arguments)))
    rows = [
        {ONE_ROW.get(key, key): values[i] for key, values in arguments.items()}
        for i in range(len(arguments["completions"]))
    ]
    return [explain(**accepted_arguments(explain, row)) for row in rows]


def _reason(error: ValueError) -> str:
    cause = error.__cause__ if isinstance(error, RewardError) else None
    text = str(error) if cause is None else f"{type(cause).__name__}: {cause}"
    return " ".join(text.split())


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- built-in rewards that tell their grounds


def _math_answer(
    completions: Sequence[Any], columns: Mapping[str, list[Any]], kwargs: Mapping[str, Any]
) -> list[Scored]:
    from .math_answer import explain

    scored = []
    options = columns.get("options", [None] * len(completions))
    for completion, gold, choices in zip(completions, columns["answer"], options, strict=True):
        settings = dict(kwargs) if choices is None else {**kwargs, "options": choices}
        try:
            report = explain(completion_text(completion), gold, **settings)
        except ValueError as error:  # the gold cannot be read
            scored.append(Scored(None, error=" ".join(str(error).split())))
            continue
        scored.append(Scored(float(report["correct"]), report))
    return scored


def _code_tests(
    completions: Sequence[Any], columns: Mapping[str, list[Any]], kwargs: Mapping[str, Any]
) -> list[Scored]:
    """Every test is run, so that the explanation tells of all; the reward is code_tests' own."""
    from .code_formats import read_tests
    from .code_tests import row_score, run_batch

    settings = dict(kwargs)
    mode = settings.pop("mode", "all")
    held, scored = [], [Scored(None, error="the row has no tests") for _ in completions]
    for i, tests in enumerate(columns["tests"]):
        try:
            if tests is not None and read_tests(tests):
                held.append(i)
        except ValueError as error:
            scored[i] = Scored(None, error=_reason(error))
    pairs = [(completion_text(completions[i]), columns["tests"][i]) for i in held]
    for i, result in zip(held, run_batch(pairs, **settings), strict=True):
        reward = row_score(result, mode)
        error = "the sandbox failed" if reward is None else None
        scored[i] = Scored(reward, dataclasses.asdict(result), error)
    return scored


def _think_format(
    completions: Sequence[Any], columns: Mapping[str, list[Any]], kwargs: Mapping[str, Any]
) -> list[Scored]:
    texts = prompt_texts(columns["prompt"], columns.get("prompt_text"))
    cut = columns.get("truncated", [False] * len(texts))
    faults = [
        format_fault(completion_text(one), prompt=text, truncated=bool(truncated), **kwargs)
        for one, text, truncated in zip(completions, texts, cut, strict=True)
    ]
    return [Scored(float(fault is None), {"fault": fault}) for fault in faults]


EXPLAINERS: dict[str, Callable[..., list[Scored]]] = {
    "math_answer": _math_answer,
    "code_tests": _code_tests,
    "think_format": _think_format,
}
