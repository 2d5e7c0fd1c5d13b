"""Readings of an answer as short plain text, for people: `1/2`, `25 %`, `5 cm`, `(1, 2]`."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

from .math_nodes import Node
from .math_regions import Interval, Region
from .math_units import NAMED_UNITS, Unit
from .math_values import (
    Assign,
    Based,
    Choice,
    Clock,
    Equation,
    Inequality,
    Many,
    Matrix,
    Ordered,
    Quantity,
    Ratio,
    Residue,
    Value,
)

MAX_SHOWN = 300  # characters of one reading
MAX_LEVEL = 12  # of nesting; deeper parts are shown as ...
_CONSTANTS = {"inf": "infinity", "empty": "{}"}
_BASES = {"length": "m", "mass": "kg", "time": "s", "current": "A"}  # of the factors of units
_SUM, _PRODUCT, _POWER, _ATOM = 1, 2, 3, 4  # how tightly a tree binds


def show(value: Value) -> str:
    """One reading in plain text, at most MAX_SHOWN characters; "text: ..." where it is no value."""
    text = _show(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _show(value: Value) -> str:
    if isinstance(value, Quantity):
        sign = " %" if value.percent else ""
        return _tree(value.node, _PRODUCT if sign else 0) + sign + _unit(value.unit)
    if isinstance(value, Many | Ordered):
        items = ", ".join(map(_show, value.items))
        if isinstance(value, Many):
            return f"{{{items}}}" if value.braces or not items else items
        return value.brackets[0] + items + value.brackets[1]
    if isinstance(value, Region):
        return " U ".join(map(_interval, value.intervals)) or "{}"
    if isinstance(value, Assign):
        return f"{_tree(value.target)} = {_show(value.value)}"
    if isinstance(value, Equation):
        return f"{_tree(value.left)} = {_tree(value.right)}"
    if isinstance(value, Inequality):
        first, *rest = map(_tree, value.sides)
        return first + "".join(f" {op} {side}" for op, side in zip(value.ops, rest, strict=True))
    return _show_form(value)


def _show_form(value: Value) -> str:
    if isinstance(value, Matrix):
        return f"[{', '.join('[' + ', '.join(map(_tree, row)) + ']' for row in value.rows)}]"
    if isinstance(value, Based):
        return f"{value.digits} (base {value.base})"
    if isinstance(value, Clock):
        half = f" {value.half}m" if value.half else ""
        return (
            ":".join(f"{part:02}" if i else str(part) for i, part in enumerate(value.parts)) + half
        )
    if isinstance(value, Ratio):
        return " : ".join(map(_tree, value.terms))
    if isinstance(value, Residue):
        return f"{_tree(value.node)} mod {_tree(value.modulus)}"
    if isinstance(value, Choice):
        return f"choice {value.letter}"
    return f"text: {value.text}"


def _interval(piece: Interval) -> str:
    if piece.low == piece.high:
        return f"{{{_tree(piece.low)}}}"
    opening, closing = "(["[piece.low_closed], ")]"[piece.high_closed]
    return f"{opening}{_tree(piece.low)}, {_tree(piece.high)}{closing}"


def _unit(unit: Unit | None) -> str:
    return "" if unit is None else " " + unit_name(unit)


@lru_cache(maxsize=256)
def unit_name(unit: Unit) -> str:
    """A name of a unit: of the table, a power of one, a counted noun, or its dimensions."""
    for power in (1, 2, 3):
        for name, other in NAMED_UNITS.items():
            if unit == (other if power == 1 else other.power(power)):
                return name if power == 1 else f"{name}^{power}"
    names = [_BASES.get(name, name.removeprefix("noun:")) for name, _ in unit.dims]
    powers = ["" if exponent == 1 else f"^{exponent}" for _, exponent in unit.dims]
    factor = [] if unit.factor == 1 else [str(unit.factor)]
    return "*".join(factor + [name + power for name, power in zip(names, powers, strict=True)])


def _tree(node: Any, around: int = 0, level: int = 0) -> str:
    """An expression tree in plain text, in brackets where what stands `around` binds tighter."""
    if not isinstance(node, tuple) or not node or level > MAX_LEVEL:
        return "..."
    kind = node[0]
    level += 1
    if kind == "num":
        binds = _SUM if node[1] < 0 else _PRODUCT if node[1].denominator != 1 else _ATOM
        return _bracketed(_number(node[1]), around, binds)
    if kind == "sym":
        return str(node[1]).lstrip("\\")
    if kind == "const":
        return _CONSTANTS.get(node[1]) or str(node[1])
    if kind == "add":
        items = [_tree(item, _SUM, level) for item in node[1]]
        text = items[0] + "".join(i if i.startswith("-") else f"+{i}" for i in items[1:])
        return _bracketed(text, around, _SUM)
    if kind in ("pm", "mp"):
        sides = _tree(node[1], _SUM, level).removeprefix("0"), _tree(node[2], _PRODUCT, level)
        return _bracketed(("+-" if kind == "pm" else "-+").join(sides), around, _SUM)
    if kind == "neg":
        return _bracketed("-" + _tree(node[1], _PRODUCT, level), around, _SUM)
    return _tight(node, around, level)


def _tight(node: Node, around: int, level: int) -> str:
    """Products, powers, functions and collections."""
    kind = node[0]
    if kind == "mul":
        text = "*".join(_tree(item, _PRODUCT, level) for item in node[1])
        return _bracketed(text, around, _PRODUCT)
    if kind == "div":
        text = f"{_tree(node[1], _PRODUCT, level)}/{_tree(node[2], _POWER, level)}"
        return _bracketed(text, around, _PRODUCT)
    if kind == "pow":
        text = f"{_tree(node[1], _ATOM, level)}^{_tree(node[2], _ATOM, level)}"
        return _bracketed(text, around, _POWER)
    if kind in ("pct", "deg"):
        return _tree(node[1], _POWER, level) + ("%" if kind == "pct" else " deg")
    if kind in ("fn", "call", "big", "seq"):
        name, items = node[1], node[3] if kind == "seq" else node[2]
        if kind == "big":
            items = [part for part in node[2:] if part is not None]
        if name == "root" and items[1] == ("num", Fraction(2)):
            name, items = "sqrt", items[:1]
        return f"{'' if kind == 'seq' else name}({', '.join(_tree(i, 0, level) for i in items)})"
    return kind


def _bracketed(text: str, around: int, binds: int) -> str:
    return f"({text})" if binds < around else text


def _number(value: Fraction) -> str:
    digits = value.numerator.bit_length() + value.denominator.bit_length()
    return str(value) if digits < 10 * MAX_SHOWN else "a number of many digits"
