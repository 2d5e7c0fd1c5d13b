"""Finds reward functions: built-in names, `package.module:function`, `path/file.py:function`."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .compose import RewardSuite, Rule
from .in_worker import InWorker
from .signature import ONE_ROW, RESERVED, RewardFunction, is_async, reward_name

# name: module of this folder and attribute in it; imported when asked for
BUILTINS: dict[str, str] = {
    "exact_answer": "exact_answer:exact_answer",
    "exact_match": "exact_answer:exact_match",
    "multiple_choice": "multiple_choice:multiple_choice",
    "regex": "regex_match:RegexMatch",
    "json_schema": "json_schema:JsonSchema",
    "model_judge": "model_judge:ModelJudge",
    "math_answer": "math_answer:math_answer",
    "code_tests": "code_tests:code_tests",
    "countdown": "countdown:countdown",
    "think_format": "answer_format:think_format",
    "tag_count": "answer_format:tag_count",
    "soft_overlong": "length:soft_overlong",
    "cosine_length": "length:cosine_length",
    "kimi_length": "length:kimi_length",
    "length_budget": "length:length_budget",
    "repetition": "length:repetition",
    "reasoning_steps": "length:reasoning_steps",
    "language_consistency": "language:language_consistency",
}


def load_reward(name: str, kwargs: Mapping[str, Any] | None = None) -> RewardFunction:
    """The reward function of that name, with `kwargs` bound to it.

    A class is instantiated with `kwargs`; a function that takes neither completions nor **kwargs
    is a factory (as TRL's get_soft_overlong_punishment) and is called with them. Raises
    ValueError, in one line, when there is no such file, module or function, when it is not
    callable, when importing it fails, or when it does not take a keyword of `kwargs`.
    """
    found, label = _find(name)
    if not callable(found):
        raise ValueError(f"reward {name!r}: {label} is a {type(found).__name__}, not a function")
    kwargs = dict(kwargs or {})
    _check_kwargs(name, found, kwargs)
    if inspect.isclass(found) or _is_factory(found):
        try:
            made = found(**kwargs)
        except Exception as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise ValueError(f"reward {name!r}: {kind}{_line(error)}") from error
        if not callable(made):
            raise ValueError(
                f"reward {name!r}: takes no completions and returned {made!r}, not a function"
            )
        return made
    return functools.partial(found, **kwargs) if kwargs else found


def load_rewards(specifications: Iterable[Any]) -> RewardSuite:
    """A suite from a recipe's list of rewards: objects with the fields of `RewardConfig`."""
    entries = list(specifications)
    functions = [load_reward(one.name, one.kwargs) for one in entries]
    # A gate may be named as in the recipe or as in the metrics.
    logged = {one.name: reward_name(f) for one, f in zip(entries, functions, strict=True)}
    rules = [_rule(one, logged) for one in entries]
    functions = [_placed(f, one) for f, one in zip(functions, entries, strict=True)]
    return RewardSuite(functions, [one.weight for one in entries], rules=rules)


def _rule(entry: Any, logged: Mapping[str, str]) -> Rule:
    gate, clip = getattr(entry, "only_if", None), getattr(entry, "clip", None)
    return Rule(
        timeout_s=getattr(entry, "timeout_s", None),
        only_if=None if gate is None else logged.get(gate, gate),
        clip=None if clip is None else (clip[0], clip[1]),
        schedule={int(step): weight for step, weight in getattr(entry, "weights", {}).items()},
    )


def _placed(function: RewardFunction, entry: Any) -> RewardFunction:
    """The function as it is, or to be run in a worker process where recipe or function ask it."""
    asked = getattr(entry, "in_worker", False)
    if not (asked or getattr(function, "cpu_heavy", False)):
        return function
    if is_async(function):
        raise ValueError(f"reward {entry.name!r}: in_worker is for plain functions; it is async")
    return InWorker(function, name=entry.name, kwargs=entry.kwargs)


def _find(name: str) -> tuple[Any, str]:
    """What a reward's name stands for, and how to call it in a message."""
    if name in BUILTINS:
        module_name, attribute = BUILTINS[name].split(":")
        try:
            module = importlib.import_module(f".{module_name}", __package__)
        except ImportError as error:
            raise ValueError(f"reward {name!r} is not available here: {_line(error)}") from error
        return getattr(module, attribute), name
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise ValueError(_unknown(name))
    module = _load_file(name, place) if place.endswith(".py") else _import(name, place)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(_no_function(name, place, part, found))
        found = getattr(found, part)
    return found, attribute


def _load_file(name: str, place: str) -> ModuleType:
    """The file as a module of its own name, whatever it is called; again when it has changed."""
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, _python_files(path.parent), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"reward {name!r}: no such file {path}{hint}")
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()
    unique = f"_reward_{path.stem}_{digest[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    specification = importlib.util.spec_from_file_location(unique, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[unique] = module  # before it runs: dataclasses and pickle look it up
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        raise ValueError(_import_failed(name, error, str(path))) from error
    return module


def _import(name: str, place: str) -> ModuleType:
    """A module by its dotted name; the working directory counts as a place to import from."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        here = str(Path.cwd())
        if error.name != place.split(".")[0] or here in sys.path:
            raise ValueError(_import_failed(name, error)) from error
    except Exception as error:
        raise ValueError(_import_failed(name, error)) from error
    sys.path.append(here)  # last, so that a user's file never hides an installed package
    try:
        return importlib.import_module(place)
    except Exception as error:
        sys.path.remove(here)
        raise ValueError(_import_failed(name, error)) from error


def _import_failed(name: str, error: Exception, path: str | None = None) -> str:
    line = None
    if isinstance(error, SyntaxError):
        line = error.lineno
    elif path is not None:
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == path:
                line = trace.tb_lineno
            trace = trace.tb_next
    where = f" at line {line}" if line else ""
    return f"reward {name!r}: import failed{where}: {type(error).__name__}: {_line(error)}"


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, BUILTINS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"built in: {', '.join(BUILTINS)}"
    return (
        f"reward {name!r}: not built in; {hint} "
        "(others: package.module:function or path/file.py:function)"
    )


def _no_function(name: str, place: str, attribute: str, owner: Any) -> str:
    names = [key for key, value in vars(owner).items() if callable(value) and key[0] != "_"]
    close = difflib.get_close_matches(attribute, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(names) or 'nothing'}"
    return f"reward {name!r}: {place} has no function {attribute!r}; {hint}"


def _check_kwargs(name: str, found: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a keyword that the function does not name, unless it hides what it takes.

    A bare **kwargs swallows dataset columns, so a misspelt option would go unnoticed there.
    """
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return
    options = [
        key
        for key, parameter in parameters.items()
        if key not in (*RESERVED, *ONE_ROW.values())
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    hides = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in kwargs.items():
        if key in options or (hides and name not in BUILTINS):
            continue
        close = difflib.get_close_matches(key, options, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"it takes: {', '.join(options) or 'none'}"
        raise ValueError(f"reward {name!r}: unknown keyword {key} = {value!r}; {hint}")


def _is_factory(found: Callable[..., Any]) -> bool:
    """Whether a function makes a reward function: it takes nothing that a reward reads."""
    if not inspect.isfunction(found):
        return False
    parameters = inspect.signature(found).parameters.values()
    reads = any(
        parameter.kind is parameter.VAR_KEYWORD
        or parameter.name in (*RESERVED[:3], *ONE_ROW.values())
        for parameter in parameters
    )
    return not reads


def _python_files(folder: Path) -> list[str]:
    return [file.name for file in folder.glob("*.py")] if folder.is_dir() else []


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
