"""Runs test code in a sandbox of its own, with the candidate's names bound to remote stubs.

The candidate lives in another sandbox and sees arguments only. What it returns arrives as plain
data; what is not plain stays there and is held here as a `RemoteObject`, which is never equal to
plain data and never asks the candidate's `__eq__`. Runs inside the sandbox, standard library alone.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import plain_data
import sandbox_child


class CandidateGone(BaseException):
    """The candidate ended or broke the protocol; no test code may catch this and go on."""


class RemoteError(Exception):
    """An exception of a class that only the candidate knows."""


class Channel:
    """Asks the candidate's sandbox and reads its answers."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._functions: list[Callable[..., Any]] = []

    def wait_until_loaded(self) -> None:
        if self._receive() != "ready":
            raise CandidateGone("the program did not load")

    def name(self, name: str) -> RemoteObject:
        """Return the candidate's global of that name."""
        return self._exchange("name", name)[0]

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Have the candidate do one operation; arguments that it changed change here too."""
        form = plain_data.to_json((args, kwargs), keep=self._handle_of)
        value, changed = self._exchange(operation, form)
        if changed is not None:
            self._write_back([*args, *kwargs.values()], changed)
        return value

    def _exchange(self, operation: str, form: Any) -> tuple[Any, Any]:
        number = next(self._numbers)
        try:
            sandbox_child.send_message(json.dumps([number, operation, form]).encode())
        except OSError as error:
            raise CandidateGone("the program has ended") from error
        reply = self._receive()
        while isinstance(reply, list) and len(reply) == 3 and reply[0] == "callback":
            self._call(reply[1], reply[2])
            reply = self._receive()
        if not isinstance(reply, list) or len(reply) != 4 or reply[0] != number:
            raise CandidateGone("an answer out of turn")
        _, kind, payload, extra = reply
        if kind == "error":
            raise _local_exception(payload, extra)
        try:
            return plain_data.from_json(payload, handle=self._remote), extra
        except plain_data.NotPlain as error:
            raise CandidateGone(str(error)) from error

    def _receive(self) -> Any:
        try:
            return plain_data.parse(sandbox_child.receive_message())
        except (EOFError, OSError) as error:
            raise CandidateGone("the program has ended") from error
        except plain_data.NotPlain as error:
            raise CandidateGone(str(error)) from error

    def _call(self, number: Any, form: Any) -> None:
        """Call a function of the tests for the program, and send it what that returns."""
        try:
            args, kwargs = plain_data.from_json(form, handle=self._remote)
            value = self._functions[number](*args, **kwargs)
            message = ["return", plain_data.to_json(value, keep=self._handle_of)]
        except Exception as error:
            message = ["raise", f"{type(error).__name__}: {error}"[:500]]
        try:
            sandbox_child.send_message(json.dumps(message).encode())
        except OSError as error:
            raise CandidateGone("the program has ended") from error

    def _write_back(self, old: list[Any], changed: Any) -> None:
        """Give mutable arguments the contents that the program left in them."""
        try:
            args, kwargs = plain_data.from_json(changed, handle=self._remote)
            new = [*args, *kwargs.values()]
        except (plain_data.NotPlain, TypeError, ValueError, AttributeError) as error:
            raise CandidateGone("malformed arguments") from error
        for ours, theirs in zip(old, new, strict=False):
            _overwrite(ours, theirs)

    def _remote(self, items: list[Any]) -> Any:
        return (
            self._functions[items[0]] if items[1:] == ["callback"] else RemoteObject(self, items[0])
        )

    def _handle_of(self, value: Any) -> list[Any]:
        if isinstance(value, RemoteObject):
            return ["handle", object.__getattribute__(value, "_number")]
        if not callable(value):
            raise plain_data.NotPlain(f"cannot hand a {type(value).__name__} to the program")
        self._functions.append(value)
        return ["handle", len(self._functions) - 1, "callback"]


def _overwrite(old: Any, new: Any) -> None:
    """Give a mutable argument the contents that the candidate left in it."""
    if isinstance(old, list) and isinstance(new, list):
        old[:] = new
    elif isinstance(old, dict | set) and type(old) is type(new):
        old.clear()
        old.update(new)


def _local_exception(bases: Any, text: Any) -> BaseException:
    """Return the nearest built-in exception to the one that the candidate raised."""
    for name in bases if isinstance(bases, list) else ():
        kind = getattr(builtins, str(name), None)
        if name != "Exception" and isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(str(text))
            except TypeError:
                break  # UnicodeDecodeError and its kind want more arguments
    return RemoteError(str(text))


class RemoteObject:
    """An object of the candidate's that is not plain data; equal to nothing but itself."""

    def __init__(self, channel: Channel, number: int) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_number", number)

    def _ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        return object.__getattribute__(self, "_channel").ask(operation, self, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("set_item", key, value)

    def __len__(self) -> int:
        return self._ask("length")

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        iterator = self._ask("iterate")
        while items := iterator._ask("take"):
            yield from items

    def __next__(self) -> Any:
        return self._ask("method", "__next__")

    def __str__(self) -> str:
        return self._ask("text")

    def __repr__(self) -> str:
        return self._ask("repr")


def _free_names(trees: list[ast.AST]) -> set[str]:
    """Return the names that the code reads but neither binds nor finds among the built-ins."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    read = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    bound |= {n.name for n in nodes if isinstance(n, definitions)}
    bound |= {n.name for n in nodes if isinstance(n, ast.ExceptHandler) and n.name}
    bound |= {(n.asname or n.name).split(".")[0] for n in nodes if isinstance(n, ast.alias)}
    return read - bound - set(dir(builtins))


def _run_tests(task: dict[str, Any], channel: Channel) -> None:
    """Run prelude, setup and test; an exception is the verdict that it fails."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    channel.wait_until_loaded()
    for part in task["prelude"]:
        exec(compile(part, "prelude.py", "exec", dont_inherit=True), namespace)
    parts = [part for part in (task["setup"], task["test"]) if part.strip()]
    entry_point = task["entry_point"]
    if entry_point:
        namespace[entry_point] = namespace["candidate"] = channel.name(entry_point)
    for name in _free_names([ast.parse(part) for part in parts]) - namespace.keys():
        try:
            namespace[name] = channel.name(name)
        except NameError:
            continue  # perhaps bound by a star import, or never reached
    for part in parts:
        exec(compile(part, "tests.py", "exec", dont_inherit=True), namespace)
    if task["check"]:
        namespace["check"](namespace[entry_point])


def judge(task: dict[str, Any]) -> NoReturn:
    """Write ["passed"], ["failed", why] or ["gone", why] to the result descriptor and leave."""
    sys.set_int_max_str_digits(4300)  # the candidate's digits are not to cost quadratic time here
    try:
        _run_tests(task, Channel())
        verdict = ["passed", ""]
    except CandidateGone as error:
        verdict = ["gone", str(error)]
    except AssertionError as error:
        verdict = ["failed", f"assertion failed {error}".strip()[:500]]
    except BaseException as error:
        verdict = ["failed", "".join(traceback.format_exception_only(error)).strip()[:500]]
    os.write(sandbox_child.RESULT_FD, json.dumps(verdict).encode())
    os._exit(0)
