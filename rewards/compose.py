"""Runs reward functions over a batch, checks what they return, and sums them by weight.

A reward function has TRL's signature: it is called by keyword with `prompts`, `completions`,
`completion_ids`, every dataset column, `trainer_state`, `log_extra` and `log_metric`, as far as it
accepts them, and returns one value per completion: a number, a bool (1 or 0), or None for a row
that it cannot score. Nothing else becomes a reward: it is an error that names function, row, value.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
import threading
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

RewardFunction = Callable[..., Any]
RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_NOT_PASSED = ("prompt", "completion", *RESERVED)  # column names that never reach a function


class RewardError(ValueError):
    """A reward function failed or returned something that is not a reward."""


@dataclass
class Scores:
    """What a batch earned; None = not scored. `total` is None where every function gave None."""

    by_name: dict[str, list[float | None]]
    total: list[float | None]
    extra: dict[str, list[Any]] = field(default_factory=dict)  # log_extra columns
    metrics: dict[str, float] = field(default_factory=dict)  # log_metric, averaged over calls


def reward_name(function: RewardFunction) -> str:
    """The name under which a function's rewards are logged."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def is_async(function: RewardFunction) -> bool:
    """Whether calling `function` gives a coroutine; partials and callable objects included."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is asked for
    )


def accepted_arguments(function: RewardFunction, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `arguments` that `function` can take by keyword.

    What a recipe bound as kwargs wins over a column of that name. Raises RewardError when the
    function requires something that is not there.
    """
    bound: set[str] = set()
    inner = function
    while isinstance(inner, functools.partial):
        bound.update(inner.keywords)
        inner = inner.func
    arguments = {name: value for name, value in arguments.items() if name not in bound}
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables of extension modules have no signature
        return arguments
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in arguments:
            columns = [key for key in arguments if key not in RESERVED]
            raise RewardError(
                f"reward {reward_name(function)!r} needs {name!r}: no such column "
                f"(columns: {', '.join(columns) or 'none'}); map one with data.columns, or set "
                f"{name} in the reward's kwargs"
            )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    return {name: arguments[name] for name in named if name in arguments}


class RewardSuite:
    """Reward functions with weights. Async functions of a batch run concurrently."""

    def __init__(
        self, functions: Sequence[RewardFunction], weights: Sequence[float] | None = None
    ) -> None:
        if not functions:
            raise ValueError("rewards: at least one reward function is needed")
        for function in functions:
            if not callable(function):
                raise ValueError(f"rewards: {function!r} is not callable")
        weights = [1.0] * len(functions) if weights is None else list(weights)
        if len(weights) != len(functions):
            raise ValueError(
                f"rewards: {len(weights)} weights for {len(functions)} functions; give one each"
            )
        if not all(math.isfinite(weight) for weight in weights):
            raise ValueError(f"rewards: weights {weights} must be finite numbers")
        self.functions = dict(zip(_unique_names(functions), functions, strict=True))
        self.weights = dict(zip(self.functions, map(float, weights), strict=True))
        self._loop: asyncio.AbstractEventLoop | None = None

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        trainer_state: Any = None,
    ) -> Scores:
        """Score a batch of B completions; every argument but the last holds one entry per row.

        Raises RewardError when a function raises, or returns a wrong number of values, a NaN, an
        infinity or something that is not a number.
        """
        batch = {
            "prompts": list(prompts),
            "completions": list(completions),
            "completion_ids": [[] for _ in prompts] if completion_ids is None else completion_ids,
            **{key: value for key, value in (columns or {}).items() if key not in _NOT_PASSED},
        }
        for key, values in batch.items():
            if len(values) != len(batch["prompts"]):
                raise ValueError(
                    f"{key} has {len(values)} entries for {len(batch['prompts'])} prompts"
                )
        calls = [
            _Call(name, function, batch, trainer_state) for name, function in self.functions.items()
        ]
        waiting = [call for call in calls if is_async(call.function)]
        futures = [self._submit(call.run_async()) for call in waiting]
        try:  # the plain functions run here while the async ones wait for their answers
            for call in calls:
                if call not in waiting:
                    call.run()
            for call, future in zip(waiting, futures, strict=True):
                call.finish(future.result)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return self._collect(calls)

    def close(self) -> None:
        """Stop the thread that async functions run on."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run on a loop of our own, kept between batches: clients that functions cache stay usable,
        and it works when the caller is itself inside a running loop."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _collect(self, calls: Sequence[_Call]) -> Scores:
        by_name = {call.name: call.rewards for call in calls}
        total: list[float | None] = []
        for row in zip(*by_name.values(), strict=True):
            parts = [
                weight * reward
                for weight, reward in zip(self.weights.values(), row, strict=True)
                if reward is not None
            ]
            total.append(sum(parts) if parts else None)
        extra = {key: values for call in calls for key, values in call.extra.items()}
        logged: dict[str, list[float]] = {}
        for call in calls:
            for key, values in call.metrics.items():
                logged.setdefault(key, []).extend(values)
        metrics = {key: sum(values) / len(values) for key, values in logged.items()}
        return Scores(by_name, total, extra, metrics)


class _Call:
    """One function on one batch."""

    def __init__(
        self, name: str, function: RewardFunction, batch: dict[str, Any], trainer_state: Any
    ) -> None:
        self.name = name
        self.function = function
        self.batch = batch
        self.trainer_state = trainer_state
        self.rewards: list[float | None] = []
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}
        self.arguments = accepted_arguments(
            function,
            {
                **batch,
                "trainer_state": trainer_state,
                "log_extra": self._log_extra,
                "log_metric": self._log_metric,
            },
        )

    def run(self) -> None:
        self.finish(lambda: self.function(**self.arguments))

    async def run_async(self) -> Any:
        return await self.function(**self.arguments)

    def finish(self, result: Callable[[], Any]) -> None:
        """Take the function's result, or turn what went wrong into a RewardError."""
        try:
            values = result()
        except Exception as error:
            raise RewardError(self._describe(error)) from error
        rows = len(self.batch["prompts"])
        self.rewards = _check_rewards(self.name, values, rows)
        for column, logged in self.extra.items():
            if len(logged) != rows:
                raise RewardError(
                    f"reward {self.name!r}: log_extra({column!r}) got {len(logged)} values for "
                    f"{rows} completions; give one per completion"
                )

    def _log_extra(self, column: str, values: Sequence[Any]) -> None:
        self.extra.setdefault(column, []).extend(values)

    def _log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))

    def _describe(self, error: Exception) -> str:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())
        row = None if is_async(self.function) else self._failing_row(type(error))
        where = "" if row is None else f" on row {row} (completion {self._excerpt(row)})"
        return (
            f"reward {self.name!r} raised {type(error).__name__}: {message}{where}, at "
            f"{frame.filename}:{frame.lineno}; return None for a row that cannot be scored"
        )

    def _failing_row(self, kind: type[Exception]) -> int | None:
        """The row that makes the function raise, by bisection: at most one more batch of work."""
        quiet = {"log_extra": lambda *_: None, "log_metric": lambda *_: None}
        low, high = 0, len(self.batch["prompts"])

        def raises(start: int, stop: int) -> bool:
            part = {
                key: value[start:stop] if key in self.batch else quiet.get(key, value)
                for key, value in self.arguments.items()
            }
            try:
                self.function(**part)
            except kind:
                return True
            except Exception:
                return False
            return False

        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if raises(low, middle) else (middle, high)
        return low if high > low and raises(low, high) else None

    def _excerpt(self, row: int) -> str:
        text = repr(self.batch["completions"][row])
        return text if len(text) <= 80 else text[:77] + "..."


def _check_rewards(name: str, values: Any, rows: int) -> list[float | None]:
    if hasattr(values, "tolist"):  # a tensor or an array
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise RewardError(
            f"reward {name!r} returned {_show(values)}, not a list; return one value for each of "
            f"the {rows} completions"
        )
    if len(values) != rows:
        raise RewardError(
            f"reward {name!r} returned {len(values)} values for {rows} completions; return one for "
            "each, None where a row cannot be scored"
        )
    return [_check_value(name, row, value) for row, value in enumerate(values)]


def _check_value(name: str, row: int, value: Any) -> float | None:
    if value is None:
        return None
    if hasattr(value, "item") and not isinstance(value, str | bytes):  # a number of torch or numpy
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            value = value.item()
    if not isinstance(value, int | float):
        raise RewardError(
            f"reward {name!r}: row {row} is {_show(value)}, not a number; return a number, or None "
            "for a row that cannot be scored"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RewardError(
            f"reward {name!r}: row {row} is {number}; return a finite number, or None for a row "
            "that cannot be scored"
        )
    return number


def _unique_names(functions: Sequence[RewardFunction]) -> list[str]:
    """Their names; the second of the same name becomes `name_2`."""
    names: list[str] = []
    for function in functions:
        name, count = reward_name(function), 1
        unique = name
        while unique in names:
            count += 1
            unique = f"{name}_{count}"
        names.append(unique)
    return names


def _show(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({type(value).__name__})"
