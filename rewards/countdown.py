"""Countdown and 24: does an expression reach the target with the numbers it was given?

Expressions are read by a small parser with exact rational arithmetic: only + - * / and brackets,
nothing is evaluated before the numbers are checked, and nothing is executed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from .completion import completion_text, prompt_texts
from .exact_answer import extract_answer

_LONGEST = 1000  # characters of an expression
_DEEPEST = 50  # brackets within brackets
_MOST_DIGITS = 20  # of one number
_TOKENS = re.compile(r"[0-9]+|[-+*/(){}=]|\\d?frac|\S")
_SPELLINGS = (
    ("\\left", ""),
    ("\\right", ""),
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("\u00d7", "*"),  # multiplication sign
    ("\u22c5", "*"),  # dot operator
    ("\u00b7", "*"),  # middle dot
    ("\u00f7", "/"),  # division sign
    ("\u2212", "-"),  # minus sign
)


class _NotAnExpression(Exception):
    pass


def countdown(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    numbers: Sequence[Any],
    target: Sequence[Any],
    *,
    use_all: bool = True,
    format_score: float = 0.0,
    prompt_text: Sequence[str] | None = None,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1 where the answer's expression equals `target` with the row's `numbers`, else 0.

    Each number must be used exactly once (at most once with `use_all=False`). An answer may end in
    `= target`. `format_score` is given for a proper expression that misses the target (TinyZero
    gives 0.1). A row without numbers or target is unscored.
    """
    found = [
        extract_answer(completion_text(completion), prompt=text)
        for completion, text in zip(completions, prompt_texts(prompts, prompt_text), strict=True)
    ]
    if log_extra is not None:
        log_extra("extracted_answer", list(found))
    rewards: list[float | None] = []
    for answer, given, goal in zip(found, numbers, target, strict=True):
        if given is None or goal is None:
            rewards.append(None)
            continue
        value = expression_value(answer or "", _numbers(given), use_all=use_all)
        reached = value is not None and value == Fraction(str(goal).strip())
        rewards.append(1.0 if reached else 0.0 if value is None else format_score)
    return rewards


def expression_value(
    answer: str, numbers: Sequence[int], *, use_all: bool = True
) -> Fraction | None:
    """The exact value of an expression, or None where it is none, or uses other numbers.

    `a + b = c` is read as `a + b` if c is that value, and is no answer if it is not.
    """
    text = answer.strip()
    for spelling, sign in _SPELLINGS:
        text = text.replace(spelling, sign)
    text = text.strip("$. \t\n")
    if len(text) > _LONGEST:
        return None
    tokens = _TOKENS.findall(text)
    left, right = tokens, None
    if tokens.count("=") == 1:
        at = tokens.index("=")
        left, right = tokens[:at], tokens[at + 1 :]
    used = Counter(int(token) for token in left if _is_number(token))
    allowed = Counter(numbers)
    if used != allowed if use_all else bool(used - allowed) or not used:
        return None
    try:
        value = _Parser(left).parse()
        if right is not None and _Parser(right).parse() != value:
            return None
    except (_NotAnExpression, ZeroDivisionError):
        return None
    return value


def _is_number(token: str) -> bool:
    return token[0].isdigit() and token.isascii() and len(token) <= _MOST_DIGITS


def _numbers(given: Any) -> list[int]:
    """The row's numbers: a list, or its text as CSV files hold it ("[3, 5]" or "3 5")."""
    if isinstance(given, str):
        given = json.loads(given) if given.strip().startswith("[") else given.split()
    numbers = [Fraction(str(number)) for number in given]
    if any(number.denominator != 1 for number in numbers):
        raise ValueError(f"numbers {given} must be whole")
    return [int(number) for number in numbers]


class _Parser:
    """Recursive descent: sum = product {+- product}, product = atom {*/ atom}."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = [*tokens, ""]
        self.position = 0
        self.depth = 0

    def parse(self) -> Fraction:
        value = self._sum()
        self._take("")
        return value

    def _peek(self) -> str:
        return self.tokens[self.position]

    def _take(self, token: str) -> None:
        if self._peek() != token:
            raise _NotAnExpression
        self.position += 1

    def _sum(self) -> Fraction:
        negative = self._peek() == "-"
        if negative:
            self._take("-")
        value = -self._product() if negative else self._product()
        while (sign := self._peek()) in ("+", "-"):
            self._take(sign)
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._atom()
        while (sign := self._peek()) in ("*", "/"):
            self._take(sign)
            value = value * self._atom() if sign == "*" else value / self._atom()
        return value

    def _atom(self) -> Fraction:
        token = self._peek()
        if token in ("(", "{"):
            return self._bracket()
        if token in ("\\frac", "\\dfrac"):
            self._take(token)
            if self._peek() != "{":
                raise _NotAnExpression
            top = self._bracket()
            return top / self._bracket()
        if not token or not _is_number(token) or (token[0] == "0" and token != "0"):
            raise _NotAnExpression
        self._take(token)
        return Fraction(int(token))

    def _bracket(self) -> Fraction:
        opening = self._peek()
        if opening not in ("(", "{") or self.depth >= _DEEPEST:
            raise _NotAnExpression
        self.depth += 1
        self._take(opening)
        value = self._sum()
        self._take(")" if opening == "(" else "}")
        self.depth -= 1
        return value
