"""Readings of an answer by its form: plain numbers, choice letters, times, bases, words."""

from __future__ import annotations

import re
from fractions import Fraction

from .math_lex import MAX_CHARS
from .math_numerals import literal
from .math_regions import region_of
from .math_symbols import to_ascii
from .math_values import Based, Choice, Clock, Many, Quantity, Value, Word

_WRAPPERS = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|mathsf|textsf|hbox"
    r"|operatorname|boldsymbol"
    r"|underline|textup|emph|bf|rm|it)\b\s*\{([^{}]*)\}"
)
_DISPLAY = re.compile(r"\A\\(?:displaystyle|textstyle|large|Large)\b")
_SPACES = re.compile(r"\\[!,;: ]|~|\\quad|\\qquad|\s+")
_PLAIN_NUMBER = re.compile(
    r"[+-]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?)\.?\Z"
)
_SIMPLE_FRACTION = re.compile(
    r"([+-]?)\s*(?:\\[dt]?frac\s*\{\s*([+-]?[0-9]{1,200})\s*\}\s*\{\s*([0-9]{1,200})\s*\}"
    r"|([0-9]{1,200})\s*/\s*([0-9]{1,200}))\Z"
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
_ANOTHER_CHOICE = re.compile(r"\A[A-J]\W*\Z|\([A-J]\)|\b[A-J][).:]|\bor\b|\band\b|\boption", re.I)
_BASED = re.compile(
    r"(-?)\s*\(?([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)\)?\s*(?:_\s*\{?\s*\(?\s*(?:base\s*)?([0-9]{1,2}|[a-z]+)\s*\)?\s*\}?"
    r"|\(?\s*(?:in\s+)?base\s*[- ]?\s*([0-9]{1,2}|[a-z]+)\s*\)?)\Z",
    re.I,
)
_NUMBER_WORDS = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
} | {
    w: 10 * (i + 3)
    for i, w in enumerate(
        ["thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred"]
    )
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
    r"(?:there (?:are|is) )?no (?:real |valid |possible |integer |such )*(?:solutions?|roots?"
    r"|values?|intersections?)"
    r"(?: exists?)?|(?:the )?(?:empty|null) set|none exist\Z"
)
_ALL_REALS = re.compile(
    r"all (?:the )?real(?:s| numbers?)(?: x)?|(?:the )?(?:set of )?(?:all )?real numbers"
    r"|any real number"
)
LEAD = re.compile(
    r"(?:(?:the|my|our)\s+)?(?:final\s+)?(?:correct\s+)?(?:answer|choice|option|result|solution"
    r"|value)\s*(?:is|:|=)\s*:?\s*"
    r"|(?:approximately|about|exactly|approx\.?|around|equals|is|a total of|we get|so|thus"
    r"|therefore|hence)[\s,:]+",
    re.I,
)


PROSE = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z0-9 ,.;'&-]+")


_INFIX = re.compile(
    r"\{((?:[^{}]|\{[^{}]*\})*)\\(over|choose)(?![A-Za-z])((?:[^{}]|\{[^{}]*\})*)\}"
)
_BRACKETS = re.compile(r"\\(?:left|right)\s*(?=[\[\]])")
_END = r"(\s*(?:[^\s\[\](),;]|\([^()\[\]]*\)|(?<=\S)\s+){1,80})"
_OUTWARD = re.compile(rf"([\[\]]){_END}([,;]){_END}([\[\]])")
_TRANSPOSED = re.compile(r"(\([^()]*,[^()]*\))\s*\^\s*\{?\s*(?:\\(?:top|intercal)|T)\s*\}?\Z")


def _inward(match: re.Match[str]) -> str:
    opening, closing = "(" if match[1] == "]" else "[", ")" if match[5] == "[" else "]"
    return opening + match[2] + match[3] + match[4] + closing


def _rewritten(text: str) -> str:
    """Rarer spellings in the common one: {a \\over b}, ]a, b[ for (a, b), a row (a, b)^T."""
    if r"\over" in text or r"\choose" in text:
        if text.count(r"\over") - text.count(r"\overline") == 1 and not _INFIX.search(text):
            text = f"{{{text}}}"
        text = _INFIX.sub(
            lambda m: rf"\{'frac' if m[2] == 'over' else 'binom'}{{{m[1]}}}{{{m[3]}}}", text
        )
    brackets = "".join(c for c in text if c in "[]")
    if brackets and brackets != "[]" * (len(brackets) // 2):
        text = _OUTWARD.sub(_inward, _BRACKETS.sub("", text))
    return _TRANSPOSED.sub(r"\1", text) if text.endswith(("T", "}", "top", "intercal")) else text


def clean(text: str) -> str:
    """The answer without wrappers, decoration of Markdown and final punctuation, in ASCII LaTeX."""
    text = to_ascii(text.strip())
    if text[:2] in ("['", '["', "{'", "('"):
        text = re.sub(r"['\"]", "", text)  # a Python list of strings
    for _ in range(6):
        before = text
        text = _DISPLAY.sub("", text.strip().strip("`")).strip()
        for mark in ("***", "**", "__", "*", "$$"):
            inside = text[len(mark) : -len(mark)]
            wrapped = bool(inside) and text.startswith(mark) and text.endswith(mark)
            if wrapped and not (mark == "*" and "*" in inside):
                text = inside.strip()
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
    return _rewritten(text)


def plain(text: str) -> str:
    """The answer with text commands unwrapped and LaTeX spacing as single blanks."""
    for _ in range(3):
        text, count = _WRAPPERS.subn(r"\1", text)
        if not count:
            break
    text = re.sub(r"\\!", "", text.replace("$", "").replace("\\left", "").replace("\\right", ""))
    return _SPACES.sub(" ", text).strip()


def quick_reading(text: str) -> tuple[Value, ...] | None:
    """Plain numbers and simple fractions without the parser."""
    if len(text) > 400:
        return None
    if _PLAIN_NUMBER.match(text):
        digits = text.replace(",", "").rstrip(".").lstrip("+")
        decimals = len(digits.partition(".")[2]) if "." in digits else None
        value = Quantity(literal(digits), decimals=decimals)
        parts = text.split(",")
        if len(parts) > 1 and decimals is None and not any(p[0] == "0" for p in parts[1:]):
            return value, Many(tuple(Quantity(literal(p)) for p in parts))  # 120,180 may be a list
        return (value,)
    match = _SIMPLE_FRACTION.match(text)
    if match:
        bottom = int(match[3] or match[5])
        if bottom:
            fraction = Fraction(int(match[2] or match[4]), bottom)
            return (Quantity(("num", -fraction if match[1] == "-" else fraction)),)
    return None


def special_readings(text: str) -> list[Value]:
    """Readings by form: choice letters, times, digits in a base, number words, empty sets."""
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


def text_list(words: str) -> Many | None:
    """Names separated by commas or `and`, as an unordered collection."""
    if len(words) > 300 or not re.search(r",|;|\band\b", words):
        return None
    items = [fold(item) for item in re.split(r"[,;]\s*(?:and\s+)?|\s+and\s+", words)]
    if not 2 <= len(items) <= 20 or not all(
        re.fullmatch(r"(?!not\b)[a-z][a-z ']{0,40}", item) for item in items
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
    numeral = re.search(r"[0-9]", digits) or (base == 16 and len(digits) > 1)
    if not 2 <= base <= 36 or not digits[0].isalnum() or not numeral:
        return None
    if any(int(c, 36) >= base for c in digits.replace(".", "")):
        return None
    if base == 10:
        return Quantity(literal(match[1] + digits))
    return Based(match[1] + (digits.upper().lstrip("0") or "0"), base)


# ---- text


_ARTICLES = re.compile(r"\b(?:the|a|an)\b")
_SYNONYMS = {"dne": "does not exist", "limit does not exist": "does not exist"}
_STRIP = " .,;:!?'\"`*_$"


def fold(text: str) -> str:
    """Text for comparison: no case, articles, final punctuation, wrappers or repeated blanks."""
    if len(text) > MAX_CHARS:
        return ""
    words = plain(text).lower()
    if PROSE.fullmatch(words):
        words = _ARTICLES.sub(" ", words)
        words = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", words)
    elif "\\" in words:
        return re.sub(r"\s+", "", words).strip(_STRIP)  # unread LaTeX: blanks mean nothing
    words = re.sub(r"\s+", " ", words).strip(_STRIP)
    return _SYNONYMS.get(words, words)
