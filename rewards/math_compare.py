"""Whether two readings of answers mean the same: one rule per pair of types, each with a name.

Policies (options loosen them): numbers are equal only if exactly equal as read; 25 % is 0.25,
1/4 and a bare 25; a missing unit is forgiven, units of one dimension convert, others are wrong;
lists, sets and several solutions are multisets, brackets are ordered; `x = 3` is 3; digits in a
base keep their base.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .math_equal import contains, differ_by_constant, proportional, same_value, variables
from .math_eval import Budget, Inexact, NoValue, TooCostly, exact
from .math_lex import Unreadable
from .math_nodes import Node
from .math_regions import INFINITY, MINUS_INFINITY, Region, interval, order
from .math_slow import encode, pool
from .math_units import Unit
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
    Word,
)
from .workers import WorkerError, WorkerTimeout

MAX_ITEMS = 80  # of a collection
KILL_S = 0.05  # to end a worker within the limit of the call
_OPERATORS = frozenset(["big"])
_SLOW = f"{__name__.rpartition('.')[0]}.math_slow:"


@dataclass
class Comparison:
    """Compares one gold with one answer within a budget. `rounding` = decimals that suffice."""

    budget: Budget
    rounding: int | None = None
    unevaluated: bool = False

    def match(self, gold: Value, answer: Value) -> str:
        """The name of the rule by which the answer matches, or an empty string."""
        rule = _RULES.get((type(gold), type(answer)))
        if rule is not None:
            return rule(self, gold, answer)
        if isinstance(gold, Assign):
            return self._named(self.match(gold.value, answer), "value of the equation")
        if isinstance(answer, Assign):
            return self._named(self.match(gold, answer.value), "value of the equation")
        if isinstance(gold, Many) and len(gold.items) == 1:
            return self.match(gold.items[0], answer)
        if isinstance(answer, Many) and len(answer.items) == 1:
            return self.match(gold, answer.items[0])
        return ""

    @staticmethod
    def _named(rule: str, name: str) -> str:
        return rule and f"{name}: {rule}"

    # ---- numbers and expressions

    def nodes(self, gold: Node, answer: Node) -> bool:
        """Whether two expressions have the same value."""
        if gold == answer:
            return True
        if contains(answer, _OPERATORS) and not contains(gold, _OPERATORS) and not self.unevaluated:
            return False  # the question restated
        try:
            if contains((gold, answer), _OPERATORS):
                return self.finite(gold, answer) or self.slow("equal_values", gold, answer)
            bare = _without_constant(gold), _without_constant(answer)
            if bare[0] is not None and bare[1] is not None:
                return differ_by_constant(bare[0], bare[1], self.budget)
            return same_value(gold, answer, self.budget)
        except NoValue as error:
            if str(error) == "timeout":
                raise
            return False

    def finite(self, gold: Node, answer: Node) -> bool:
        """Sums and products of few terms, here; NoValue leaves the others to the workers."""
        try:
            return same_value(gold, answer, self.budget)
        except NoValue as error:
            if str(error) == "timeout":
                raise
            return False

    def slow(self, function: str, *nodes: Node) -> bool:
        """A comparison by sympy in a worker: sums, integrals, limits, rational equations."""
        timeout_s = self.budget.deadline - time.monotonic() - KILL_S
        if timeout_s < 0.05:
            raise TooCostly("timeout")
        try:
            return bool(pool().call(_SLOW + function, *map(encode, nodes), timeout_s=timeout_s))
        except WorkerTimeout:
            raise TooCostly("timeout") from None
        except WorkerError:
            return False

    def quantity(self, gold: Quantity, answer: Quantity) -> str:
        if gold.percent or answer.percent:
            return self.percent(gold, answer)
        if gold.unit is None or answer.unit is None:
            if not _radians_bare(gold, answer) and self.number(gold, answer):
                return "number" if gold.unit is answer.unit else "number, unit missing"
            return self.radians(gold, answer)
        return self.units(gold, gold.unit, answer, answer.unit)

    def number(self, gold: Quantity, answer: Quantity) -> bool:
        return self.nodes(gold.node, answer.node) or self.rounded(gold.node, answer)

    def rounded(self, gold: Node, answer: Quantity) -> bool:
        """With `rounding`: the answer is the gold rounded to the decimals it shows, at least
        that many.
        """
        if self.rounding is None or answer.decimals is None or answer.decimals < self.rounding:
            return False
        if variables(gold):
            return False
        half = ("num", Fraction(1, 2 * 10**answer.decimals))
        below = ("add", (answer.node, ("neg", half)))
        above = ("add", (answer.node, half))
        try:
            return order(below, gold) <= 0 <= order(above, gold)
        except (Unreadable, NoValue):
            return False

    def percent(self, gold: Quantity, answer: Quantity) -> str:
        other = answer if gold.percent else gold
        if gold.percent and answer.percent:
            return "percent" if self.nodes(gold.node, answer.node) else ""
        if other.unit is not None:
            return ""
        # 25 % is a bare 25, but a gold of 0.5 is not met by 0.5 %
        if (gold.percent or not self.small(gold.node)) and self.number(gold, answer):
            return "percent, sign missing"
        hundredth: tuple[Node, Node] = tuple(
            ("pct", q.node) if q.percent else q.node for q in (gold, answer)
        )  # type: ignore[assignment]
        return "percent as a fraction" if self.nodes(*hundredth) else ""

    def small(self, node: Node) -> bool:
        try:
            return abs(exact(node, {}, self.budget)) < 1
        except (Inexact, NoValue):
            return True

    def radians(self, gold: Quantity, answer: Quantity) -> str:
        """A bare number against an angle in degrees: radians."""
        sides = []
        for quantity in (gold, answer):
            degrees = quantity.unit is not None and quantity.unit.pi
            sides.append(("deg", quantity.node) if degrees else quantity.node)
        if sides == [gold.node, answer.node]:
            return ""
        return "angle in radians" if self.nodes(sides[0], sides[1]) else ""

    def units(self, gold: Quantity, unit: Unit, answer: Quantity, other: Unit) -> str:
        if unit == other:
            return "quantity" if self.number(gold, answer) else ""
        if unit.dims != other.dims:
            return (
                "quantity, unit unnamed"
                if _same_kind(unit, other) and self.number(gold, answer)
                else ""
            )
        return (
            "quantity converted"
            if self.nodes(_in_base(gold.node, unit), _in_base(answer.node, other))
            else ""
        )

    # ---- collections

    def many(self, gold: Many, answer: Many) -> str:
        if len(gold.items) != len(answer.items) or len(gold.items) > MAX_ITEMS:
            return ""
        left = list(answer.items)
        for item in gold.items:
            found = next((i for i, other in enumerate(left) if self.match(item, other)), None)
            if found is None:
                return ""
            del left[found]
        return "unordered items"

    def in_order(self, gold: tuple[Value, ...], answer: tuple[Value, ...]) -> str:
        if len(gold) != len(answer) or len(gold) > MAX_ITEMS:
            return ""
        return (
            "items in order"
            if all(self.match(g, a) for g, a in zip(gold, answer, strict=True))
            else ""
        )

    def ordered(self, gold: Ordered, answer: Ordered) -> str:
        pair = {gold.brackets, answer.brackets}
        if len(gold.items) == 2 and pair == {"()", "[]"}:
            return ""
        return self.in_order(gold.items, answer.items)

    def ordered_many(self, gold: Ordered, answer: Many) -> str:
        if len(answer.items) == 1:
            return self.match(gold, answer.items[0])
        if answer.braces:
            return ""
        return self.in_order(gold.items, _by_name(answer.items))

    def many_ordered(self, gold: Many, answer: Ordered) -> str:
        if len(gold.items) == 1:
            return self.match(gold.items[0], answer)
        if gold.braces and (answer.brackets != "[]" or len(answer.items) == 2):
            return ""  # a list in a program's style may be a set, two ends are an interval
        return self.in_order(_by_name(gold.items), answer.items)

    def matrix(self, gold: Matrix, answer: Matrix) -> str:
        if len(gold.rows) != len(answer.rows) or len(gold.rows[0]) != len(answer.rows[0]):
            return ""
        cells = zip(sum(gold.rows, ()), sum(answer.rows, ()), strict=True)
        return "matrix" if all(self.nodes(g, a) for g, a in cells) else ""

    def matrix_ordered(self, gold: Matrix, answer: Ordered) -> str:
        cells = _matrix_cells(answer)
        if cells is not None:
            return self.matrix(gold, Matrix(cells))
        if len(gold.rows[0]) != 1 and len(gold.rows) != 1:
            return ""
        items = tuple(map(Quantity, sum(gold.rows, ())))
        return "vector" if self.in_order(items, answer.items) else ""

    def ordered_matrix(self, gold: Ordered, answer: Matrix) -> str:
        cells = _matrix_cells(gold)
        if cells is not None:
            return self.matrix(Matrix(cells), answer)
        if len(answer.rows[0]) != 1 and len(answer.rows) != 1:
            return ""
        items = tuple(map(Quantity, sum(answer.rows, ())))
        return "vector" if self.in_order(gold.items, items) else ""

    # ---- relations and regions

    def assign(self, gold: Assign, answer: Assign) -> str:
        if gold.target == answer.target or _same_name(_name(gold), _name(answer)):
            rule = self._named(self.match(gold.value, answer.value), "equation")
            if rule:
                return rule
        value, other = gold.value, answer.value
        if isinstance(value, Quantity) and isinstance(other, Quantity) and variables(value.node):
            return self.equation(
                Equation(gold.target, value.node), Equation(answer.target, other.node)
            )
        return ""

    def assign_equation(self, gold: Assign, answer: Equation) -> str:
        if isinstance(gold.value, Quantity) and variables(gold.value.node):
            return self.equation(Equation(gold.target, gold.value.node), answer)
        return ""

    def equation_assign(self, gold: Equation, answer: Assign) -> str:
        if isinstance(answer.value, Quantity):
            return self.equation(gold, Equation(answer.target, answer.value.node))
        return ""

    def equation(self, gold: Equation, answer: Equation) -> str:
        left, right = (("add", (e.left, ("neg", e.right))) for e in (gold, answer))
        if self.proportional(left, right):
            return "equation up to a factor"
        if variables(left) != variables(right) or not (_divides(left) or _divides(right)):
            return ""
        return "equation without denominators" if self.slow("equal_equations", left, right) else ""

    def proportional(self, left: Node, right: Node, *, positive: bool = False) -> bool:
        try:
            return proportional(left, right, self.budget, positive=positive)
        except NoValue as error:
            if str(error) == "timeout":
                raise
            return False

    def inequality(self, gold: Inequality, answer: Inequality) -> str:
        for turned in (answer, _reversed(answer)):
            if gold.ops == turned.ops and all(map(self.nodes, gold.sides, turned.sides)):
                return "inequality"
            if len(gold.ops) == 1 and gold.ops == turned.ops and len(turned.ops) == 1:
                left, right = (("add", (e.sides[0], ("neg", e.sides[1]))) for e in (gold, turned))
                if self.proportional(left, right, positive=gold.ops[0] != "!="):
                    return "inequality up to a factor"
        return ""

    def region(self, gold: Region, answer: Region) -> str:
        if (
            gold.variable is not None
            and answer.variable is not None
            and gold.variable != answer.variable
        ):
            return ""
        if len(gold.intervals) != len(answer.intervals):
            return ""
        for g, a in zip(gold.intervals, answer.intervals, strict=True):
            if (g.low_closed, g.high_closed) != (a.low_closed, a.high_closed):
                return ""
            if not (self.end(g.low, a.low) and self.end(g.high, a.high)):
                return ""
        return "set of real numbers"

    def end(self, gold: Node, answer: Node) -> bool:
        infinite = {INFINITY, MINUS_INFINITY}
        if gold in infinite or answer in infinite:
            return gold == answer
        return self.nodes(gold, answer)

    def region_ordered(self, gold: Region, answer: Ordered) -> str:
        region = _as_region(answer)
        return self.region(gold, region) if region is not None else ""

    def ordered_region(self, gold: Ordered, answer: Region) -> str:
        region = _as_region(gold)
        return self.region(region, answer) if region is not None else ""

    def region_many(self, gold: Region, answer: Many) -> str:
        """x != 1, 2 or a finite set against a region of points."""
        points = [i.low for i in gold.intervals if i.low == i.high]
        if len(points) != len(gold.intervals):
            return ""
        return self.many(Many(tuple(map(Quantity, points))), answer)

    # ---- the rest

    def based(self, gold: Based, answer: Based) -> str:
        def trim(digits: str) -> str:
            return digits.rstrip("0").rstrip(".") if "." in digits else digits

        return (
            "digits in a base"
            if gold.base == answer.base and trim(gold.digits) == trim(answer.digits)
            else ""
        )

    def clock(self, gold: Clock, answer: Clock) -> str:
        halves = {gold.half, answer.half}
        if halves == {"a", "p"}:
            return ""
        if "" in halves:
            if _minutes(gold) == _minutes(answer):
                return "time"
            unmarked = gold if not gold.half else answer
            return "time" if unmarked.parts[0] < 13 and _padded(gold) == _padded(answer) else ""
        return "time" if _minutes(gold) == _minutes(answer) else ""

    def clock_ratio(self, gold: Clock | Ratio, answer: Clock | Ratio) -> str:
        left, right = (v if isinstance(v, Clock) else _ratio_clock(v) for v in (gold, answer))
        return self.clock(left, right) if left is not None and right is not None else ""

    def ratio(self, gold: Ratio, answer: Ratio) -> str:
        if len(gold.terms) != len(answer.terms):
            return ""
        if any(self.nodes(term, _ZERO) for term in gold.terms):
            return "ratio" if all(map(self.nodes, gold.terms, answer.terms)) else ""
        first_gold, first = gold.terms[0], answer.terms[0]
        for g, a in zip(gold.terms[1:], answer.terms[1:], strict=True):
            if not self.nodes(("mul", (first_gold, a)), ("mul", (first, g))):
                return ""
        return "ratio"

    def ratio_number(self, gold: Ratio, answer: Quantity) -> str:
        if len(gold.terms) != 2 or answer.unit is not None:
            return ""
        return "ratio as a fraction" if self.nodes(("div", *gold.terms), answer.node) else ""

    def number_ratio(self, gold: Quantity, answer: Ratio) -> str:
        if len(answer.terms) != 2 or gold.unit is not None:
            return ""
        return "ratio as a fraction" if self.nodes(gold.node, ("div", *answer.terms)) else ""

    def residue(self, gold: Residue, answer: Residue) -> str:
        if not self.nodes(gold.modulus, answer.modulus):
            return ""
        if self.nodes(gold.node, answer.node):
            return "residue"
        try:
            values = [exact(n, {}, self.budget) for n in (gold.node, answer.node, gold.modulus)]
        except (Inexact, NoValue):
            return ""
        return "residue" if values[2] and (values[0] - values[1]) % values[2] == 0 else ""

    def residue_number(self, gold: Residue, answer: Quantity) -> str:
        return "residue, modulus missing" if self.nodes(gold.node, answer.node) else ""

    def number_residue(self, gold: Quantity, answer: Residue) -> str:
        return "residue" if self.nodes(gold.node, answer.node) else ""

    def choice(self, gold: Choice, answer: Choice) -> str:
        if gold.letter != answer.letter or (gold.bare_lower and not answer.bare_lower):
            return ""
        return "choice letter"

    def word(self, gold: Word, answer: Word) -> str:
        return "text" if gold.text and gold.text == answer.text else ""


def _same_kind(unit: Unit, other: Unit) -> bool:
    """`units` stands for any unit of its power; a noun may be written shorter (tickets, child
    ticket).
    """
    names = [dims[0][0] if len(dims) == 1 else "" for dims in (unit.dims, other.dims)]
    powers = [dims[0][1] if len(dims) == 1 else 0 for dims in (unit.dims, other.dims)]
    if "generic" in names and powers[0] == powers[1]:
        return all(n in ("generic", "length") or n.startswith("noun:") for n in names)
    if all(n.startswith("noun:") for n in names):
        words = [n[5:].split() for n in names]
        return words[0][-1] == words[1][-1] and (
            set(words[0]) <= set(words[1]) or set(words[1]) <= set(words[0])
        )
    return False


_PI = frozenset(["pi"])
_ZERO: Node = ("num", Fraction(0))


def _radians_bare(gold: Quantity, answer: Quantity) -> bool:
    """Whether a bare multiple of pi stands against degrees: it is meant in radians."""
    for quantity, other in ((gold, answer), (answer, gold)):
        if quantity.unit is None and other.unit is not None and other.unit.pi:
            return contains(quantity.node, _PI)
    return False


def _without_constant(node: Node) -> Node | None:
    """F(x) of an antiderivative F(x) + C; None for other trees."""
    if node[0] != "add":
        return None
    constants = [item for item in node[1] if item in (("sym", "C"), ("sym", "c"), ("sym", "K"))]
    rest = tuple(item for item in node[1] if item not in constants)
    if len(constants) != 1 or not rest or constants[0][1] in variables(("add", rest)):
        return None
    return ("add", rest) if variables(("add", rest)) else None


def _divides(node: Any) -> bool:
    """Whether a tree divides by a variable."""
    if not isinstance(node, tuple) or not node:
        return False
    if node[0] == "div" and variables(node[2]):
        return True
    return any(_divides(part) for part in node)


def _same_name(name: str, other: str) -> bool:
    """Whether y = ... may stand for f(x) = ..., or a bare x for the solution x_1."""
    if "" in (name, other) or ("_" in name and "_" in other):
        return False
    return {name, other} == {"f", "y"} or name.partition("_")[0] == other.partition("_")[0]


def _name(value: Assign) -> str:
    """`f` for f(x) = ..., `y` for y = ...: two ways to name the same function."""
    if value.target[0] == "call":
        return value.target[1] if len(value.target[2]) == 1 else ""
    return value.target[1] if value.target[0] == "sym" else ""


def _in_base(node: Node, unit: Unit) -> Node:
    scaled: Node = ("mul", (node, ("num", unit.factor)))
    if unit.pi:
        scaled = ("deg", scaled)
    return ("add", (scaled, ("num", unit.offset))) if unit.offset else scaled


def _by_name(items: tuple[Value, ...]) -> tuple[Value, ...]:
    """Solutions x = 1, y = 2 by the names of the variables, for a tuple (1, 2)."""
    if all(isinstance(i, Assign) and i.target[0] == "sym" for i in items):
        names = [i.target[1] for i in items]
        if len(set(names)) == len(names):
            return tuple(i.value for i in sorted(items, key=lambda i: i.target[1]))
    return items


def _matrix_cells(value: Ordered) -> tuple[tuple[Node, ...], ...] | None:
    rows: list[tuple[Node, ...]] = []
    for row in value.items:
        if not isinstance(row, Ordered) or not all(
            isinstance(c, Quantity) and c.unit is None for c in row.items
        ):
            return None
        rows.append(tuple(c.node for c in row.items))
    return tuple(rows) if rows and len({len(r) for r in rows}) == 1 else None


def _as_region(value: Ordered) -> Region | None:
    if len(value.items) != 2 or value.brackets not in ("()", "[]"):
        return None
    low, high = value.items
    if not (isinstance(low, Quantity) and isinstance(high, Quantity)) or low.unit or high.unit:
        return None
    try:
        region = interval(("seq", value.brackets[0], value.brackets[1], (low.node, high.node)))
    except (Unreadable, NoValue):
        return None
    return None if region.is_empty() else region


_TURN = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


def _reversed(value: Inequality) -> Inequality:
    return Inequality(tuple(_TURN[op] for op in reversed(value.ops)), tuple(reversed(value.sides)))


def _padded(value: Clock) -> tuple[int, ...]:
    return (*value.parts, 0, 0)[:3]


def _minutes(value: Clock) -> tuple[int, int, int]:
    hour, minute, second = _padded(value)
    if value.half:
        hour = hour % 12 + (12 if value.half == "p" else 0)
    return hour % 24, minute, second


def _ratio_clock(value: Ratio) -> Clock | None:
    parts = []
    for term in value.terms:
        if term[0] != "num" or term[1].denominator != 1 or not 0 <= term[1] < 60:
            return None
        parts.append(int(term[1]))
    return Clock(tuple(parts)) if 2 <= len(parts) <= 3 else None


C = Comparison
_RULES: dict[tuple[type, type], Any] = {
    (Quantity, Quantity): C.quantity,
    (Many, Many): C.many,
    (Ordered, Ordered): C.ordered,
    (Ordered, Many): C.ordered_many,
    (Many, Ordered): C.many_ordered,
    (Matrix, Matrix): C.matrix,
    (Matrix, Ordered): C.matrix_ordered,
    (Ordered, Matrix): C.ordered_matrix,
    (Assign, Assign): C.assign,
    (Assign, Equation): C.assign_equation,
    (Equation, Assign): C.equation_assign,
    (Equation, Equation): C.equation,
    (Inequality, Inequality): C.inequality,
    (Region, Region): C.region,
    (Region, Ordered): C.region_ordered,
    (Ordered, Region): C.ordered_region,
    (Region, Many): C.region_many,
    (Based, Based): C.based,
    (Clock, Clock): C.clock,
    (Clock, Ratio): C.clock_ratio,
    (Ratio, Clock): C.clock_ratio,
    (Ratio, Ratio): C.ratio,
    (Ratio, Quantity): C.ratio_number,
    (Quantity, Ratio): C.number_ratio,
    (Residue, Residue): C.residue,
    (Residue, Quantity): C.residue_number,
    (Quantity, Residue): C.number_residue,
    (Choice, Choice): C.choice,
    (Word, Word): C.word,
}
