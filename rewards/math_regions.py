"""Sets of real numbers as unions of intervals, from intervals, inequalities and set operations."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from .math_equal import compare_order, has_value, variables
from .math_eval import Budget, Inexact, NoValue, exact
from .math_lex import Unreadable
from .math_nodes import Node

INFINITY: Node = ("const", "inf")
MINUS_INFINITY: Node = ("neg", INFINITY)
_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}
_READ_BUDGET_S = 0.3
MAX_PIECES = 30  # intervals of one union


@dataclass(frozen=True)
class Interval:
    """Ends are trees without variables (or with parameters of the gold)."""

    low: Node
    high: Node
    low_closed: bool
    high_closed: bool


@dataclass(frozen=True)
class Region:
    """A sorted union of disjoint intervals; `variable` is what the inequality was about."""

    intervals: tuple[Interval, ...]
    variable: Node | None = None

    def is_empty(self) -> bool:
        return not self.intervals

    def union(self, other: Region) -> Region:
        return Region(merge((*self.intervals, *other.intervals)), self.variable or other.variable)

    def intersection(self, other: Region) -> Region:
        found = [i for a in self.intervals for b in other.intervals for i in _intersect(a, b)]
        return Region(merge(tuple(found)), self.variable or other.variable)

    def complement(self) -> Region:
        low, closed = MINUS_INFINITY, False
        found = []
        for piece in self.intervals:
            found.extend(_proper(Interval(low, piece.low, closed, not piece.low_closed)))
            low, closed = piece.high, not piece.high_closed
        found.extend(_proper(Interval(low, INFINITY, closed, False)))
        return Region(tuple(found), self.variable)


def order(left: Node, right: Node) -> int:
    """-1, 0 or 1; Unreadable for ends that cannot be ordered."""
    if left == right:
        return 0
    for node, sign in ((left, 1), (right, -1)):
        if node == INFINITY:
            return sign
        if node == MINUS_INFINITY:
            return -sign
    found = compare_order(left, right, Budget(_READ_BUDGET_S))
    if found is None:
        raise Unreadable("ends of an interval that have no order")
    return found


def _proper(piece: Interval) -> list[Interval]:
    """The interval in a list, or an empty list when it holds no number."""
    sign = order(piece.low, piece.high)
    if sign > 0 or (sign == 0 and not (piece.low_closed and piece.high_closed)):
        return []
    return [piece]


def _intersect(a: Interval, b: Interval) -> list[Interval]:
    sign = order(a.low, b.low)
    low, low_closed = (a.low, a.low_closed) if sign > 0 else (b.low, b.low_closed)
    if sign == 0:
        low_closed = a.low_closed and b.low_closed
    sign = order(a.high, b.high)
    high, high_closed = (a.high, a.high_closed) if sign < 0 else (b.high, b.high_closed)
    if sign == 0:
        high_closed = a.high_closed and b.high_closed
    return _proper(Interval(low, high, low_closed, high_closed))


def merge(pieces: tuple[Interval, ...]) -> tuple[Interval, ...]:
    """Sorted and joined where they touch."""
    if len(pieces) > 2 * MAX_PIECES:
        raise Unreadable("too many intervals")
    ordered: list[Interval] = []
    for piece in pieces:
        at = 0
        while at < len(ordered) and order(ordered[at].low, piece.low) <= 0:
            at += 1
        ordered.insert(at, piece)
    merged: list[Interval] = []
    for piece in ordered:
        if merged and _touch(merged[-1], piece):
            last = merged.pop()
            same_low = order(last.low, piece.low) == 0
            sign = order(last.high, piece.high)
            high, closed = (
                (last.high, last.high_closed) if sign > 0 else (piece.high, piece.high_closed)
            )
            if sign == 0:
                closed = last.high_closed or piece.high_closed
            low_closed = last.low_closed or (same_low and piece.low_closed)
            merged.append(Interval(last.low, high, low_closed, closed))
        else:
            merged.append(piece)
    return tuple(merged)


def _touch(left: Interval, right: Interval) -> bool:
    sign = order(left.high, right.low)
    return sign > 0 or (sign == 0 and (left.high_closed or right.low_closed))


def interval(node: Node) -> Region:
    """`(a, b]` and its relatives."""
    _, opening, closing, (low, high) = node
    return Region(merge(tuple(_proper(Interval(low, high, opening == "[", closing == "]")))))


def region_of(node: Node) -> Region:
    """Intervals, finite sets and their unions, intersections and differences."""
    kind = node[0]
    if kind in ("cup", "set") and len(node[1]) > MAX_PIECES:
        raise Unreadable("too many intervals")
    if kind == "domain":
        if node[1] not in ("R", "R+", "R-"):
            raise Unreadable("a set of numbers that is no interval")
        low = ("num", Fraction(0)) if node[1] == "R+" else MINUS_INFINITY
        high = ("num", Fraction(0)) if node[1] == "R-" else INFINITY
        return Region((Interval(low, high, False, False),))
    if kind == "seq" and len(node[3]) == 2 and node[1] in "([" and node[2] in ")]":
        return interval(node)
    if kind == "set":
        return Region(merge(tuple(Interval(item, item, True, True) for item in node[1])))
    if kind == "const" and node[1] == "empty":
        return Region(())
    if kind == "cup":
        total = Region(())
        for item in node[1]:
            total = total.union(region_of(item))
        return total
    if kind == "cap":
        return region_of(node[1]).intersection(region_of(node[2]))
    if kind == "minus":
        return region_of(node[1]).intersection(region_of(node[2]).complement())
    if kind == "rel" and node[1] == ("in",):
        return region_of(node[2][1])
    if kind in ("num", "neg", "div") and has_value(node, Budget(_READ_BUDGET_S)):
        return Region((Interval(node, node, True, True),))
    raise Unreadable("an operand that is no set of real numbers")


# ---- inequalities of one variable


def solve(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Region | None:
    """The region that a chain of inequalities leaves to its one variable term; None for other
    forms.
    """
    free = [bool(variables(side)) for side in sides]
    if len(sides) == 2 and free != [False, False]:
        return _solve_two(ops[0], sides[0], sides[1])
    if len(sides) == 3 and free == [False, True, False]:
        first, second = ops
        up = first in ("<", "<=") and second in ("<", "<=")
        down = first in (">", ">=") and second in (">", ">=")
        if up or down:
            left = _solve_two(first, sides[0], sides[1])
            right = _solve_two(second, sides[1], sides[2])
            if left is not None and right is not None and left.variable == right.variable:
                return left.intersection(right)
    return None


def _solve_two(op: str, left: Node, right: Node) -> Region | None:
    if not variables(left):
        left, right, op = right, left, _FLIP[op]
    if variables(right):
        return _linear(op, ("add", (left, ("neg", right))), ("num", Fraction(0)))
    if left[0] in ("sym", "call"):
        return Region(_ray(op, right), left)
    if left[0] == "fn" and left[1] == "abs" and len(variables(left)) == 1:
        return _absolute(op, left[2][0], right)
    return _linear(op, left, right)


def _ray(op: str, end: Node) -> tuple[Interval, ...]:
    if op == "!=":
        return (Interval(MINUS_INFINITY, end, False, False), Interval(end, INFINITY, False, False))
    if op in ("<", "<="):
        return (Interval(MINUS_INFINITY, end, False, op == "<=" and end != INFINITY),)
    return (Interval(end, INFINITY, op == ">=" and end != MINUS_INFINITY, False),)


def _absolute(op: str, inside: Node, bound: Node) -> Region | None:
    """|x| op c and |a x + b| op c, for positive c."""
    if op == "!=" or order(("num", Fraction(0)), bound) >= 0:
        return None
    below, above = _solve_two(_FLIP[op], inside, ("neg", bound)), _solve_two(op, inside, bound)
    if below is None or above is None:
        return None
    return below.intersection(above) if op in ("<", "<=") else below.union(above)


def _linear(op: str, left: Node, right: Node) -> Region | None:
    """a x + b op c, with rational coefficients a and b."""
    names = variables(left)
    if len(names) != 1:
        return None
    (name,) = names
    try:
        budget = Budget(_READ_BUDGET_S)
        at = [exact(left, {name: Fraction(x)}, budget) for x in (0, 1, 2, 5)]
    except (Inexact, NoValue):
        return None
    try:
        end: Node = ("num", (exact(right, {}, budget) - at[0]) / (at[1] - at[0] or 1))
    except Inexact:
        end = ("div", ("add", (right, ("num", -at[0]))), ("num", at[1] - at[0]))
    except NoValue:
        return None
    slope = at[1] - at[0]
    if slope == 0 or at[2] != at[0] + 2 * slope or at[3] != at[0] + 5 * slope:
        return None
    return Region(_ray(op if slope > 0 else _FLIP[op], end), ("sym", name))
