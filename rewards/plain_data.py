"""Python values as plain tagged JSON: all that passes between a candidate and its judges.

Nothing of the candidate's (classes, `__eq__`, `__repr__`, pickles) survives the encoding. JSON
scalars stand for themselves; everything else is an array whose first item is its tag. Runs inside
the sandbox as well, on the standard library alone.
"""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 200
_SMALL = 1 << 63
_SEQUENCES: dict[str, Any] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_EXACT = {"Decimal": Decimal, "Fraction": Fraction}


class NotPlain(ValueError):
    """The value cannot be written as plain data, or the text is not plain data."""


def _plain_base(value: Any) -> Any:
    """Return the value as the built-in type that it derives from; NotPlain when there is none."""
    if isinstance(value, int):
        return int.__add__(value, 0)
    if isinstance(value, float):
        return float.__add__(value, 0.0)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, dict):
        return dict(dict.items(value))
    for base in _SEQUENCES.values():
        if isinstance(value, base):
            return base(base.__iter__(value))
    raise NotPlain(f"{type(value).__name__} is not plain data")


def to_json(value: Any, *, keep: Callable[[Any], Any] | None = None, depth: int = 0) -> Any:
    """Return the JSON form of a value; subclasses of built-in types lose their class.

    keep turns what is not plain into its JSON form; without it NotPlain is raised.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else ["int", hex(value)]
    if kind is float:
        return value if math.isfinite(value) else ["float", repr(value)]
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH}")
    if kind in (list, tuple, set, frozenset):
        return [kind.__name__, *[to_json(item, keep=keep, depth=depth + 1) for item in value]]
    if kind is dict:
        flat = [part for pair in value.items() for part in pair]
        return ["dict", *[to_json(part, keep=keep, depth=depth + 1) for part in flat]]
    if kind in (bytes, bytearray):
        return [kind.__name__, value.hex()]
    if kind is complex:
        return ["complex", to_json(value.real), to_json(value.imag)]
    if kind in (Decimal, Fraction):
        return [kind.__name__, str(value)]
    if kind is type and getattr(builtins, value.__name__, None) is value:
        return ["type", value.__name__]
    try:
        return to_json(_plain_base(value), keep=keep, depth=depth + 1)
    except NotPlain:
        if keep is None:
            raise
        return keep(value)


def dumps(value: Any, *, keep: Callable[[Any], Any] | None = None) -> bytes:
    """Return the value as tagged JSON text; NotPlain when it is not plain."""
    return json.dumps(to_json(value, keep=keep), separators=(",", ":")).encode()


def _refuse(constant: str) -> Any:
    raise NotPlain(f"{constant} is not allowed")


def parse(text: bytes) -> Any:
    """Return the JSON form held by a text that may be hostile; NotPlain when it is malformed."""
    try:
        return json.loads(text.decode("ascii"), parse_constant=_refuse)
    except (ValueError, RecursionError, MemoryError) as error:
        raise NotPlain(f"not plain data: {type(error).__name__}") from None


def _tagged_scalar(tag: str, items: list[Any]) -> Any:
    if tag == "int" and len(items) == 1:
        return int(items[0], 16)
    if tag == "float" and items in (["nan"], ["inf"], ["-inf"]):
        return float(items[0])
    if tag in ("bytes", "bytearray") and len(items) == 1:
        value = bytes.fromhex(items[0])
        return value if tag == "bytes" else bytearray(value)
    if tag == "type" and len(items) == 1 and isinstance(getattr(builtins, items[0], None), type):
        return getattr(builtins, items[0])
    if tag in _EXACT and len(items) == 1 and len(items[0]) < 10_000:
        return _EXACT[tag](items[0])
    raise NotPlain(f"unknown tag {tag!r}")


def from_json(
    data: Any, *, handle: Callable[[list[Any]], Any] | None = None, depth: int = 0
) -> Any:
    """Return the Python value of a JSON form; handle reads ["handle", ...]; NotPlain otherwise."""
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if depth > MAX_DEPTH or not isinstance(data, list) or not data:
        raise NotPlain("malformed data")
    tag, *items = data
    try:
        if tag == "handle" and handle is not None:
            return handle(items)
        if tag not in (*_SEQUENCES, "dict", "complex"):
            return _tagged_scalar(tag, items)
        values = [from_json(item, handle=handle, depth=depth + 1) for item in items]
        if tag == "dict":
            return dict(zip(values[::2], values[1::2], strict=True))
        return complex(*values) if tag == "complex" else _SEQUENCES[tag](values)
    except NotPlain:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise NotPlain(f"malformed {str(tag)[:20]}: {type(error).__name__}") from None


def loads(text: bytes, *, handle: Callable[[list[Any]], Any] | None = None) -> Any:
    """Return the Python value of a tagged JSON text; NotPlain when it is malformed."""
    return from_json(parse(text), handle=handle)
