"""Literals of numbers, exact as written."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from .math_lex import Unreadable
from .math_nodes import Node

if TYPE_CHECKING:
    from .math_parse import Parser

MAX_DIGITS = 4000  # of one literal


def literal(text: str) -> Node:
    """The exact value of a literal as written."""
    if len(text) > MAX_DIGITS:
        raise Unreadable("a number has too many digits")
    mantissa, _, exponent = text.replace("E", "e").partition("e")
    if exponent and abs(int(exponent)) > MAX_DIGITS:
        return (
            "mul",
            (
                ("num", Fraction(mantissa)),
                ("pow", ("num", Fraction(10)), ("num", Fraction(exponent))),
            ),
        )
    return ("num", Fraction(text))


def read_numeral(parser: Parser) -> Node:
    """A number: decimal, mixed, repeating, or in a base."""
    token = parser.take()
    if parser.is_op("_"):
        return _based(parser, token.value)
    following = parser.tokens[parser.pos]
    period = parser.peek(1)
    marked = period.kind in ("cmd", "op") and period.value in ("overline", "bar", "dot", "(")
    if following.value == "." and not following.spaced and marked:
        parser.take()
        return _repeating(parser, token.value + ".")
    if (
        following.kind == "cmd"
        and following.value in ("overline", "bar", "dot")
        and "." in token.value
    ):
        return _repeating(parser, token.value)
    if parser.is_op("...") and "." in token.value:
        return _ellipsis(parser, token.value)
    node = literal(token.value)
    if token.value.isdigit():
        fraction = _mixed_fraction(parser)
        if fraction is not None:
            return ("num", node[1] + fraction)
    return node


def _repeating(parser: Parser, head: str) -> Node:
    """0.3\\overline{18}, 0.\\dot{3} or 0.(3) as an exact fraction."""
    if parser.accept("("):
        period = parser.take().value
        parser.expect(")")
    else:
        parser.take()
        grouped = parser.accept("{")
        period = parser.take().value
        if grouped:
            parser.expect("}")
    if not period.isdigit() or len(period) + len(head) > 200:
        raise Unreadable("a repeating decimal needs digits under its bar")
    parser.accept("...")
    decimals = len(head) - head.index(".") - 1
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10**decimals)
    return ("num", Fraction(head + "0") + tail)


def _ellipsis(parser: Parser, text: str) -> Node:
    """0.333... as a fraction when the end of the digits repeats at least twice."""
    decimals = text.split(".")[1]
    for period in range(1, len(decimals) // 2 + 1):
        tail, times = decimals[-period:], 3 if period == 1 else 2
        if decimals.endswith(tail * times):
            parser.take()
            exact = Fraction(int(tail), (10**period - 1) * 10 ** len(decimals))
            return ("num", Fraction(text) + exact)
    raise Unreadable("digits that go on")


def _based(parser: Parser, digits: str) -> Node:
    parser.take()
    node = parser.tex_argument(whole=True)
    if node[0] != "num" or node[1].denominator != 1 or not 2 <= node[1] <= 62:
        raise Unreadable("a subscript that is no base")
    return ("base", digits, int(node[1]))


def _mixed_fraction(parser: Parser) -> Fraction | None:
    """The proper fraction that follows a whole number: `6\\frac{1}{6}`, `3\\frac18`, `8 1/2`."""
    token = parser.tokens[parser.pos]
    save, depth = parser.pos, parser.depth
    if token.kind == "cmd" and token.value == "frac":
        parser.take()
        try:
            top, bottom = parser.tex_argument(), parser.tex_argument()
        except Unreadable:
            parser.pos, parser.depth = save, depth
            return None
        if top[0] == bottom[0] == "num" and 0 < top[1] < bottom[1] and not parser.is_op("^", "!"):
            return top[1] / bottom[1]
        parser.pos = save  # digits that were split read the same a second time
        return None
    if token.kind == "num" and token.value.isdigit() and token.spaced:
        bar, bottom = parser.peek(1), parser.peek(2)
        if (
            bar.value == "/"
            and bottom.kind == "num"
            and bottom.value.isdigit()
            and int(bottom.value)
        ):
            fraction = Fraction(int(token.value), int(bottom.value))
            if fraction < 1:
                parser.pos += 3
                return fraction
    return None
