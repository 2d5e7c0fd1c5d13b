"""What a reward function is called and what it takes: TRL's signature, by keyword.

`prompts`, `completions`, `completion_ids`, every dataset column, `trainer_state`, `log_extra` and
`log_metric`, as far as a function accepts them; or the same of one row, as `prompt`, `completion`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

RewardFunction = Callable[..., Any]
RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
ONE_ROW = {"prompts": "prompt", "completions": "completion"}  # what the two are called row by row


class RewardError(ValueError):
    """A reward function failed or returned something that is not a reward."""


def _innermost(function: RewardFunction) -> RewardFunction:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def reward_name(function: RewardFunction) -> str:
    """The name under which a function's rewards are logged."""
    function = _innermost(function)
    return getattr(function, "__name__", type(function).__name__)


def is_async(function: RewardFunction) -> bool:
    """Whether calling `function` gives a coroutine; partials and callable objects included."""
    function = _innermost(function)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method itself is asked for
    )


def takes_one_row(function: RewardFunction) -> bool:
    """Whether a function scores one completion, not a batch."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "completion" in parameters and "completions" not in parameters


def required_arguments(function: RewardFunction) -> list[str]:
    """The names that a function cannot be called without, those bound by a recipe left out."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some callables of extension modules have no signature
        return []
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in by_keyword and p.default is p.empty]


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
    except (TypeError, ValueError):
        return arguments
    for name in required_arguments(function):
        if name not in arguments and name not in bound:
            columns = [key for key in arguments if key not in (*RESERVED, *ONE_ROW.values())]
            raise RewardError(
                f"reward {reward_name(function)!r} needs {name!r}: no such column "
                f"(columns: {', '.join(columns) or 'none'}); map one with data.columns, or set "
                f"{name} in the reward's kwargs"
            )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {name: arguments[name] for name in named if name in arguments}
