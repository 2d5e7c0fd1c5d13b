"""A reward function that runs in the run's pool of processes: CPU-heavy, or able to crash or hang.

The process finds the function by its name and keyword arguments, as a recipe gives them; rows
travel as JSON. A process that overruns its time is killed, whatever it is doing.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from .workers import START_S, WorkerDied, WorkerPool, WorkerTimeout

MEMORY_MB = 8192  # address space of a worker: room for a library like torch, not for a leak
NO_LIMIT_S = 7 * 86400.0
_lock = threading.Lock()
_pool: WorkerPool | None = None


class Lost(Exception):
    """A call that was given up, "timeouts" or "crashes" by its text: nobody's verdict."""


class RaisedInWorker(Exception):
    """The function raised in its process: the text is its message."""

    def __init__(self, kind: str, message: str, place: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.place = place


def pool() -> WorkerPool:
    """The workers that all rewards of this process share: its share of the machine's cores."""
    global _pool
    with _lock:
        if _pool is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
            cores = cores or os.cpu_count() or 1
            size = max(1, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
            _pool = WorkerPool(size, memory_mb=MEMORY_MB, preload=(__name__,))
        return _pool


class InWorker(functools.partial):
    """`function`, found again in a worker process by `name` and `kwargs` and called there."""

    name: str
    kwargs: dict[str, Any]

    def __new__(cls, function: Callable[..., Any], *, name: str, kwargs: Mapping[str, Any]) -> Any:
        made = super().__new__(cls, function)
        made.name, made.kwargs = name, dict(kwargs)
        return made

    def __call__(self, **arguments: Any) -> Any:
        return self.run(arguments, timeout_s=None)

    def width(self) -> int:
        """How many calls can run at once."""
        return pool().size

    def run(self, arguments: Mapping[str, Any], *, timeout_s: float | None) -> Any:
        """What the function returns for these arguments, with numbers of numpy or torch as plain.

        Raises Lost when it takes longer than `timeout_s`, or its process dies; RaisedInWorker when
        it raises; ValueError when an argument is not JSON.
        """
        hooks = {key: arguments[key] for key in ("log_extra", "log_metric") if key in arguments}
        plain = {key: value for key, value in arguments.items() if key not in hooks}
        if plain.get("trainer_state") is not None:
            plain["trainer_state"] = _scalars(plain["trainer_state"])
        started = time.monotonic()
        try:
            reply = pool().call(
                f"{__name__}:run_here",
                *(self.name, self.kwargs, plain, sorted(hooks), timeout_s or NO_LIMIT_S),
                timeout_s=(timeout_s or NO_LIMIT_S) + START_S,  # the worker keeps the time itself
            )
        except WorkerTimeout:
            raise Lost("timeouts") from None
        except WorkerDied:
            over = timeout_s is not None and time.monotonic() - started >= timeout_s
            raise Lost("timeouts" if over else "crashes") from None
        except (TypeError, RecursionError) as error:
            raise ValueError(
                f"a reward with in_worker gets its rows as JSON, and one is not: {error}"
            ) from error
        if "raised" in reply:
            raise RaisedInWorker(*reply["raised"])
        for hook, *logged in reply["logged"]:
            hooks[hook](*logged)
        return reply["values"]


def _scalars(state: Any) -> dict[str, Any]:
    simple = (int, float, str, bool, type(None))
    return {key: value for key, value in vars(state).items() if isinstance(value, simple)}


# ---- in the worker


@functools.lru_cache(maxsize=64)
def _loaded(name: str, kwargs: str) -> Callable[..., Any]:
    from .registry import load_reward

    return load_reward(name, json.loads(kwargs))


def run_here(
    name: str, kwargs: dict[str, Any], arguments: dict[str, Any], hooks: list[str], timeout_s: float
) -> dict[str, Any]:
    """Call the function; what it returned and logged, or how it raised."""
    logged: list[list[Any]] = []
    for hook in hooks:
        arguments[hook] = lambda key, value, hook=hook: logged.append([hook, key, value])
    if arguments.get("trainer_state") is not None:
        arguments["trainer_state"] = SimpleNamespace(**arguments["trainer_state"])
    try:
        function = _loaded(name, json.dumps(kwargs))
        # No handler: the signal ends this process, even inside a regex that never returns.
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        values = function(**arguments)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return {"raised": [type(error).__name__, str(error), f"{frame.filename}:{frame.lineno}"]}
    return json.loads(json.dumps({"values": values, "logged": logged}, default=_plain))


def _plain(value: Any) -> Any:
    """A tensor, an array or a number of theirs as plain data; anything else as its repr."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)
