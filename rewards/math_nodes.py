"""Constructors of expression trees that the parser's parts share."""

from __future__ import annotations

from typing import Any

from .math_lex import Unreadable
from .math_units import Unit

Node = tuple[Any, ...]


def product(left: Node, right: Node) -> Node:
    """A product, flattened to the left."""
    if left[0] == "mul":
        return ("mul", (*left[1], right))
    return ("mul", (left, right))


def primed(node: Node, count: int) -> Node:
    """A symbol with primes: f' is not f."""
    if node[0] in ("sym", "call"):
        return (node[0], node[1] + "'" * count, *node[2:])
    if node[0] == "deg":
        raise Unreadable("minutes of arc")
    raise Unreadable("a prime after a number")


def join_units(prefix: Unit | None, suffix: Unit) -> Unit:
    """The unit of a sign before and a phrase behind: `$5 per hour`. Raises Unreadable for two."""
    if prefix is None or prefix == suffix:
        return suffix
    if not suffix.dims:
        return prefix.times(suffix)
    if all(exponent < 0 for _, exponent in suffix.dims):
        return prefix.times(suffix)  # $5 per hour
    if len(suffix.dims) == 1 and suffix.dims[0][0].startswith("noun:"):
        return prefix
    if suffix.dims == prefix.dims and suffix.factor == prefix.factor:
        return prefix
    raise Unreadable("two units")


def bracket_node(opening: str, close: str, node: Node) -> Node:
    """What a pair of brackets around items stands for."""
    items = node[1] if node[0] == "list" else (node,)
    if (
        node[0] == "list"
        and any(s in ("or", "and") for s in node[2])
        and opening not in ("{", "lbrace")
    ):
        raise Unreadable("words in brackets")
    if opening == "lbrace":
        return node if node[0] == "builder" else ("set", items)
    if opening == "{":
        return node if node[0] != "list" else ("set", items)
    if opening in ("lfloor", "lceil"):
        if len(items) != 1:
            raise Unreadable("a list where a number belongs")
        return ("fn", "floor" if opening == "lfloor" else "ceil", items)
    if len(items) == 1 and opening in "([":
        if (opening, close) not in (("(", ")"), ("[", "]")):
            raise Unreadable("unbalanced brackets")
        return items[0]
    if opening == "langle":
        opening, close = "(", ")"
        return ("seq", "<", ">", items)
    return ("seq", opening, close, items)
