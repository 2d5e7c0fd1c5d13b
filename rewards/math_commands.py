"""The part of the grammar that starts with a function name or a LaTeX command."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from .math_lex import Unreadable
from .math_nodes import Node
from .math_symbols import words

if TYPE_CHECKING:
    from .math_parse import Parser

_ACCENTS = words(
    "overline bar hat vec widehat tilde overrightarrow widetilde dot ddot check breve "
    "mathring overleftrightarrow overleftarrow overarc wideparen"
)
_MULTI_ARGUMENT = words("gcd lcm max min binomial")
_INVERSE = {
    "sin": "asin", "cos": "acos", "tan": "atan", "sinh": "asinh", "cosh": "acosh", "tanh": "atanh",
    "cot": "acot", "sec": "asec", "csc": "acsc",
}  # fmt: skip
_CANONICAL = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec",
    "arccsc": "acsc", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "cosec": "csc",
    "sgn": "sign",
}  # fmt: skip
_MATRICES = words("matrix pmatrix bmatrix Bmatrix smallmatrix array")


def read_function(parser: Parser) -> Node:
    """A function with its argument: `\\sin^2 3x`, `\\log_2 8`, `sqrt(2)`, `max(1, 2)`."""
    name = _CANONICAL.get(parser.value, parser.value)
    parser.take()
    if name in ("sqrt", "cbrt"):
        return _root(parser, 3 if name == "cbrt" else 2)
    base = power = None
    while parser.is_op("_", "^"):
        if parser.take().value == "_":
            base = parser.tex_argument(whole=True)
        else:
            power = _function_power(parser)
    if (
        name == "log"
        and base is None
        and parser.kind == "num"
        and not parser.tokens[parser.pos].spaced
    ) and parser.peek(1).value == "(":
        base = parser.tex_argument(whole=True)
    if power == ("num", Fraction(-1)) and name in _INVERSE:
        name, power = _INVERSE[name], None
    if name == "exp":
        node = ("pow", ("const", "e"), _argument(parser)[0])
    elif name in _MULTI_ARGUMENT:
        node = ("fn", name, _argument(parser))
    elif name == "log":
        node = ("fn", "log", (*_argument(parser), *((base,) if base else ())))
    elif name == "lg":
        node = ("fn", "log", (*_argument(parser), ("num", Fraction(10))))
    elif base is not None:
        raise Unreadable("a subscript of a function")
    else:
        arguments = _argument(parser)
        if len(arguments) != 1:
            raise Unreadable(f"{name} takes one argument")
        node = ("fn", name, arguments)
    return node if power is None else ("pow", node, power)


def _function_power(parser: Parser) -> Node:
    node = parser.tex_argument(whole=True)
    if node[0] == "neg" and node[1][0] == "num":
        return ("num", -node[1][1])
    return node


def _argument(parser: Parser) -> tuple[Node, ...]:
    """What a function is applied to: brackets, or the product that follows up to the next
    function.
    """
    if parser.is_op("("):
        return parser.arguments()
    if parser.is_op("{"):
        node = parser.tex_argument()
        if not parser.starts_factor():
            return (node,)
    else:
        sign = False
        while parser.is_op("-"):
            parser.take()
            sign = not sign
        node = parser.factor()
        node = ("neg", node) if sign else node
    while parser.starts_factor() and parser.kind in ("num", "id", "const", "word", "cmd"):
        if parser.kind == "cmd" and parser.value in ("sum", "int", "lim", "prod"):
            break
        node = ("mul", (node, parser.factor()))
    while parser.is_op("/") and parser.peek(1).kind in ("num", "const") and node[0] != "num":
        parser.take()  # sin x/2 is sin(x/2)
        node = ("div", node, parser.factor())
    return (node,)


def _root(parser: Parser, degree: int) -> Node:
    if parser.is_op("^"):
        raise Unreadable("a power of a root sign")
    node = parser.arguments()[0] if parser.is_op("(") else parser.atom()
    return ("fn", "root", (node, ("num", Fraction(degree))))


def read_command(parser: Parser) -> Node:
    """A LaTeX command that starts a factor."""
    name = parser.take().value
    if name == "frac":
        return _fraction(parser)
    if name == "sqrt":
        degree: Node = ("num", Fraction(2))
        if parser.accept("["):
            degree = parser.sum()
            parser.expect("]")
        return ("fn", "root", (_tex_or_group(parser), degree))
    if name in ("surd", "cbrt"):
        return _root(parser, 3 if name == "cbrt" else 2)
    if name == "binom":
        return ("fn", "binomial", (parser.tex_argument(), parser.tex_argument()))
    if name == "mathbb":
        node = parser.tex_argument()
        if node[0] == "sym" and node[1] in ("R", "Z", "N", "Q", "C"):
            return ("domain", node[1] + _half_line(parser) if node[1] == "R" else node[1])
        raise Unreadable("an unknown set of numbers")
    if name in _ACCENTS:
        return _accented(parser, name)
    if name.startswith("begin "):
        return _environment(parser, name[6:])
    if name in ("sum", "prod"):
        return _sum(parser, name)
    if name in ("int", "iint", "iiint", "oint"):
        return _integral(parser, name)
    if name == "lim":
        return _limit(parser)
    if name in ("triangle", "angle", "square", "odot", "measuredangle", "parallelogram"):
        return ("mul", (("sym", f"\\{name}"), parser.factor()))
    if name in ("partial", "nabla", "ell", "hbar", "star", "dagger", "bullet", "aleph", "Re", "Im"):
        return ("sym", f"\\{name}")
    raise Unreadable(f"\\{name} is not understood")


def _half_line(parser: Parser) -> str:
    """The sign behind \\mathbb{R}: ^+, ^{-}, _{+} or _{>0}; an empty string for none."""
    signs = [parser.peek(offset).value for offset in range(1, 5)]
    if not parser.is_op("^", "_"):
        return ""
    for pattern in (("{", "+", "}"), ("{", "-", "}"), ("{", ">", "0", "}"), ("{", "<", "0", "}")):
        if tuple(signs[: len(pattern)]) == pattern:
            parser.pos += len(pattern) + 1
            return {"<": "-", ">": "+"}.get(pattern[1], pattern[1])
    if signs[0] in ("+", "-"):
        parser.pos += 2
        return signs[0]
    return ""


def _tex_or_group(parser: Parser) -> Node:
    if parser.is_op("("):
        arguments = parser.arguments()
        if len(arguments) != 1:
            raise Unreadable("a list under a root")
        return arguments[0]
    return parser.tex_argument()


def _fraction(parser: Parser) -> Node:
    derivative = _derivative(parser)
    if derivative is not None:
        return derivative
    return ("div", _tex_or_group(parser), _tex_or_group(parser))


def _derivative(parser: Parser) -> Node | None:
    """`\\frac{d}{dx} body` and `\\frac{d^2}{dx^2} body`."""
    values = [t.value for t in parser.tokens[parser.pos : parser.pos + 16]]
    if values[:2] != ["{", "d"]:
        return None
    order, at = 1, 2
    if values[2:4] == ["^", "2"]:
        order, at = 2, 4
    if values[at : at + 2] != ["}", "{"]:
        return None
    at += 2
    if values[at] == "d" and len(values) > at + 1:
        variable, at = values[at + 1], at + 2
    elif len(values[at]) == 2 and values[at][0] == "d":
        variable, at = values[at][1], at + 1
    else:
        return None
    if order == 2:
        if values[at : at + 2] != ["^", "2"]:
            return None
        at += 2
    if at >= len(values) or values[at] != "}":
        return None
    parser.pos += at + 1
    return ("big", "derivative", ("sym", variable), ("num", Fraction(order)), parser.term())


def _accented(parser: Parser, name: str) -> Node:
    """A decoration makes another symbol: x-bar is not x."""
    node = parser.tex_argument()
    names = _plain_name(node)
    if names is None:
        if name in ("overline", "bar") and node[0] not in ("num",):
            return ("fn", "conjugate", (node,))
        raise Unreadable(f"\\{name} on something other than a symbol")
    canonical = {"overline": "bar", "widehat": "hat", "overrightarrow": "vec", "widetilde": "tilde"}
    return ("sym", f"\\{canonical.get(name, name)} {names}")


def _plain_name(node: Node) -> str | None:
    if node[0] == "sym" or (node[0] == "const" and node[1] in ("e", "i")):
        return node[1]
    if node[0] == "mul":
        parts = [_plain_name(item) for item in node[1]]
        return " ".join(p for p in parts if p) if all(parts) else None
    return None


def _environment(parser: Parser, name: str) -> Node:
    name = name.split(" ")[0]
    if name == "cases":
        return _cases(parser)
    determinant = name in ("vmatrix", "Vmatrix")
    if name not in _MATRICES and not determinant:
        raise Unreadable(f"the environment {name} is not understood")
    parser.enter()
    if name == "array" and parser.is_op("{"):
        while not parser.is_op("}"):
            if parser.take().kind == "end":
                raise Unreadable("unbalanced braces")
        parser.take()
    bars, parser.bars = parser.bars, 0
    rows: list[list[Node]] = [[]]
    while not (parser.kind == "cmd" and parser.value.startswith("end ")):
        if parser.accept("\\\\"):
            rows.append([])
        elif parser.accept("&") or parser.accept(","):
            continue
        else:
            rows[-1].append(parser.side())
    parser.take()
    parser.bars = bars
    parser.depth -= 1
    if rows and not rows[-1]:
        rows.pop()
    if not rows or len({len(row) for row in rows}) != 1:
        raise Unreadable("a matrix with uneven rows")
    matrix: Node = ("matrix", tuple(tuple(row) for row in rows))
    return ("fn", "det", (matrix,)) if determinant else matrix


def _cases(parser: Parser) -> Node:
    """A system of equations, one a row. Piecewise definitions are refused."""
    rows = [parser.relation()]
    while not (parser.kind == "cmd" and parser.value.startswith("end ")):
        parser.accept(",")
        parser.expect("\\\\")
        if parser.kind != "cmd" or not parser.value.startswith("end "):
            rows.append(parser.relation())
    parser.take()
    return ("list", tuple(rows), (",",) * (len(rows) - 1)) if len(rows) > 1 else rows[0]


def _bounds(parser: Parser) -> tuple[Node | None, Node | None]:
    lower = upper = None
    while parser.is_op("_", "^"):
        if parser.take().value == "_":
            if parser.accept("{"):
                lower = parser.relation()
                parser.expect("}")
            else:
                lower = parser.tex_argument(whole=True)
        else:
            upper = _signed_argument(parser)
    return lower, upper


def _signed_argument(parser: Parser) -> Node:
    sign = False
    while parser.is_op("+", "-"):
        sign ^= parser.take().value == "-"
    node = parser.tex_argument(whole=True)
    return ("neg", node) if sign else node


def _sum(parser: Parser, kind: str) -> Node:
    parser.enter()
    lower, upper = _bounds(parser)
    body = parser.term()
    parser.depth -= 1
    if lower is None:
        return ("big", kind, None, None, None, body)
    if (
        lower[0] == "rel"
        and lower[1] == ("=",)
        and lower[2][0][0] in ("sym", "const")
        and upper is not None
    ):
        index = lower[2][0]
        return ("big", kind, index, lower[2][1], upper, body)
    return ("big", kind + "_over", lower, upper or ("num", Fraction(0)), ("num", Fraction(0)), body)


def _integral(parser: Parser, kind: str) -> Node:
    """`\\int_a^b f(x)\\,dx`; the d and its variable may stand in a numerator only as a whole
    factor.
    """
    parser.enter()
    lower, upper = _bounds(parser)
    variable = _cut_differential(parser)
    body: Node = ("num", Fraction(1)) if parser.value == "\0" else parser.sum()
    if parser.value != "\0":
        raise Unreadable("an integral without a differential")
    parser.take()
    parser.depth -= 1
    return ("big", kind, ("sym", variable), lower, upper, body)


def _cut_differential(parser: Parser) -> str:
    """The variable of the next top-level `d x`, which becomes one marker token."""
    level = 0
    for at in range(parser.pos, len(parser.tokens) - 1):
        token, following = parser.tokens[at], parser.tokens[at + 1]
        if token.value in ("{", "(", "[", "lbrace"):
            level += 1
        elif token.value in ("}", ")", "]", "rbrace"):
            level -= 1
        elif level == 0 and token.kind == "id" and token.value == "d" and following.kind == "id":
            token.kind, token.value = "op", "\0"
            del parser.tokens[at + 1]
            return following.value
        elif (
            level == 0
            and token.kind == "word"
            and 2 <= len(token.value) <= 4
            and token.value[-2] == "d"
        ):
            head, variable = token.value[:-2], token.value[-1]
            token.kind, token.value = "op", "\0"
            parser.tokens[at:at] = [type(token)("id", char) for char in head]
            return variable
    raise Unreadable("an integral without a differential")


def _limit(parser: Parser) -> Node:
    lower, _ = _bounds(parser)
    if lower is None or lower[0] != "rel" or lower[1] != ("->",) or lower[2][0][0] != "sym":
        raise Unreadable("a limit without its point")
    return ("big", "lim", lower[2][0], lower[2][1], parser.term())
