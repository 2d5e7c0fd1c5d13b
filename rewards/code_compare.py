"""Compares what a program printed or returned with what was expected, on plain data alone."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from .plain_data import NotPlain, from_json

_NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?"
)
_BLANK = " \t\r\f\v"


def _lines(text: str) -> list[str]:
    """Return the lines without trailing blanks, and without blank lines at the end."""
    lines = [line.rstrip(_BLANK) for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _close(got: float, expected: float, tolerance: float) -> bool:
    return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)


def _same_token(got: str, expected: str, tolerance: float) -> bool:
    if got == expected:
        return True
    if not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(expected)):
        return False
    return _close(float(got), float(expected), tolerance)


def same_output(printed: bytes, expected: str, *, float_tol: float | None = None) -> bool:
    """Say whether a program printed what was expected, but for trailing white space.

    With a tolerance, lines are compared word by word and numbers may differ by it, relatively or
    absolutely; words that are not plain decimal numbers must still be equal.
    """
    got_lines, expected_lines = _lines(printed.decode("utf-8", "surrogateescape")), _lines(expected)
    if got_lines == expected_lines:
        return True
    if float_tol is None or len(got_lines) != len(expected_lines):
        return False
    for got, wanted in zip(got_lines, expected_lines, strict=True):
        got_words, wanted_words = got.split(), wanted.split()
        if len(got_words) != len(wanted_words):
            return False
        if not all(map(_same_token, got_words, wanted_words, [float_tol] * len(got_words))):
            return False
    return True


def _same_number(got: Any, expected: Any, tolerance: float | None) -> bool:
    """Compare numbers as Python's == does (1 == 1.0 == True), or within the tolerance."""
    if isinstance(got, list):
        try:
            got = from_json(got)
        except NotPlain:
            return False
    if not isinstance(got, bool | int | float | complex):
        return False
    if isinstance(expected, float) and math.isnan(expected):
        return isinstance(got, float) and math.isnan(got)
    if got == expected:
        return True
    if isinstance(got, complex) or isinstance(expected, complex) or tolerance is None:
        return False
    if not (isinstance(got, float) or isinstance(expected, float)):
        return False  # whole numbers are exact
    try:
        return _close(float(got), float(expected), tolerance)
    except OverflowError:
        return False


def _same_members(got: list[Any], expected: set[Any] | frozenset[Any]) -> bool:
    """Compare sets by looking each received item up among the expected ones.

    No table of received items is built: hostile integers could make one quadratic.
    """
    if len(got) != len(expected):
        return False
    by_value = {item: item for item in expected}
    seen = set()
    for item in got:
        try:
            seen.add(by_value[from_json(item)])
        except (NotPlain, KeyError, TypeError):
            return False
    return len(seen) == len(expected)


def _same_mapping(
    items: list[Any], expected: dict[Any, Any], tolerance: float | None, *, strict: bool
) -> bool:
    """Compare dictionaries; JSON's string keys stand for whole numbers as well, unless strict."""
    if len(items) != 2 * len(expected):
        return False
    keys = {key: key for key in expected}
    seen = set()
    for form, value in zip(items[::2], items[1::2], strict=True):
        try:
            key = from_json(form)
            if not strict and key not in keys and type(key) is int:
                key = str(key)
            key = keys[key]
        except (NotPlain, KeyError, TypeError, ValueError):
            return False
        if not same_value(value, expected[key], float_tol=tolerance, strict=strict):
            return False
        seen.add(key)
    return len(seen) == len(expected)


def same_value(
    got: Any, expected: Any, *, float_tol: float | None = None, strict: bool = False
) -> bool:
    """Say whether received plain data (tagged JSON) equals an expected Python value.

    Strict is Python's own ==. Otherwise, for expectations that came through JSON, lists and
    tuples are the same and string keys stand for whole numbers.
    """
    if expected is None or isinstance(expected, str):
        return type(got) is type(expected) and got == expected
    if isinstance(expected, bool | int | float | complex):
        return _same_number(got, expected, float_tol)
    if not isinstance(got, list) or not got:
        return False
    tag, *items = got
    if isinstance(expected, list | tuple):
        kinds = (type(expected).__name__,) if strict else ("list", "tuple")
        if tag not in kinds or len(items) != len(expected):
            return False
        return all(
            same_value(item, wanted, float_tol=float_tol, strict=strict)
            for item, wanted in zip(items, expected, strict=True)
        )
    if isinstance(expected, dict):
        return tag == "dict" and _same_mapping(items, expected, float_tol, strict=strict)
    if isinstance(expected, set | frozenset):
        return tag in ("set", "frozenset") and _same_members(items, expected)
    try:
        return bool(from_json(got) == expected)  # bytes, Decimal, Fraction
    except NotPlain:
        return False


def shown(value: Any, *, limit: int = 200) -> str:
    """Return a short text of received data for an explanation."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= limit else text[:limit] + "..."
