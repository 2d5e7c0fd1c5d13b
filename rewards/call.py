"""One reward function on one batch: what it is passed, how long it may take, what it returned.

A function gets the whole batch, or one row at a time where it has a parameter `completion` and none
called `completions`. It returns a number, a bool (1 or 0) or None (not scored) for each row.
Nothing else becomes a reward: it is an error that names function, row and value.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .in_worker import InWorker, Lost, RaisedInWorker
from .signature import (
    ONE_ROW,
    RewardError,
    RewardFunction,
    accepted_arguments,
    is_async,
    takes_one_row,
)

MAX_STUCK = 8  # threads of one function that overran their time and still run


class _Stuck(Exception):
    """Too many threads of a function overran their time."""


class _Piece:
    """The rows that one call of the function scores, and what came of it."""

    def __init__(self, rows: range) -> None:
        self.rows = rows
        self.arguments: dict[str, Any] = {}
        self.rewards: list[float | None] = []
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}
        self.lost = ""  # "timeouts" or "crashes", where the call was given up


class Call:
    """One function on one batch; `batch` maps argument names to one entry per row.

    A call (of the batch, or of a row) that overruns `timeout_s` is given up: its rows are unscored.
    An async one is cancelled, one in a worker process is killed; any other runs in a thread, which
    cannot be ended and goes on in the background: `stuck` collects those.
    """

    def __init__(
        self,
        name: str,
        function: RewardFunction,
        batch: Mapping[str, Sequence[Any]],
        trainer_state: Any = None,
        *,
        timeout_s: float | None = None,
        stuck: list[threading.Thread] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.batch = batch
        self.timeout_s = timeout_s
        self.stuck = [] if stuck is None else stuck
        self.one_row = takes_one_row(function)
        count = len(batch["prompts"])
        cuts = [range(i, i + 1) for i in range(count)] if self.one_row else [range(count)]
        self.pieces = [_Piece(rows) for rows in cuts]
        for piece in self.pieces:
            piece.arguments = accepted_arguments(function, self._offer(piece, trainer_state))

    def _offer(self, piece: _Piece, trainer_state: Any) -> dict[str, Any]:
        """All that a call may be passed."""
        rows = slice(piece.rows.start, piece.rows.stop)
        extra, metrics = piece.extra, piece.metrics  # a call given up no longer writes to its piece

        def log_extra(column: str, values: Any) -> None:
            extra.setdefault(column, []).extend([values] if self.one_row else values)

        def log_metric(name: str, value: float) -> None:
            metrics.setdefault(name, []).append(float(value))

        values: dict[str, Any] = {key: column[rows] for key, column in self.batch.items()}
        if self.one_row:
            values = {ONE_ROW.get(key, key): entries[0] for key, entries in values.items()}
        hooks = {"log_extra": log_extra, "log_metric": log_metric}
        return {**values, "trainer_state": trainer_state, **hooks}

    # -- running

    def run(self) -> None:
        """Call a function that is not async, and check what it returns."""
        width = self.function.width() if isinstance(self.function, InWorker) else 1
        if width == 1 or len(self.pieces) == 1:
            for piece in self.pieces:
                self._settle(piece, functools.partial(self._invoke, piece.arguments))
            return
        with ThreadPoolExecutor(width) as executor:
            futures = [executor.submit(self._invoke, piece.arguments) for piece in self.pieces]
            try:
                for piece, future in zip(self.pieces, futures, strict=True):
                    self._settle(piece, future.result)
            finally:
                executor.shutdown(wait=False, cancel_futures=True)

    async def gather(self) -> list[Any]:
        """The results or exceptions of an async function, its pieces run concurrently."""

        async def run(piece: _Piece) -> Any:
            try:
                async with asyncio.timeout(self.timeout_s) as limit:
                    return await self.function(**piece.arguments)
            except TimeoutError as error:
                return Lost("timeouts") if limit.expired() else error

        return await asyncio.gather(*map(run, self.pieces), return_exceptions=True)

    def finish(self, results: Sequence[Any]) -> None:
        """Check what `gather` returned."""

        def result_of(entry: Any) -> Any:
            if isinstance(entry, BaseException):
                raise entry
            return entry

        for piece, entry in zip(self.pieces, results, strict=True):
            self._settle(piece, functools.partial(result_of, entry))

    def _invoke(self, arguments: dict[str, Any]) -> Any:
        if isinstance(self.function, InWorker):
            return self.function.run(arguments, timeout_s=self.timeout_s)
        if self.timeout_s is None:
            return self.function(**arguments)
        return self._in_thread(arguments, self.timeout_s)

    def _in_thread(self, arguments: dict[str, Any], timeout_s: float) -> Any:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(self.function(**arguments))
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=run, name=f"reward {self.name}", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if future.done():
            return future.result()
        self.stuck[:] = [*(one for one in self.stuck if one.is_alive()), thread]
        if len(self.stuck) >= MAX_STUCK:
            raise _Stuck(
                f"{len(self.stuck)} calls overran timeout_s = {timeout_s:g} and still run; set "
                "in_worker: true for this reward: a process can be ended, a thread cannot"
            )
        raise Lost("timeouts")

    # -- judging the outcome

    def _settle(self, piece: _Piece, result: Callable[[], Any]) -> None:
        """Take a call's result, or turn what went wrong into a RewardError."""
        count = len(piece.rows)
        try:
            values = result()
        except Lost as lost:
            piece.lost = str(lost)
            piece.rewards = [None for _ in piece.rows]
            piece.extra, piece.metrics = {}, {}
            return
        except _Stuck as error:
            raise RewardError(f"reward {self.name!r}: {error}") from None
        except Exception as error:
            raise RewardError(self._describe(error, piece)) from error
        if self.one_row:
            piece.rewards = [_check_value(self.name, piece.rows.start, values)]
        else:
            piece.rewards = _check_rewards(self.name, values, count)
        for column, logged in piece.extra.items():
            if len(logged) != count:
                raise RewardError(
                    f"reward {self.name!r}: log_extra({column!r}) got {len(logged)} values for "
                    f"{count} completion{'s' * (count > 1)}; give one per completion"
                )

    @property
    def rewards(self) -> list[float | None]:
        """One per row; None = not scored."""
        return [reward for piece in self.pieces for reward in piece.rewards]

    @property
    def extra(self) -> dict[str, list[Any]]:
        """The columns of log_extra; None in the rows of a call that was given up or logged none."""
        columns = {column: None for piece in self.pieces for column in piece.extra}
        return {
            column: [
                value
                for piece in self.pieces
                for value in piece.extra.get(column, [None] * len(piece.rows))
            ]
            for column in columns
        }

    @property
    def metrics(self) -> dict[str, list[float]]:
        """The values of log_metric, in the order of rows."""
        logged: dict[str, list[float]] = {}
        for piece in self.pieces:
            for name, values in piece.metrics.items():
                logged.setdefault(name, []).extend(values)
        return logged

    def count_lost(self, kind: str) -> int:
        """Rows that are unscored because of "timeouts" or "crashes"."""
        return sum(len(piece.rows) for piece in self.pieces if piece.lost == kind)

    def _describe(self, error: Exception, piece: _Piece) -> str:
        message = " ".join(str(error).split())
        if isinstance(error, RaisedInWorker):
            kind, place = error.kind, error.place
        else:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            kind, place = type(error).__name__, f"{frame.filename}:{frame.lineno}"
        row = self._failing_row(type(error), piece)
        where = "" if row is None else f" on row {row} (completion {self._excerpt(row)})"
        return (
            f"reward {self.name!r} raised {kind}: {message}{where}, at {place}; return None for a "
            "row that cannot be scored"
        )

    def _failing_row(self, kind: type[Exception], piece: _Piece) -> int | None:
        """The row that makes the function raise, by bisection: at most one more batch of work."""
        if self.one_row:
            return piece.rows.start
        if is_async(self.function):
            return None
        quiet = {"log_extra": lambda *_: None, "log_metric": lambda *_: None}
        low, high = 0, len(piece.rows)

        def raises(start: int, stop: int) -> bool:
            part = {
                key: value[start:stop] if key in self.batch else quiet.get(key, value)
                for key, value in piece.arguments.items()
            }
            try:
                self._invoke(part)
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


def _show(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({type(value).__name__})"
