"""The types of values that an answer may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .math_nodes import Node
from .math_units import Unit


@dataclass(frozen=True)
class Quantity:
    """A number or expression, with a unit when one is written."""

    node: Node
    unit: Unit | None = None
    percent: bool = False
    decimals: int | None = None  # written after the point, when the answer is a plain decimal


@dataclass(frozen=True)
class Assign:
    """`x = value`, `f(x) = value`, `(x, y) = value` or `x \\in value`."""

    target: Node
    value: Any


@dataclass(frozen=True)
class Equation:
    """Two sides, neither a single symbol that is solved for."""

    left: Node
    right: Node


@dataclass(frozen=True)
class Inequality:
    """A chain of order relations that is no interval of one variable."""

    ops: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclass(frozen=True)
class Many:
    """Several values without order; `braces` when written as a set."""

    items: tuple[Any, ...]
    braces: bool = False


@dataclass(frozen=True)
class Ordered:
    """A tuple, point, vector or list in brackets."""

    items: tuple[Any, ...]
    brackets: str


@dataclass(frozen=True)
class Matrix:
    """Rows of expressions."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True)
class Based:
    """Digits in a base that is not ten."""

    digits: str
    base: int


@dataclass(frozen=True)
class Clock:
    """A time of day; `half` is "a", "p" or empty."""

    parts: tuple[int, ...]
    half: str = ""


@dataclass(frozen=True)
class Ratio:
    """Terms of a proportion, in order."""

    terms: tuple[Node, ...]


@dataclass(frozen=True)
class Residue:
    """A residue with its modulus."""

    node: Node
    modulus: Node


@dataclass(frozen=True)
class Choice:
    """A letter of a multiple-choice question; `bare` when it stands alone in lower case."""

    letter: str
    bare_lower: bool = False


@dataclass(frozen=True)
class Word:
    """Text, folded for comparison."""

    text: str


Value = Any
