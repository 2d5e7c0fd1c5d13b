"""What a forked child of the zygote does with one untrusted program.

Three ways: `run_program` runs it as a script on stdin and stdout; `call_functions` calls
functions and leaves the results as plain data; `serve_calls` answers calls that a referee in
another sandbox makes. Whatever the program does to this process, it can only change its own
answers: the expected ones are never here. Runs inside the sandbox, standard library alone.
"""

from __future__ import annotations

import atexit
import builtins
import functools
import io
import itertools
import json
import operator
import os
import sys
import threading
import types
import typing
from collections.abc import Callable
from typing import Any

import plain_data

RESULT_FD, CHANNEL_FD = 3, 4
MAX_MESSAGE = 16 << 20
_FILE = "solution.py"
_TYPING_NAMES = {name: getattr(typing, name) for name in typing.__all__}
_LEETCODE_MODULES = (
    "bisect collections copy datetime functools heapq itertools math operator random re string sys"
)
_LEETCODE_NAMES = {
    "bisect": "bisect bisect_left bisect_right insort insort_left insort_right",
    "collections": "Counter OrderedDict defaultdict deque namedtuple",
    "functools": "cache cmp_to_key lru_cache partial reduce",
    "heapq": "heapify heappop heappush heappushpop heapreplace nlargest nsmallest",
    "itertools": (
        "accumulate chain combinations count cycle groupby islice pairwise permutations product "
        "repeat starmap zip_longest"
    ),
    "math": "ceil comb factorial floor gcd inf isqrt lcm log log2 sqrt",
}


def open_streams() -> None:
    """Give the program the standard streams that `python -X utf8` would, on descriptors 0-2."""
    for descriptor, name, mode, errors in (
        (0, "stdin", "r", "surrogateescape"),
        (1, "stdout", "w", "surrogateescape"),
        (2, "stderr", "w", "backslashreplace"),
    ):
        buffer = typing.cast(Any, open(descriptor, mode + "b", closefd=False))  # noqa: SIM115
        buffer.raw.name = f"<{name}>"
        newline = None if mode == "r" else "\n"
        lines = name == "stderr"
        stream = io.TextIOWrapper(buffer, "utf-8", errors, newline, line_buffering=lines)
        stream.mode = mode  # type: ignore[attr-defined]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _new_module(name: str) -> types.ModuleType:
    """Return an empty module in sys.modules that the program will fill."""
    module = types.ModuleType(name)
    module.__dict__.update(__file__=_FILE, __builtins__=builtins)
    sys.modules[name] = module
    sys.argv = [_FILE]
    return module


def _exit_code(error: SystemExit) -> int:
    """Return the exit status that CPython would end with, and print a message as it would."""
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _execute(source: str, namespace: dict[str, Any]) -> None:
    exec(compile(source, _FILE, "exec", dont_inherit=True), namespace)


def _quiet_input(prompt: object = "") -> str:
    """Read a line as input() does on a terminal: the prompt goes to stderr."""
    sys.stderr.write(str(prompt))
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError("EOF when reading a line")
    return line.removesuffix("\n")


def run_program(task: dict[str, Any]) -> None:
    """Run the source as a script and end the process as CPython ends: threads, atexit, flush."""
    module = _new_module("__main__")
    if task["quiet_prompts"]:
        builtins.input = _quiet_input
    shut_down, run_exit_functions, leave = threading._shutdown, atexit._run_exitfuncs, os._exit  # type: ignore[attr-defined]
    code = 0
    try:
        _execute(task["source"], module.__dict__)
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException:
        sys.excepthook(*typing.cast(Any, sys.exc_info()))
        code = 1
    try:
        shut_down()
        run_exit_functions()
        sys.stdout.flush()
    except BaseException:
        code = code or 120
    try:
        sys.stderr.flush()
    finally:
        leave(code)


def _fallback_names(source: str) -> None:
    """Offer LeetCode's names behind the built-in ones, where they can define no answer.

    Annotations like List[int] need no import in any function task; a `class Solution` finds
    LeetCode's usual modules too. A script gets nothing: it is an ordinary program.
    """
    spare = dict(_TYPING_NAMES)
    if "class Solution" in source:
        for module in _LEETCODE_MODULES.split():
            spare[module] = __import__(module)
        for module, names in _LEETCODE_NAMES.items():
            spare.update({name: getattr(sys.modules[module], name) for name in names.split()})
        spare["bisect"] = sys.modules["bisect"]
    for name, value in spare.items():
        builtins.__dict__.setdefault(name, value)


def _load(task: dict[str, Any]) -> dict[str, Any]:
    """Run the prelude (trusted) and the program in a fresh module; return its namespace."""
    module = _new_module("solution")
    _fallback_names(task["source"])
    for part in (*task["prelude"], task["source"]):
        _execute(part, module.__dict__)
    return module.__dict__


def _resolve(namespace: dict[str, Any], name: str) -> Any:
    """Return the program's own object of that name; a method of class Solution comes first."""
    solution = namespace.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    if name not in namespace:
        raise NameError(f"name {name!r} is not defined")
    return namespace[name]


def call_functions(task: dict[str, Any]) -> None:
    """Make the calls and write a list of what they return to the result descriptor."""
    leave, write, encode, code = os._exit, os.write, plain_data.dumps, 0
    try:
        namespace = _load(task)
        results = []
        for name, form in task["calls"]:
            arguments, keywords = plain_data.from_json(form)
            # Written down at once: a later call may change what this one returned.
            results.append(encode(_resolve(namespace, name)(*arguments, **keywords)))
        text = b'["list",' + b",".join(results) + b"]"
        while text:
            text = text[write(RESULT_FD, text) :]
    except plain_data.NotPlain as error:
        write(RESULT_FD, b'["not plain"]')
        print(f"the result is not plain data: {error}", file=sys.stderr)
    except SystemExit as error:
        code = _exit_code(error) or 1
    except BaseException:
        sys.excepthook(*typing.cast(Any, sys.exc_info()))
        code = 1
    try:
        sys.stderr.flush()
    finally:
        leave(code)


# --- calls from a referee -------------------------------------------------------------------


def send_message(message: bytes) -> None:
    """Write one length-prefixed message to the channel."""
    if len(message) > MAX_MESSAGE:
        raise plain_data.NotPlain("message too long")
    data = len(message).to_bytes(4, "little") + message
    while data:
        data = data[os.write(CHANNEL_FD, data) :]


def receive_message() -> bytes:
    """Read one message; EOFError when the other side has gone or sends too much."""
    size = int.from_bytes(_receive(4), "little")
    if size > MAX_MESSAGE:
        raise EOFError
    return _receive(size)


def _receive(size: int) -> bytes:
    parts = []
    while size:
        part = os.read(CHANNEL_FD, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "method": lambda target, name, *args, **kwargs: getattr(target, name)(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "set_item": operator.setitem,
    "length": len,
    "iterate": iter,
    "take": lambda iterator: list(itertools.islice(iterator, 256)),
    "text": str,
    "repr": repr,
}


def _built_in_bases(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]


class _Session:
    """A loaded program and those of its objects that the referee refers to by number."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace
        self.kept: list[Any] = []

    def keep(self, value: Any) -> list[Any]:
        self.kept.append(value)
        return ["handle", len(self.kept) - 1, type(value).__name__]

    def known(self, value: Any) -> list[Any]:
        """Return the handle form that the referee used for an argument."""
        if isinstance(value, functools.partial) and value.func == self.call_back:
            return ["handle", *value.args, "callback"]
        return ["handle", next((i for i, kept in enumerate(self.kept) if kept is value), -1)]

    def find(self, items: list[Any]) -> Any:
        """Return the object of a handle; a function of the tests' becomes a call back to them."""
        return (
            functools.partial(self.call_back, items[0]) if len(items) > 1 else self.kept[items[0]]
        )

    def call_back(self, function: int, *args: Any, **kwargs: Any) -> Any:
        """Have the referee call its function, answering what it asks meanwhile."""
        form = plain_data.to_json((args, kwargs), keep=self.keep)
        send_message(json.dumps(["callback", function, form]).encode())
        while True:
            message = plain_data.parse(receive_message())
            if message[0] == "return":
                return plain_data.from_json(message[1], handle=self.find)
            if message[0] == "raise":
                raise RuntimeError(message[1])
            send_message(self.answer(message))

    def answer(self, request: list[Any]) -> bytes:
        """Do what one request asks; return its number, the result and the arguments if changed."""
        number, operation, form = request
        try:
            if operation == "name":
                # A class or function is always used by its number, whatever it could be read as.
                value = self.keep(_resolve(self.namespace, form))
                return json.dumps([number, "value", value, None]).encode()
            args, kwargs = plain_data.from_json(form, handle=self.find)
            value = _OPERATIONS[operation](*args, **kwargs)
            after = plain_data.to_json((args, kwargs), keep=self.known)
            result = plain_data.to_json(value, keep=self.keep)
            return json.dumps([number, "value", result, None if after == form else after]).encode()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"[:500]
            return json.dumps([number, "error", _built_in_bases(error), text]).encode()


def serve_calls(task: dict[str, Any]) -> None:
    """Load the program, say so, and answer the referee's requests until it leaves."""
    leave, code = os._exit, 0
    try:
        session = _Session(_load(task))
        send_message(b'"ready"')
        while True:
            try:
                request = plain_data.parse(receive_message())
            except EOFError:
                break
            send_message(session.answer(request))
    except SystemExit as error:
        code = _exit_code(error) or 1
    except BaseException:
        sys.excepthook(*typing.cast(Any, sys.exc_info()))
        code = 1
    try:
        sys.stderr.flush()
    finally:
        leave(code)
