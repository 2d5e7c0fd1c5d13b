"""Read one answer string to the typed values it may mean: numbers, sets, intervals, equations, text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .math_lex import MAX_CHARS, Unreadable, to_ascii, tokenize
from .math_parse import Node, Parser, number
from .math_regions import Region, interval, region_of
from .math_units import DEGREE, NO_UNIT, Unit

MAX_EXPANSION = 16  # values of an expression with several plus-minus signs


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

_WRAPPERS = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|mathsf|textsf|hbox|operatorname|boldsymbol"
    r"|underline|textup|emph|bf|rm|it)\b\s*\{([^{}]*)\}"
)
_SPACES = re.compile(r"\\[!,;: ]|~|\\quad|\\qquad|\s+")
_PLAIN_NUMBER = re.compile(
    r"[+-]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?)\.?\Z"
)
_SIMPLE_FRACTION = re.compile(
    r"([+-]?)\s*(?:\\[dt]?frac\s*\{\s*([+-]?[0-9]{1,200})\s*\}\s*\{\s*([0-9]{1,200})\s*\}|([0-9]{1,200})\s*/\s*([0-9]{1,200}))\Z"
)
_CLOCK = re.compile(
    r"([0-9]{1,2})(?::([0-5][0-9]))?(?::([0-5][0-9]))?\s*(?:([ap])\.?\s*m\b\.?)?\Z", re.I
)
_CHOICE = re.compile(
    r"(?:(?:option|choice|answer|statement)\s*:?\s*)?([(\[{]?)\s*([A-Za-z])\s*([)\]}.:]{0,2})\s*\Z",
    re.I,
)
_CHOICE_WITH_TEXT = re.compile(
    r"(?:(?:option|choice)\s+)?(?:\(([A-J])\)|\[([A-J])\]|([A-J])[).:])\s*(\S.*)\Z", re.S
)
_ANOTHER_CHOICE = re.compile(r"\([A-J]\)|\b[A-J][).:]|\bor\b|\band\b|\boption", re.I)
_BASED = re.compile(
    r"(-?)\s*\(?([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)\)?\s*(?:_\s*\{?\s*\(?\s*(?:base\s*)?([0-9]{1,2}|[a-z]+)\s*\)?\s*\}?"
    r"|\(?\s*(?:in\s+)?base\s*[- ]?\s*([0-9]{1,2}|[a-z]+)\s*\)?)\Z",
    re.I,
)
_NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split()
    )
} | {
    w: 10 * (i + 3)
    for i, w in enumerate("thirty forty fifty sixty seventy eighty ninety hundred".split())
}
_BASE_WORDS = {
    "binary": 2,
    "octal": 8,
    "decimal": 10,
    "hexadecimal": 16,
    "hex": 16,
    **_NUMBER_WORDS,
}
_EMPTY_WORDS = re.compile(
    r"(?:there (?:are|is) )?no (?:real |valid |possible |integer |such )*(?:solutions?|roots?|values?|intersections?)"
    r"(?: exists?)?|(?:the )?(?:empty|null) set|none exist\Z"
)
_ALL_REALS = re.compile(
    r"all (?:the )?real(?:s| numbers?)(?: x)?|(?:the )?(?:set of )?(?:all )?real numbers|any real number"
)
_LEAD = re.compile(
    r"(?:(?:the|my|our)\s+)?(?:final\s+)?(?:correct\s+)?(?:answer|result|solution|value)\s*(?:is|:|=)\s*:?\s*"
    r"|(?:approximately|about|exactly|approx\.?|around|equals|is|a total of|we get|so|thus|therefore|hence)[\s,:]+",
    re.I,
)


def clean(text: str) -> str:
    """The answer without wrappers, decoration of Markdown and final punctuation, in ASCII LaTeX."""
    text = to_ascii(text.strip())
    if text[:2] in ("['", '["', "{'", "('"):
        text = re.sub(r"['\"]", "", text)  # a Python list of strings
    for _ in range(6):
        before = text
        text = text.strip().strip("`").strip()
        for mark in ("***", "**", "__", "*", "$$"):
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
                if not (mark == "*" and "*" in text[1:-1]):
                    text = text[len(mark) : -len(mark)].strip()
        if (
            len(text) > 2
            and text[0] == "$" == text[-1]
            and text[-2] != "\\"
            and "$" not in text[1:-1].replace("\\$", "")
        ):
            text = text[1:-1].strip()
        for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
            if text.startswith(opening) and text.endswith(closing) and opening not in text[2:]:
                text = text[2:-2].strip()
        if text.endswith((".", ",", ";", ":", r"\.", "\\\\")) and not text.endswith("..."):
            text = text[:-2] if text.endswith(("\\.", "\\\\")) else text[:-1]
        if text == before:
            break
    return text


def plain(text: str) -> str:
    """The answer with text commands unwrapped and LaTeX spacing as single blanks."""
    for _ in range(3):
        text, count = _WRAPPERS.subn(r"\1", text)
        if not count:
            break
    text = re.sub(r"\\!", "", text.replace("$", "").replace("\\left", "").replace("\\right", ""))
    return _SPACES.sub(" ", text).strip()


@lru_cache(maxsize=8192)
def read(text: str) -> tuple[Value, ...]:
    """Every reading of an answer, the likeliest first. Never raises: the last resort is Word."""
    if len(text) > 4 * MAX_CHARS:
        return (Word(""),)
    text = clean(text)
    quick = _quick(text)
    if quick is not None:
        return quick
    found: list[Value] = list(_special(text))
    value = _parse(text, unit_letters=False)
    found.extend([value] if value is not None else [])
    if _UNIT_LETTERS.search(text):
        value = _parse(text, unit_letters=True)
        found.extend([value] if value is not None and value not in found else [])
    if any(not isinstance(v, Choice) for v in found):
        if _PROSE.fullmatch(plain(text)):
            found.append(Word(fold(text)))
        return tuple(found)
    words = plain(text)
    lead = _LEAD.match(words)
    if lead and lead.end() < len(words):
        return (*found, *read(words[lead.end() :]))
    listed = _text_list(words)
    found.extend([listed] if listed is not None else [])
    return (*found, Word(fold(text)))


_UNIT_LETTERS = re.compile(r"[0-9)}]\s+[A-Za-z]\b|[0-9]\s?[A-Za-z]\s*/|[A-Za-z]\s*[/^]")
_PROSE = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z0-9 ,.;'&-]+")


def _quick(text: str) -> tuple[Value, ...] | None:
    """Plain numbers and simple fractions without the parser."""
    if len(text) > 400:
        return None
    if _PLAIN_NUMBER.match(text):
        digits = text.replace(",", "").rstrip(".").lstrip("+")
        decimals = len(digits.partition(".")[2]) if "." in digits else None
        value = Quantity(number(digits), decimals=decimals)
        parts = text.split(",")
        if len(parts) > 1 and decimals is None and not any(p[0] == "0" for p in parts[1:]):
            return value, Many(tuple(Quantity(number(p)) for p in parts))  # 120,180 may be a list
        return (value,)
    match = _SIMPLE_FRACTION.match(text)
    if match:
        bottom = int(match[3] or match[5])
        if bottom:
            fraction = Fraction(int(match[2] or match[4]), bottom)
            return (Quantity(("num", -fraction if match[1] == "-" else fraction)),)
    return None


def _special(text: str) -> list[Value]:
    """Readings by form: choice letters, times of day, digits in a base, number words, empty sets."""
    words = plain(text)
    found: list[Value] = []
    match = _CHOICE.match(words)
    if match and (match[1] or match[2] in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghij"):
        bare = not match[1] and not match[3] and words.strip() == match[2]
        found.append(Choice(match[2].upper(), bare_lower=bare and match[2].islower()))
        return found
    match = _CHOICE_WITH_TEXT.match(words)
    if match and not _ANOTHER_CHOICE.search(match[4]):
        found.append(Choice((match[1] or match[2] or match[3]).upper()))
    match = _CLOCK.match(words)
    if match and (match[4] or (match[2] and len(match[1]) == 2 and match[1][0] == "0")):
        parts = tuple(int(p) for p in match.groups()[:3] if p is not None)
        if parts[0] <= 24:
            found.append(Clock(parts, (match[4] or "").lower()))
            return found
    based = _read_based(words)
    if based is not None:
        return [based]
    lower = words.lower().rstrip(".")
    if _EMPTY_WORDS.fullmatch(lower):
        return [Word("empty set")]
    if _ALL_REALS.fullmatch(lower):
        return [region_of(("domain", "R"))]
    value = _number_word(lower)
    return [Quantity(("num", Fraction(value)))] if value is not None else found


def _text_list(words: str) -> Many | None:
    """Names separated by commas or `and`, as an unordered collection."""
    if len(words) > 300 or not re.search(r",|;|\band\b", words):
        return None
    items = [fold(item) for item in re.split(r"[,;]\s*(?:and\s+)?|\s+and\s+", words)]
    if not 2 <= len(items) <= 20 or not all(
        re.fullmatch(r"[a-z][a-z ']{0,40}", item) for item in items
    ):
        return None
    return Many(tuple(map(Word, items)))


def _number_word(words: str) -> int | None:
    parts = re.split(r"[ -]", words)
    if len(parts) > 2 or not all(p in _NUMBER_WORDS for p in parts):
        return None
    values = [_NUMBER_WORDS[p] for p in parts]
    if len(values) == 1:
        return values[0]
    if parts[1] == "hundred" and values[0] < 10:
        return values[0] * 100
    return sum(values) if values[0] >= 20 and 0 < values[1] < 10 and values[0] < 100 else None


def _read_based(words: str) -> Based | Quantity | None:
    match = _BASED.match(words)
    if match is None:
        return None
    name = (match[3] or match[4]).lower()
    base = int(name) if name.isdigit() else _BASE_WORDS.get(name, 0)
    digits = match[2]
    if not 2 <= base <= 36 or not digits[0].isalnum() or not re.search(r"[0-9]", digits):
        return None
    if any(int(c, 36) >= base for c in digits.replace(".", "")):
        return None
    if base == 10:
        return Quantity(number(match[1] + digits))
    return Based(match[1] + (digits.upper().lstrip("0") or "0"), base)


def _parse(text: str, *, unit_letters: bool) -> Value | None:
    try:
        parser = Parser(tokenize(text, unit_letters=unit_letters))
        return convert(parser.parse())
    except (Unreadable, RecursionError, ZeroDivisionError):
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
            Quantity(number(node[1]))
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
    if node[0] == "matrix" and unit is None:
        return Matrix(node[1])
    return Quantity(node, unit, percent)


_NO_EXPRESSION = frozenset("list rel set builder seq cup cap minus domain unit base ratio".split())


def _misplaced(node: Any) -> bool:
    """Whether a tree holds a node that is no part of a number."""
    if not isinstance(node, tuple) or not node:
        return False
    if isinstance(node[0], str) and node[0] in _NO_EXPRESSION and len(node) > 1:
        return True
    if node[0] == "big":
        return False
    return (
        any(_misplaced(part) for part in node[1:])
        if isinstance(node[0], str)
        else any(map(_misplaced, node))
    )


def expand(node: Node) -> list[Node]:
    """The expressions that plus-minus signs stand for: independent, or paired where both signs occur."""
    if not _has(node, ("pm", "mp")):
        return [node]
    if _has(node, ("mp",)):
        return [_signed(node, 1), _signed(node, -1)]
    return _independent(node)[:MAX_EXPANSION]


def _has(node: Any, kinds: tuple[str, ...]) -> bool:
    if not isinstance(node, tuple) or not node:
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
    if all(n[0] in ("seq", "cup") for n in nodes) and "or" in separators and _mixed(nodes):
        return region_of(("cup", nodes))
    if len(nodes) == 2 and separators == (",",) and nodes[1][0] == "rel" and nodes[0][0] == "rel":
        general = _general_solution(nodes)
        if general is not None:
            return general
    return Many(_flat(nodes))


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
    from .math_regions import solve

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
    if node[0] == "mul" and all(item[0] == "sym" for item in node[1]):
        if all(item[1].isupper() for item in node[1]):
            return node  # AB = 9: the length of a segment
        return None
    if node[0] == "big" and node[1] == "derivative":
        return node
    return None


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
    value = _chain(ops, sides) if len(sides) > 1 else convert(sides[0])
    if isinstance(value, Many) and not value.braces:
        return Many(tuple(Assign(target, item) for item in value.items))
    return Assign(target, value)


def _is_constant(sides: tuple[Node, ...]) -> bool:
    from .math_equal import variables

    return not any(variables(side) for side in sides)


def _chain(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Value:
    """`1/2 = 0.5`: one value written several ways, or senseless when the sides differ."""
    from .math_equal import same_value
    from .math_eval import Budget, NoValue

    values = [convert(side) for side in sides]
    first = values[0]
    if not all(isinstance(v, Quantity) for v in values):
        raise Unreadable("a chain of collections")
    for op, left, right in zip(ops, values, values[1:], strict=False):
        try:
            if op == "=" and not same_value(_as_number(left), _as_number(right), Budget(0.2)):
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
    from .math_eval import LOW, Budget, context, numeric

    mp = context(LOW)
    a, b = (numeric(node, {}, mp, Budget(0.2)) for node in (left, right))
    return abs(a - b) <= abs(a) / 20


# ---- text


_ARTICLES = re.compile(r"\b(?:the|a|an)\b")
_STRIP = " .,;:!?'\"`*_$"


def fold(text: str) -> str:
    """Text for comparison: no case, articles, final punctuation, wrappers or repeated blanks."""
    if len(text) > MAX_CHARS:
        return ""
    words = plain(text).lower()
    if _PROSE.fullmatch(words):
        words = _ARTICLES.sub(" ", words)
        words = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", words)
    return re.sub(r"\s+", " ", words).strip(_STRIP)
