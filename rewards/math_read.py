"""Read one answer string to the typed values it may mean: numbers, sets, intervals, equations,
text.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .math_equal import same_value, variables
from .math_eval import LOW, Budget, NoValue, context, numeric
from .math_forms import LEAD, PROSE, clean, fold, plain, quick_reading, special_readings, text_list
from .math_lex import MAX_CHARS, Unreadable, tokenize
from .math_nodes import Node
from .math_numerals import literal
from .math_parse import Parser
from .math_regions import Interval, Region, interval, region_of, solve
from .math_symbols import words
from .math_units import DEGREE, NO_UNIT
from .math_values import (
    Assign,
    Based,
    Choice,
    Equation,
    Inequality,
    Many,
    Matrix,
    Ordered,
    Quantity,
    Ratio,
    Residue,
    Value,
    Word,
)

_CACHED_CHARS = 500  # longer answers are rarely seen twice
_CHECK_S = 0.2  # to check that a chain of equal values is one
MAX_EXPANSION = 16  # values of an expression with several plus-minus signs


_UNIT_LETTERS = re.compile(r"[0-9)}]\s+[A-Za-z]\b|[0-9]\s?[A-Za-z]\s*/|[A-Za-z]\s*[/^]")
# the integer k of a general solution may have any name: it is read as itself and as n
_PARAMETER = re.compile(
    r",\s*(?:\\[,;: ]|\\quad|\s)*([A-Za-z])\s*\\in\s*\\mathbb\s*\{?\s*Z\s*\}?\Z"
)
_ALONE = r"(?<![A-Za-z\\]){}(?![A-Za-z])"


def read(text: str) -> tuple[Value, ...]:
    """Every reading of an answer, the likeliest first. Never raises: the last resort is Word."""
    if len(text) > 4 * MAX_CHARS:
        return (Word(""),)
    return _read(text) if len(text) <= _CACHED_CHARS else _read.__wrapped__(text)


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[Value, ...]:
    text = clean(text)
    quick = quick_reading(text)
    if quick is not None:
        return quick
    found: list[Value] = list(special_readings(text))
    value = _parse(text, unit_letters=False)
    found.extend([value] if value is not None else [])
    bound = _PARAMETER.search(text)
    if bound and bound[1] != "n" and not re.search(_ALONE.format("n"), text):
        value = _parse(re.sub(_ALONE.format(bound[1]), "n", text), unit_letters=False)
        found.extend([value] if value is not None else [])
    if _UNIT_LETTERS.search(text):
        value = _parse(text, unit_letters=True)
        found.extend([value] if value is not None and value not in found else [])
    if isinstance(value, Quantity | Assign) and r"\approx" in text:
        rounded = _parse(text.rpartition(r"\approx")[2], unit_letters=False)
        found.extend([rounded] if isinstance(rounded, Quantity) else [])
    if any(not isinstance(v, Choice) for v in found):
        if PROSE.fullmatch(plain(text)):
            found.append(Word(fold(text)))
        return tuple(found)
    words = plain(text)
    lead = LEAD.match(words)
    if lead and lead.end() < len(words):
        return (*found, *read(words[lead.end() :]))
    listed = text_list(words)
    found.extend([listed] if listed is not None else [])
    return (*found, Word(fold(text)))


def _parse(text: str, *, unit_letters: bool) -> Value | None:
    try:
        parser = Parser(tokenize(text, unit_letters=unit_letters))
        return convert(parser.parse())
    except (Unreadable, NoValue, RecursionError, ArithmeticError):
        return None


# ---- trees to values


def convert(node: Node) -> Value:
    """The typed value of a parsed answer. Raises Unreadable for senseless ones."""
    kind = node[0]
    if kind == "list":
        return _several(node)
    if kind == "rel":
        return _relation(node[1], node[2])
    if kind == "set":
        return Many(_flat(node[1]), braces=True)
    if kind == "builder":
        return (
            convert(node[2])
            if node[1][0] in ("sym", "rel", "seq")
            else _refuse("a set by a formula")
        )
    if kind == "seq":
        return _sequence(node)
    if kind in ("cup", "cap", "minus", "domain"):
        return region_of(node)
    if kind == "matrix":
        return Matrix(node[1])
    if kind == "base":
        return (
            Quantity(literal(node[1]))
            if node[2] == 10
            else Based(node[1].upper().lstrip("0") or "0", node[2])
        )
    if kind == "mod":
        return _residue(node)
    if kind == "ratio":
        return Ratio(node[1])
    if kind == "const" and node[1] == "empty":
        return Word("empty set")
    expanded = expand(node)
    if len(expanded) > 1:
        return Many(tuple(map(_quantity, expanded)))
    return _quantity(expanded[0])


def _refuse(reason: str) -> Value:
    raise Unreadable(reason)


def _quantity(node: Node) -> Value:
    sign = False
    while node[0] == "neg" and node[1][0] in ("unit", "deg", "pct", "neg"):
        sign, node = not sign, node[1]
    unit, percent = None, False
    if node[0] == "unit":
        unit, node = node[2], node[1]
        if node[0] in ("unit", "pct"):
            raise Unreadable("two units")
    elif node[0] == "deg":
        unit, node = DEGREE, node[1]
    elif node[0] == "pct":
        percent, node = True, node[1]
    if sign:
        node = ("neg", node)
    if _misplaced(node):
        raise Unreadable("a list or unit inside an expression")
    if unit is not None and (unit == NO_UNIT or unit.dims == (("percent", 1),)):
        percent, unit = percent or unit != NO_UNIT, None
    rows = _matrix_rows(node) if unit is None else None
    if rows is not None:
        return Matrix(rows)
    return Quantity(node, unit, percent)


def _matrix_rows(node: Node) -> tuple[tuple[Node, ...], ...] | None:
    """The rows of a matrix that may have a sign, a factor or a divisor."""
    if node[0] == "matrix":
        return node[1]
    parts = node[1] if node[0] == "mul" else node[1:] if node[0] in ("neg", "div") else ()
    held = [(place, rows) for place, p in enumerate(parts) if (rows := _matrix_rows(p))]
    if len(held) != 1 or (node[0] == "div" and held[0][0] == 1):
        return None
    place, rows = held[0]

    def scaled(cell: Node) -> Node:
        inside = (*parts[:place], cell, *parts[place + 1 :])
        return ("mul", inside) if node[0] == "mul" else (node[0], *inside)

    return tuple(tuple(map(scaled, row)) for row in rows)


_NO_EXPRESSION = words("list rel set builder seq cup cap minus domain unit base ratio")


def _misplaced(node: Any) -> bool:
    """Whether a tree holds a node that is no part of a number."""
    if not isinstance(node, tuple) or len(node) == 0:
        return False
    head = node[0]
    if not isinstance(head, str):
        return any(map(_misplaced, node))
    if head == "big":
        return False
    return (head in _NO_EXPRESSION and len(node) > 1) or any(map(_misplaced, node[1:]))


def expand(node: Node) -> list[Node]:
    """The expressions that plus-minus signs stand for: independent, or paired where both signs
    occur.
    """
    if not _has(node, ("pm", "mp")):
        return [node]
    if _has(node, ("mp",)):
        return [_signed(node, 1), _signed(node, -1)]
    return _independent(node)[:MAX_EXPANSION]


def _has(node: Any, kinds: tuple[str, ...]) -> bool:
    if not isinstance(node, tuple) or len(node) == 0:
        return False
    return node[0] in kinds or any(_has(part, kinds) for part in node)


def _signed(node: Any, sign: int) -> Any:
    if not isinstance(node, tuple) or not node:
        return node
    if node[0] in ("pm", "mp"):
        left, right = _signed(node[1], sign), _signed(node[2], sign)
        return (
            "add",
            (left, right if sign * (1 if node[0] == "pm" else -1) > 0 else ("neg", right)),
        )
    return tuple(_signed(part, sign) for part in node)


def _independent(node: Any) -> list[Any]:
    if not isinstance(node, tuple) or not node:
        return [node]
    if node[0] == "pm":
        lefts, rights = _independent(node[1]), _independent(node[2])
        return [
            ("add", (left, r))
            for left in lefts
            for right in rights
            for r in (right, ("neg", right))
        ][:MAX_EXPANSION]
    combinations: list[tuple[Any, ...]] = [()]
    for part in node:
        combinations = [(*c, v) for c in combinations for v in _independent(part)][:MAX_EXPANSION]
    return combinations


def _flat(nodes: tuple[Node, ...]) -> tuple[Value, ...]:
    items: list[Value] = []
    for node in nodes:
        value = convert(node)
        items.extend(value.items if isinstance(value, Many) and not value.braces else [value])
    return tuple(items)


def _several(node: Node) -> Value:
    _, nodes, separators = node
    if all(n[0] == "rel" and set(n[1]) <= {"<", ">", "<=", ">=", "!="} for n in nodes):
        regions = [convert(n) for n in nodes]
        if all(isinstance(r, Region) for r in regions) and len({r.variable for r in regions}) == 1:
            return combine_regions(
                regions, "or" if "or" in separators else "and" if "and" in separators else ","
            )
    if "or" in separators and (points := _with_points(nodes)) is not None:
        return points
    if nodes[0][0] == "rel" and nodes[0][1] == ("!=",) and all(n[0] != "rel" for n in nodes[1:]):
        left = nodes[0][2][0]  # x != 1, 2
        return combine_regions(
            [order_relation(("!=",), (left, n)) for n in (nodes[0][2][1], *nodes[1:])], "and"
        )
    if all(n[0] in ("seq", "cup") for n in nodes) and "or" in separators and _mixed(nodes):
        return region_of(("cup", nodes))
    if len(nodes) == 2 and separators == (",",) and nodes[1][0] == "rel" and nodes[0][0] == "rel":
        general = _general_solution(nodes)
        if general is not None:
            return general
    return Many(_flat(nodes))


def _with_points(nodes: tuple[Node, ...]) -> Region | None:
    """`k < 0 or k = 1`: regions and single values of one variable."""
    if not all(n[0] == "rel" for n in nodes) or all(n[1] == ("=",) for n in nodes):
        return None
    regions = []
    for value in map(convert, nodes):
        if isinstance(value, Assign) and isinstance(value.value, Quantity):
            node = value.value.node
            if variables(node) or value.value.unit is not None:
                return None
            value = Region((Interval(node, node, True, True),), value.target)
        if not isinstance(value, Region):
            return None
        regions.append(value)
    return combine_regions(regions, "or") if len({r.variable for r in regions}) == 1 else None


def _general_solution(nodes: tuple[Node, ...]) -> Value | None:
    """`x = n pi, n \\in Z`: the condition on the parameter says nothing about the value."""
    condition = nodes[1]
    if condition[1] == ("in",) and condition[2][1][0] == "domain" and condition[2][0][0] == "sym":
        return convert(nodes[0])
    return None


def _mixed(nodes: tuple[Node, ...]) -> bool:
    return any(n[0] == "cup" or n[1] + n[2] in ("(]", "[)") for n in nodes)


def combine_regions(regions: list[Region], how: str) -> Region:
    """The union (`or`), the intersection (`and`), or for a comma the one that is not empty."""
    if not all(isinstance(region, Region) for region in regions):
        raise Unreadable("inequalities of several kinds")
    total = regions[0]
    for other in regions[1:]:
        if how == "or":
            total = total.union(other)
        else:
            both = total.intersection(other)
            total = total.union(other) if how == "," and both.is_empty() else both
    return total


def _sequence(node: Node) -> Value:
    _, opening, closing, nodes = node
    if len(nodes) == 2 and opening + closing in ("(]", "[)"):
        region = interval(node)
        return _refuse("an interval without a number") if region.is_empty() else region
    if opening + closing in ("(]", "[)"):
        raise Unreadable("brackets that do not match")
    return Ordered(_ordered_items(nodes), opening + closing)


def _ordered_items(nodes: tuple[Node, ...]) -> tuple[Value, ...]:
    return tuple(convert(n) for n in nodes)


def _residue(node: Node) -> Value:
    inner = node[1]
    if inner[0] == "rel" and set(inner[1]) <= {"==", "="} and len(inner[2]) == 2:
        inner = inner[2][1]
    value = convert(inner)
    if isinstance(value, Many):
        return Many(tuple(Residue(v.node, node[2]) for v in value.items if isinstance(v, Quantity)))
    if not isinstance(value, Quantity):
        raise Unreadable("a residue that is no number")
    return Residue(value.node, node[2])


# ---- relations


def _relation(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Value:
    kinds = set(ops)
    if kinds <= {"<", ">", "<=", ">="} or kinds == {"!="}:
        return order_relation(ops, sides)
    if ops == ("in",):
        return Assign(
            _target(sides[0]) or _refuse("membership of an expression"), convert(sides[1])
        )
    if kinds <= {"=", "~"}:
        return _equality(ops, sides)
    raise Unreadable("relations of several kinds")


def order_relation(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Value:
    """An inequality as the interval of its variable where it is one."""
    for side in sides:
        if side[0] in _NO_EXPRESSION - {"base"}:
            raise Unreadable("an inequality of collections")
    region = solve(ops, sides)
    return region if region is not None else Inequality(ops, sides)


def _target(node: Node) -> Node | None:
    """What a relation solves for: a symbol, a call, or a tuple of symbols."""
    if node[0] in ("sym", "call") or (node[0] == "fn" and node[1] == "f"):
        return node
    if node[0] == "const" and node[1] in ("e", "i"):
        return ("sym", node[1])
    if node[0] == "seq" and all(item[0] in ("sym", "const") for item in node[3]):
        return ("seq", "(", ")", node[3])
    return node if _named_quantity(node) else None


def _named_quantity(node: Node) -> bool:
    """Other left sides that only name what is found: AB, |AB|, m\\angle A, f^{-1}(x), dy/dx, a
    limit.
    """
    if node[0] == "big":
        return True
    if node[0] == "fn" and node[1] in ("abs", "norm"):
        return _named_quantity(node[2][0])
    if node[0] == "div":
        return _differential(node[1]) and _differential(node[2])
    if node[0] != "mul":
        return False
    flat = [part for item in node[1] for part in (item[1] if item[0] == "mul" else (item,))]
    if flat[0] == ("pow", ("sym", "f"), ("neg", ("num", Fraction(1)))):
        return len(flat) == 2
    if any(part[0] == "sym" and part[1].startswith("\\") for part in flat):
        return all(part[0] == "sym" for part in flat)
    return all(part[0] == "sym" and part[1].isupper() for part in flat)


def _differential(node: Node) -> bool:
    marks = (("sym", "d"), ("sym", "\\partial"))
    return node[0] == "mul" and len(node[1]) == 2 and node[1][0] in marks


def _equality(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Value:
    target = _target(sides[0])
    if target is None and len(sides) == 2 and _target(sides[1]) is not None and ops == ("=",):
        target, sides = _target(sides[1]), (sides[1], sides[0])
    if target is not None and len(sides) > 1:
        return _assigned(target, ops[1:], sides[1:])
    if len(sides) == 2 and ops == ("=",) and not _is_constant(sides):
        left, right = sides
        if any(_misplaced(side) or _has(side, ("pm", "mp")) for side in sides):
            raise Unreadable("an equation of collections")
        return Equation(left, right)
    return _chain(ops, sides)


def _assigned(target: Node, ops: tuple[str, ...], sides: tuple[Node, ...]) -> Value:
    value = _chain(ops, sides) if ops else convert(*sides)
    if isinstance(value, Many) and not value.braces:
        return Many(tuple(Assign(target, item) for item in value.items))
    return Assign(target, value)


def _is_constant(sides: tuple[Node, ...]) -> bool:
    return not any(variables(side) for side in sides)


def _chain(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Value:
    """`1/2 = 0.5`: one value written several ways, or senseless when the sides differ."""
    values = [convert(side) for side in sides]
    first = values[0]
    if not all(isinstance(v, Quantity) for v in values):
        raise Unreadable("a chain of collections")
    for op, left, right in zip(ops, values, values[1:], strict=False):
        try:
            if op == "=" and not same_value(_as_number(left), _as_number(right), Budget(_CHECK_S)):
                raise Unreadable("a false equation")
            if op == "~" and not _roughly(left.node, right.node):
                raise Unreadable("a false approximation")
        except NoValue:
            raise Unreadable("an equation that cannot be checked") from None
    with_unit = next((v.unit for v in values if v.unit is not None), None)
    return Quantity(first.node, first.unit or with_unit, first.percent)


def _as_number(value: Quantity) -> Node:
    return ("pct", value.node) if value.percent else value.node


def _roughly(left: Node, right: Node) -> bool:
    """Whether the right side is the left one rounded: to its own decimals, or within 1 %."""
    mp = context(LOW)
    a, b = (numeric(node, {}, mp, Budget(_CHECK_S)) for node in (left, right))
    return a == b or abs(a - b) < _unit_in_last_place(right, abs(a) / 100)


def _unit_in_last_place(node: Node, default: Any) -> Any:
    if node[0] == "neg":
        node = node[1]
    if node[0] != "num":
        return default
    return next((10.0**-d for d in range(13) if node[1] * 10**d % 1 == 0), default)
