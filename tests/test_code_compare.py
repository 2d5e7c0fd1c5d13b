"""Comparing outputs and values on plain data, and the tagged JSON that carries them."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thinkrl.rewards.code_compare import same_output, same_value
from thinkrl.rewards.plain_data import NotPlain, dumps, from_json, loads, parse, to_json


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1 \t\n2\r\n\n\n", "1\n2\n", True),
        ("", "\n", True),
        ("1\n\n2", "1\n2", False),
        ("\n1", "1", False),
        (" 1", "1", False),
        ("1  2", "1 2", False),
        ("1\n2\n3", "1\n2", False),
        ("1", "1\n2", False),
        ("yes", "YES", False),
        ("1.0", "1", False),
        ("1\v2", "1\n2", False),
        ("1\x0c2", "1\n2", False),
        ("1\u20282", "1\n2", False),
        ("1\u00a0", "1", False),
        ("", "1", False),
    ],
)
def test_output_is_compared_line_by_line(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed.encode(), expected) is same


def test_bytes_that_are_no_text_equal_nothing() -> None:
    assert not same_output(b"\xff1", "1")
    assert not same_output(b"\xff", "\ufffd")


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("0.3333333", "0.33333334", True),
        ("x = 1.0000001", "x = 1", True),
        ("1e3", "1000", True),
        ("1000000.5", "1000001", True),
        ("0.1", "0.2", False),
        ("nan", "0.5", False),
        ("inf", "1e308", False),
        ("1_0", "10", False),
        ("\uff11", "1", False),
        ("0x1", "1", False),
        ("1 2", "1", False),
        ("1\n2", "1 2", False),
        ("yes", "no", False),
    ],
)
def test_a_stated_tolerance_holds_for_plain_numbers(
    printed: str, expected: str, same: bool
) -> None:
    assert same_output(printed.encode(), expected, float_tol=1e-6) is same


@pytest.mark.parametrize(
    ("value", "expected", "strict", "same"),
    [
        (1, 1.0, True, True),
        (True, 1, True, True),
        (None, False, True, False),
        ("1", 1, False, False),
        ((1, 2), [1, 2], False, True),
        ((1, 2), [1, 2], True, False),
        ([[1], (2,)], ([1], [2]), False, True),
        ({1: "a"}, {"1": "a"}, False, True),
        ({1: "a"}, {"1": "a"}, True, False),
        ({1: 2, "1": 2}, {"1": 2}, False, False),
        ({"a": 1}, {"a": 1, "b": 2}, True, False),
        ({1, 2}, {2, 1}, True, True),
        ({1, 2}, [1, 2], False, False),
        (frozenset({1}), {1}, True, True),
        (Counter("aab"), {"a": 2, "b": 1}, True, True),
        (2 + 1j, 2 + 1j, True, True),
        (b"x", b"x", True, True),
        (Decimal("0.50"), Decimal("0.5"), True, True),
        (Fraction(1, 2), Fraction(2, 4), True, True),
        (int, int, True, True),
        ([10**5000], [10**5000], True, True),
        ([10**5000], [10**5000 + 1], True, False),
        (math.nan, math.nan, True, True),
        (math.inf, math.inf, True, True),
        (math.inf, 1, True, False),
        ([], None, False, False),
        ("", [], False, False),
    ],
)
def test_values(value: Any, expected: Any, strict: bool, same: bool) -> None:
    assert same_value(parse(dumps(value)), expected, strict=strict) is same


def test_tolerance_is_for_floats_alone() -> None:
    assert same_value(parse(dumps([0.1 + 0.2])), [0.3], float_tol=1e-9)
    assert not same_value(parse(dumps(0.1 + 0.2)), 0.3)
    assert not same_value(1000001, 1000000, float_tol=1e-3)
    assert not same_value(parse(dumps(math.nan)), 0.3, float_tol=1e9)
    assert not same_value(10**400, 0.3, float_tol=1e-9)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"[]",
        b"NaN",
        b'["int"]',
        b'["int","zz"]',
        b'["float","1"]',
        b'["set",["list"]]',
        b'["dict",1]',
        b'["handle",0]',
        b'["type","eval"]',
        b'["what",1]',
        b'{"a":1}',
        b'["Decimal","x"]',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_malformed_data_is_refused_and_equals_nothing(text: bytes) -> None:
    with pytest.raises(NotPlain):
        loads(text)
    try:
        data = parse(text)
    except NotPlain:
        return
    for expected in (0, "", None, [], {}, set(), [0], {"a": 1}, b"", 1.0):
        assert not same_value(data, expected)


class Sneaky(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def test_classes_are_lost_on_the_way() -> None:
    assert type(loads(dumps(Sneaky(3)))) is int
    assert not same_value(parse(dumps(Sneaky(3))), 4)
    with pytest.raises(NotPlain):
        dumps(object())
    circular: list[Any] = []
    circular.append(circular)
    with pytest.raises(NotPlain):
        dumps(circular)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
hashable = scalars | st.tuples(scalars, scalars)
values = st.recursive(
    scalars | st.binary() | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner)
        | st.sets(hashable)
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(values, values)
def test_strict_comparison_is_pythons(left: Any, right: Any) -> None:
    assert same_value(parse(dumps(left)), left, strict=True)
    assert same_value(parse(dumps(left)), right, strict=True) == (left == right)
    assert from_json(to_json(left)) == left
