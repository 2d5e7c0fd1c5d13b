"""Turn an answer, in LaTeX, plain text or Unicode, into tokens in one linear pass."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .math_symbols import words

MAX_CHARS = 6000  # longer answers are refused: the longest gold of MATH has 169 characters
MAX_TOKENS = 2000


class Unreadable(ValueError):
    """The text is not one of the forms that the reader knows."""


@dataclass(slots=True)
class Token:
    """`kind` is num, id, word, fn, cmd, const, op or end; `spaced` = white space before it."""

    kind: str
    value: str
    spaced: bool = False
    in_text: bool = False  # from \\text{...} or a bare word that is no product of variables


FUNCTIONS = words(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth "
    "sech csch arcsinh arccosh arctanh asin acos atan asinh acosh atanh cosec ln log lg exp "
    "sqrt cbrt gcd lcm max min det Re Im arg floor ceil abs sgn sign erf binomial factorial"
)
CONSTANTS = {
    "pi": "pi",
    "infty": "inf",
    "infinity": "inf",
    "inf": "inf",
    "Infinity": "inf",
    "oo": "inf",
}
GREEK_NAMES = words(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu "
    "nu xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi "
    "Sigma Phi Psi Omega"
)
_VARIANT = {"varepsilon": "epsilon", "vartheta": "theta", "varphi": "phi"}
_TEXT_COMMANDS = words(
    "text mbox textbf textit textrm textnormal textsf texttt textsc hbox textup operatorname "
    "emph mathrm rm bf"
)
_STYLE = words(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle "
    "textstyle scriptstyle limits nolimits mathbf mathit mathsf mathcal boldsymbol bm boxed "
    "fbox ensuremath middle quad qquad thinspace notag nonumber hline rm bf it mathstrut "
    "scriptscriptstyle enspace mathop cal pmb mathscr mathfrak mathtt large Large underline"
)
_SKIP_ARGUMENT = words("phantom hphantom vphantom hspace vspace color label tag textcolor")
_OPERATORS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "le": "<=", "leq": "<=", "leqslant": "<=",
    "ge": ">=", "geq": ">=", "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=",
    "approx": "~", "simeq": "~", "sim": "~", "thickapprox": "~", "equiv": "==", "pm": "+-",
    "mp": "-+",
    "cup": "cup", "cap": "cap", "setminus": "setminus", "backslash": "setminus", "in": "in",
    "to": "->", "rightarrow": "->", "longrightarrow": "->", "vert": "|", "lvert": "|",
    "rvert": "|", "mid": "|",
    "langle": "langle", "rangle": "rangle", "lfloor": "lfloor", "rfloor": "rfloor",
    "lceil": "lceil", "rceil": "rceil", "lbrace": "lbrace", "rbrace": "rbrace", "lbrack": "[",
    "rbrack": "]", "colon": ":", "prime": "'", "land": "and", "wedge": "and", "lor": "or",
    "vee": "or",
    "dots": "...", "ldots": "...", "cdots": "...", "circ": "deg", "degree": "deg", "percent": "%",
    "lVert": "||", "rVert": "||", "Vert": "||", "bigcup": "cup", "textdollar": "$",
    "textdegree": "deg",
    "Longleftrightarrow": "iff", "iff": "iff", "implies": "=>", "Rightarrow": "=>", "slash": "/",
    "euro": "\u20ac", "pounds": "\u00a3", "yen": "\u00a5",
}  # fmt: skip
_ESCAPES = {
    "{": "lbrace",
    "}": "rbrace",
    "%": "%",
    "$": "$",
    "|": "||",
    "#": "#",
    "&": "and",
    "_": "_",
}
_SPACING = frozenset(",!;:> \n\t/")
# thousands: 1,234  1{,}234  1,\!234  1\,234  1\ 234  1 234  1'234  and the Indian 1,00,000
_GROUPING = r"(?:,\\! ?|\\!,|\{,\}(?:\\!)?|\\,|\\;|\\ |\\:|~|,| |')"
_NUMBER = re.compile(
    rf"(?P<group>[0-9]{{1,3}}(?:{_GROUPING}[0-9]{{3}})+(?![0-9])"
    rf"|[0-9]{{1,2}}(?:,[0-9]{{2}})+,[0-9]{{3}}(?![0-9]))"
    r"(?P<frac>\.[0-9]+)?|(?P<plain>[0-9]+(?:(?:\.|\{,\}|\{\.\})[0-9]+)?|\.[0-9]+)"
    r"(?P<exp>[eE][+-]?[0-9]{1,8}(?![0-9A-Za-z.]))?"
)
_COMMA_GROUPS = re.compile(r"[0-9]+(?:,[0-9]+)+")
_SINGLE = re.compile(r"(?P<plain>[0-9]+(?:\.[0-9]+)?)(?P<exp>$^)?")
_MATH_SPACE = re.compile(r"(?:\s|~|\\[,!;:> \n\t/]|\$)+")
_LETTERS = re.compile(r"[A-Za-z]+")
_COMMAND = re.compile(r"\\([A-Za-z]+)\*?")
_SYMBOLS = re.compile(
    r"\*\*|<=|>=|!=|=<|=>|->|==|\+/-|\+-|\.\.\.|\|\||[-+*/^_!%=<>,;:"
    r"|&()\[\]{}'\"#\u20ac\u00a3\u00a5\u20b9?.]"
)
_CONNECTORS = {
    "and": "and",
    "or": "or",
    "mod": "mod",
    "union": "cup",
    "intersect": "cap",
    "to": ":",
}
_FRACTION_STYLES = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
}


def tokenize(text: str, *, unit_letters: bool = False, in_text: bool = False) -> list[Token]:
    """Tokens of `text`, which must be ASCII (`to_ascii`), ending with an end token.

    With `unit_letters`, a single bare letter after a number is a unit ("5 m"), not a variable.
    Raises Unreadable for text that is too long or holds characters of no known form.
    """
    if len(text) > MAX_CHARS:
        raise Unreadable("the answer is too long")
    lexer = _Lexer(text, unit_letters=unit_letters)
    lexer.run(0, len(text), in_text=in_text)
    lexer.tokens.append(Token("end", ""))
    return lexer.tokens


class _Lexer:
    def __init__(self, text: str, *, unit_letters: bool):
        self.text = text
        self.unit_letters = unit_letters
        self.tokens: list[Token] = []
        self.spaced = False
        self.depth = 0  # of brackets in which a comma separates items
        self.text_depth = 0

    def add(self, kind: str, value: str, *, in_text: bool = False) -> None:
        if len(self.tokens) >= MAX_TOKENS:
            raise Unreadable("the answer has too many tokens")
        self.tokens.append(Token(kind, value, self.spaced, in_text))
        self.spaced = False

    def run(self, pos: int, end: int, *, in_text: bool) -> None:
        text = self.text
        while pos < end:
            char = text[pos]
            if char.isdigit() or (char == "." and text[pos + 1 : pos + 2].isdigit()):
                pos = self.number(pos)
            elif char == "$" or char.isspace() or char == "~":
                if char == "$" and _is_currency(text, pos):
                    self.add("op", "$")
                    pos += 1
                    continue
                self.spaced = True
                pos = self.match(_MATH_SPACE, pos).end() if char != "$" else pos + 1
            elif char == "\\":
                pos = self.command(pos, in_text=in_text)
            elif char.isalpha() and char.isascii():
                pos = self.letters(pos, in_text=in_text)
            else:
                match = _SYMBOLS.match(text, pos, end)
                if match is None:
                    if not char.isalpha():
                        raise Unreadable(f"character {char!r} is not understood")
                    self.add("word", char, in_text=True)
                    pos += 1
                    continue
                self.symbol(match[0])
                pos = match.end()

    def match(self, pattern: re.Pattern[str], pos: int) -> re.Match[str]:
        found = pattern.match(self.text, pos)
        if found is None:
            raise Unreadable("stray character")
        return found

    def symbol(self, op: str) -> None:
        op = {"**": "^", "=<": "<=", "==": "=", "+/-": "+-", '"': "''"}.get(op, op)
        if op in "([":
            self.depth += 1
        elif op in ")]":
            self.depth -= 1
        self.add("op", op)

    def number(self, pos: int) -> int:
        match = self.match(_NUMBER, pos)
        group = match["group"]
        if group and self.depth > 0 and _COMMA_GROUPS.fullmatch(group) and ",0" not in group:
            group = None  # inside brackets 100,101 is two items; 1,000 with its zeros is not
        if group and match["group"]:
            self.add("num", re.sub(r"[^0-9]", "", group) + (match["frac"] or ""))
            return match.end()
        if match["group"]:
            match = self.match(_SINGLE, pos)
        digits = match["plain"].replace("{,}", ".").replace("{.}", ".")
        self.add("num", digits + (match["exp"] or ""))
        return match.end()

    def letters(self, pos: int, *, in_text: bool) -> int:
        match = self.match(_LETTERS, pos)
        run = match[0]
        end = match.end()
        lower = run.lower()
        if lower in _CONNECTORS and len(run) > 1:
            self.add("op", _CONNECTORS[lower])
        elif (run in FUNCTIONS or (lower in FUNCTIONS and len(run) > 2)) and not (
            in_text and self.text[end : end + 1] != "("
        ):
            self.add("fn", run if run in FUNCTIONS else lower)
        elif run in CONSTANTS or lower in ("pi", "infinity"):
            self.add("const", CONSTANTS.get(run) or CONSTANTS[lower])
        elif not in_text and len(run) > 2 and run in GREEK_NAMES:
            self.add("id", run)
        elif run in ("x", "X", "U") and self.between(run, end):
            self.add("op", "cup" if run == "U" else "*")
        elif len(run) == 1 and not in_text:
            after_number = bool(self.tokens) and self.tokens[-1].kind == "num"
            if self.unit_letters and (after_number or self.after_unit()) and run not in "eixyzn":
                self.add("word", run, in_text=True)
            else:
                self.add("id", run)
        elif len(run) == 1 and not self.after_quantity():
            self.add("id", run)
        elif (
            run[:3] in FUNCTIONS
            and len(run) in (4, 5)
            and not in_text
            and run[3:] in ("x", "y", "t", "xy")
        ):
            self.add("fn", run[:3])
            self.add("id" if len(run) == 4 else "word", run[3:])
        else:
            self.add("word", run, in_text=in_text)
        return end

    def between(self, run: str, end: int) -> bool:
        """Whether an x stands between two numbers (2 x 10^5), or a U between two intervals."""
        last = self.tokens[-1] if self.tokens else None
        following = self.text[end : end + 20].lstrip()[:1]
        if run == "U":
            return (
                last is not None
                and last.value in (")", "]", "rbrace")
                and following in ("(", "[", "\\")
            )
        spaced = self.spaced and self.text[end : end + 1].isspace()
        return last is not None and last.kind == "num" and spaced and following.isdigit()

    def after_quantity(self) -> bool:
        """Whether a letter in text is a unit: behind a number or another unit."""
        last = self.tokens[-1] if self.tokens else None
        return last is not None and (
            last.kind in ("num", "word", "const") or last.value in ("}", ")", "/", "*", "deg")
        )

    def after_unit(self) -> bool:
        back = self.tokens[-2:]
        return len(back) == 2 and back[1].value in ("/", "*") and back[0].kind == "word"

    def command(self, pos: int, *, in_text: bool) -> int:
        text = self.text
        follower = text[pos + 1 : pos + 2]
        if follower == "\\":
            self.add("op", "\\\\")
            return pos + 2
        if not (follower.isalpha() and follower.isascii()):
            if follower in _SPACING or follower == "":
                self.spaced = self.spaced or follower != "!"
            elif follower in "()[]":
                self.spaced = True  # \( \) \[ \]
            elif follower in _ESCAPES:
                if follower == "{":
                    self.depth += 1
                elif follower == "}":
                    self.depth -= 1
                self.add("op", _ESCAPES[follower])
            elif follower != ".":
                raise Unreadable(f"\\{follower} is not understood")
            return pos + 2
        match = self.match(_COMMAND, pos)
        return self.named(match[1], match.end(), in_text=in_text)

    def named(self, name: str, end: int, *, in_text: bool) -> int:
        text = self.text
        if name in _TEXT_COMMANDS:
            open_at = _skip_space(text, end)
            if text[open_at : open_at + 1] == "{":
                return self.text_group(name, open_at)
            return end
        if name in _SKIP_ARGUMENT:
            open_at = _skip_space(text, end)
            if text[open_at : open_at + 1] == "{":
                return closing_brace(text, open_at) + 1
            return end if name == "phantom" else open_at + 1
        if name in _STYLE:
            if name in ("left", "right"):
                following = text[end : end + 1]
                if following in ("<", ">"):  # \left< and \right> are angle brackets
                    self.depth += 1 if following == "<" else -1
                    self.add("op", "langle" if following == "<" else "rangle")
                return end + 1 if following in (".", "<", ">") else end
            self.spaced = True
        elif name in FUNCTIONS and name not in ("sqrt", "cbrt", "binomial"):
            self.add("fn", name)
        elif name in CONSTANTS:
            self.add("const", CONSTANTS[name])
        elif name in GREEK_NAMES:
            self.add("id", _VARIANT.get(name, name))
        elif name in ("emptyset", "varnothing"):
            self.add("const", "empty")
        elif name in _OPERATORS:
            op = _OPERATORS[name]
            self.depth += {
                "lbrace": 1,
                "langle": 1,
                "[": 1,
                "rbrace": -1,
                "rangle": -1,
                "]": -1,
            }.get(op, 0)
            self.add("op", op)
        elif name in ("begin", "end"):
            open_at = _skip_space(text, end)
            close = closing_brace(text, open_at)
            self.add("cmd", f"{name} {text[open_at + 1 : close].strip('*')}")
            return close + 1
        else:
            self.add("cmd", _FRACTION_STYLES.get(name, name))
        return end

    def text_group(self, name: str, open_at: int) -> int:
        close = closing_brace(self.text, open_at)
        inner = self.text[open_at + 1 : close].strip()
        self.spaced = self.spaced or self.text[open_at + 1 : open_at + 2].isspace()
        # \mathrm{e}, \mathrm{d}x and \textbf{x} are symbols; \mathrm{m} is a unit
        upright = name in ("mathrm", "operatorname", "rm") and inner in ("e", "i", "d")
        if upright or (name in ("textbf", "textit") and len(inner) == 1 and inner.isalpha()):
            self.add("id", inner)
            return close + 1
        self.text_depth += 1
        if self.text_depth > 5:
            raise Unreadable("text is nested too deeply")
        self.run(open_at + 1, close, in_text=True)
        self.text_depth -= 1
        self.spaced = True
        return close + 1


def _skip_space(text: str, pos: int) -> int:
    while pos < len(text) and text[pos].isspace():
        pos += 1
    return pos


def closing_brace(text: str, open_at: int) -> int:
    """Index of the brace that closes the one at `open_at`; Unreadable when there is none."""
    depth = 0
    pos = open_at
    while pos < len(text):
        char = text[pos]
        if char == "\\":
            pos += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return pos
        pos += 1
    raise Unreadable("unbalanced braces")


def _is_currency(text: str, pos: int) -> bool:
    """Whether the unescaped $ at `pos` is a dollar sign rather than a delimiter of mathematics."""
    before = text[:pos].rstrip()
    if before and (before[-1].isalnum() or before[-1] in "})$"):
        return False
    if not re.match(r"\$\s*-?\s*[0-9.]", text[pos:]):
        return False
    return text.count("$", pos + 1) % 2 == 0 or bool(re.match(r"\$[0-9.,]+\D*\$[0-9]", text[pos:]))
