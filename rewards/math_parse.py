"""A recursive-descent parser from tokens to expression trees: plain tuples, never evaluated text.

Trees: ("num", Fraction), ("sym", name), ("const", "pi"|"e"|"i"|"inf"|"empty"), ("add", items),
("mul", items), ("div", a, b), ("neg", a), ("pow", a, b), ("fn", name, args), ("call", name,
args), ("pct", a), ("deg", a), ("pm", a, b), ("mp", a, b), ("seq", open, close, items), ("set",
items), ("builder", item, conditions), ("matrix", rows), ("rel", ops, sides), ("cup", items),
("minus", a, b), ("list", items, separators), ("unit", a, Unit), ("base", digits, base),
("domain", letter), ("big", kind, ...) for sums, products, integrals, limits and derivatives,
("mod", a, n).
"""

from __future__ import annotations

from fractions import Fraction

from .math_commands import read_command, read_function
from .math_lex import Token, Unreadable
from .math_nodes import Node, bracket_node, join_units, primed, product
from .math_numerals import literal, read_numeral
from .math_symbols import words
from .math_units import CURRENCY_SIGNS, TEMPERATURES, PhraseReader, Unit, currency, is_unit_word

MAX_DEPTH = 30  # of nesting; each level costs about ten Python frames
RELATIONS = words("= < > <= >= != ~ in == ->")
_CLOSERS = words(") ] } rbrace rangle rfloor rceil | || end")
_POSTFIX_CONST = {"inf": ("const", "inf"), "pi": ("const", "pi"), "empty": ("const", "empty")}


# short words that are no product of variables
_ENGLISH = words(
    "so it we he she the you has was are not its for get all any can our yes no odd one two "
    "six ten is if of on my due per who how why dna usd eur"
)


class Parser:
    """One pass over the tokens of one answer. Raises Unreadable for what the grammar does not
    know.
    """

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens
        self.pos = 0
        self.depth = 0
        self.bars = 0  # open |...|
        self.braces = 0  # open \\{...\\}, in which a colon starts a condition

    # ---- tokens

    @property
    def value(self) -> str:
        return self.tokens[self.pos].value

    @property
    def kind(self) -> str:
        return self.tokens[self.pos].kind

    def is_op(self, *values: str) -> bool:
        token = self.tokens[self.pos]
        return token.kind == "op" and token.value in values

    def take(self) -> Token:
        token = self.tokens[self.pos]
        if token.kind != "end":
            self.pos += 1
        return token

    def accept(self, *values: str) -> bool:
        if self.is_op(*values):
            self.pos += 1
            return True
        return False

    def expect(self, *values: str) -> str:
        if not self.is_op(*values):
            raise Unreadable(f"expected {' or '.join(values)}")
        return self.take().value

    def peek(self, offset: int) -> Token:
        return self.tokens[min(self.pos + offset, len(self.tokens) - 1)]

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("the answer is nested too deeply")

    # ---- answers

    def parse(self) -> Node:
        """The whole answer; every token must be used."""
        node = self.items(top=True)
        self.accept(".")
        if self.kind != "end":
            raise Unreadable(f"{self.value!r} is not understood here")
        return node

    def items(self, *, top: bool = False) -> Node:
        """Relations separated by commas, semicolons, `and`, `or`; one alone is returned bare."""
        self.enter()
        found: list[Node] = []
        separators: list[str] = []
        while True:
            found.append(self.relation())
            separator = ""
            while self.is_op(",", ";", "and", "or") or (top and self.is_op("\\\\", "iff", "&")):
                separator = (
                    self.take().value if separator in ("", ",") else (self.take() and separator)
                )
            if not separator:
                break
            if self.kind == "end" or self.is_op("."):
                if separator in (",", ";"):
                    break  # a final comma
                raise Unreadable("nothing after a separator")
            separators.append(separator)
        self.depth -= 1
        if len(found) == 1:
            return found[0]
        return ("list", tuple(found), tuple(separators))

    def relation(self) -> Node:
        ops: list[str] = []
        while self.is_op("=", "~"):  # a leading "=" or "\approx"
            self.take()
        sides = [self.side()]
        while self.is_op(*RELATIONS):
            ops.append(self.take().value)
            while self.is_op("="):
                self.take()
            sides.append(self.side())
        node = sides[0] if not ops else ("rel", tuple(ops), tuple(sides))
        modulus = self.modulus()
        return ("mod", node, modulus) if modulus else node

    def modulus(self) -> Node | None:
        if self.is_op("("):
            if not (self.peek(1).kind == "op" and self.peek(1).value == "mod"):
                return None
            self.pos += 2
            node = self.sum()
            self.expect(")")
            return node
        if self.accept("mod"):
            return self.sum()
        if self.kind == "cmd" and self.value in ("pmod", "mod", "bmod"):
            grouped = self.take().value == "pmod"
            return self.tex_argument(whole=True) if grouped else self.factor()
        return None

    def side(self) -> Node:
        node = self.quantity()
        if self.is_op(":") and not self.braces:
            terms = [node]
            while self.accept(":"):
                terms.append(self.quantity())
            return ("ratio", tuple(terms))
        while self.is_op("cup", "cap", "setminus"):
            op = self.take().value
            other = self.quantity()
            if op == "cup":
                head = node[1] if node[0] == "cup" else (node,)
                node = ("cup", (*head, other))
            else:
                node = ("cap" if op == "cap" else "minus", node, other)
        return node

    def quantity(self) -> Node:
        """A sum with an optional currency sign before it or unit phrase after it, or several
        added.
        """
        node = self.single_quantity()
        while node[0] == "unit" and (
            self.kind == "num" or (self.is_op("and") and self.peek(1).kind == "num")
        ):
            save = self.pos
            self.accept("and")
            other = self.single_quantity()
            if (
                other[0] != "unit"
                or other[2].dims != node[2].dims
                or other[2].factor >= node[2].factor
            ):
                self.pos = save
                break
            scaled = ("mul", (other[1], ("num", other[2].factor / node[2].factor)))
            node = ("unit", ("add", (node[1], scaled)), node[2])
        return node

    def single_quantity(self) -> Node:
        unit = self.currency_prefix()
        sign = False
        if unit is None and self.is_op("-") and self.peek(1).value in CURRENCY_SIGNS:
            self.take()
            sign, unit = True, self.currency_prefix()
        node = self.sum()
        if sign:
            node = ("neg", node)
        trailing = self.unit_phrase()
        if trailing is not None:
            scale, phrase = trailing
            if scale != 1:
                node = ("mul", (node, ("num", Fraction(scale))))
            unit = join_units(unit, phrase)
        return (
            node if unit is None or (not unit.dims and unit.factor == 1) else ("unit", node, unit)
        )

    def currency_prefix(self) -> Unit | None:
        token = self.tokens[self.pos]
        if token.kind == "op" and token.value in CURRENCY_SIGNS:
            self.take()
            return currency(token.value)
        if token.kind == "word" and token.value in ("USD", "EUR", "GBP", "US", "Rs", "INR"):
            if token.value == "US" and self.peek(1).value == "$":
                self.pos += 2
                return currency("$")
            if self.peek(1).kind == "num" or (
                self.peek(1).value == "." and self.peek(2).kind == "num"
            ):
                self.pos += 1 if self.peek(1).kind == "num" else 2
                return currency(
                    {"USD": "$", "EUR": "\u20ac", "GBP": "\u00a3"}.get(token.value, "\u20b9")
                )
        return None

    def unit_phrase(self) -> tuple[int, Unit] | None:
        token = self.tokens[self.pos]
        if token.kind == "op" and token.value in CURRENCY_SIGNS:
            self.take()
            return 1, currency(token.value)
        bracket = token.value == "(" and token.kind == "op" and self.peek(1).kind == "word"
        if (
            token.kind != "word"
            and not bracket
            and not (token.value == "/" and self.peek(1).kind == "word")
        ):
            return None
        reader = PhraseReader(self.tokens, self.pos + (1 if bracket else 0))
        unit = reader.read()
        if unit is None:
            return None
        if bracket:
            if self.tokens[reader.pos].value != ")":
                return None
            reader.pos += 1
        self.pos = reader.pos
        return reader.scale, unit

    # ---- arithmetic

    def sum(self) -> Node:
        self.enter()
        node = self.signed_term()
        terms: list[Node] = [node]
        while self.is_op("+", "-", "+-", "-+"):
            op = self.take().value
            right = self.signed_term()
            if op in ("+", "-"):
                terms.append(right if op == "+" else ("neg", right))
            else:
                left: Node = terms[0] if len(terms) == 1 else ("add", tuple(terms))
                terms = [("pm" if op == "+-" else "mp", left, right)]
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", tuple(terms))

    def signed_term(self) -> Node:
        sign, plus_minus = 1, ""
        while self.is_op("+", "-", "+-", "-+"):
            op = self.take().value
            if op == "-":
                sign = -sign
            elif op != "+":
                plus_minus = "pm" if op == "+-" else "mp"
        node = self.term()
        if plus_minus:
            return (plus_minus, ("num", Fraction(0)), node)
        return ("neg", node) if sign < 0 else node

    def term(self) -> Node:
        node = self.factor()
        while True:
            if self.is_op("*"):
                self.take()
                node = product(node, self.signed_factor())
            elif self.is_op("/") and self.peek(1).kind != "word":
                self.take()
                node = ("div", node, self.signed_factor())
            elif self.starts_factor():
                if self.kind == "num" and self.tokens[self.pos - 1].kind == "num":
                    raise Unreadable("two numbers side by side")
                node = product(node, self.factor())
            else:
                return node

    def signed_factor(self) -> Node:
        sign = 1
        while self.is_op("+", "-"):
            if self.take().value == "-":
                sign = -sign
        node = self.factor()
        return ("neg", node) if sign < 0 else node

    def starts_factor(self) -> bool:
        token = self.tokens[self.pos]
        if token.kind in ("num", "id", "const", "fn"):
            return True
        if token.kind == "word":
            return not token.in_text and self.is_product_word(token)
        if token.kind == "cmd":
            return token.value not in (
                "pmod",
                "mod",
                "bmod",
                "\\\\",
            ) and not token.value.startswith("end ")
        if token.kind == "op":
            if token.value == "(":
                following = self.peek(1)
                return not (
                    following.value == "mod" or (following.kind == "word" and following.in_text)
                )
            if token.value == "|":
                return self.bars == 0
            return token.value in ("{", "lfloor", "lceil", "[")
        return False

    def is_product_word(self, token: Token) -> bool:
        """Whether a bare run of letters is a product of variables."""
        if len(token.value) > 3 or token.value.lower() in _ENGLISH:
            return False
        after_operand = self.pos > 0 and self.tokens[self.pos - 1].kind in (
            "num",
            "id",
            "word",
            "const",
        )
        if after_operand and is_unit_word(token.value):
            return False
        return not (
            token.spaced
            and after_operand
            and len(token.value) == 3
            and set(token.value.lower()) & set("aeiou")
        )

    def factor(self) -> Node:
        node = self.postfix(self.atom())
        if self.accept("^"):
            node = self.postfix(self.raised(node))
        return node

    def raised(self, base: Node) -> Node:
        self.enter()
        if self.is_op("'") or (self.is_op("{") and self.peek(1).value == "'"):
            grouped = self.accept("{")
            count = 0
            while self.accept("'"):
                count += 1
            if grouped:
                self.expect("}")
            self.depth -= 1
            return primed(base, count)
        sign = False
        while self.is_op("-", "+"):
            sign ^= self.take().value == "-"
        if self.is_op("*"):
            raise Unreadable("a star is not an exponent")
        exponent = self.postfix(self.atom())
        if self.accept("^"):
            exponent = self.raised(exponent)
        self.depth -= 1
        return ("pow", base, ("neg", exponent) if sign else exponent)

    def postfix(self, node: Node) -> Node:
        while True:
            if self.is_op("!"):
                self.take()
                double = self.is_op("!") and not self.tokens[self.pos].spaced
                if double:
                    self.take()
                node = ("fn", "factorial2" if double else "factorial", (node,))
            elif self.is_op("%") or (
                self.kind == "word" and self.value.lower() in ("percent", "pct")
            ):
                self.take()
                node = ("pct", node)
            elif self.is_op("deg") or (self.is_op("^") and self.at_degree()):
                if self.accept("^") and self.accept("{"):
                    self.pos += 2
                else:
                    self.pos += 1
                node = self.degrees(node)
            elif self.is_op("'") and node[0] in ("sym", "call", "deg"):
                count = 0
                while self.accept("'"):
                    count += 1
                node = primed(node, count)
            else:
                return node

    def degrees(self, node: Node) -> Node:
        """An angle; or a temperature, when the scale follows."""
        scale = self.tokens[self.pos]
        if scale.kind in ("word", "id") and scale.value in ("C", "F"):
            self.take()
            return ("unit", node, TEMPERATURES[scale.value])
        return ("deg", node)

    def at_degree(self) -> bool:
        """Whether a power is a degree sign, also written as the letter o."""
        first, second, third = (self.peek(offset).value for offset in (1, 2, 3))
        return first in ("deg", "o") or (first == "{" and second in ("deg", "o") and third == "}")

    # ---- atoms

    def atom(self) -> Node:
        token = self.tokens[self.pos]
        if token.kind == "num":
            return read_numeral(self)
        if token.kind == "id":
            return self.symbol()
        if token.kind == "const":
            self.take()
            return _POSTFIX_CONST[token.value]
        if token.kind == "fn":
            return read_function(self)
        if token.kind == "cmd":
            return read_command(self)
        if token.kind == "word" and self.is_letters(token):
            return self.letters_product()
        if token.kind == "op":
            return self.bracketed(token)
        raise Unreadable(
            f"{token.value!r} is not understood here"
            if token.value
            else "the answer ends too early"
        )

    @staticmethod
    def is_letters(token: Token) -> bool:
        return not token.in_text and len(token.value) <= 3 and token.value.lower() not in _ENGLISH

    def letters_product(self) -> Node:
        """Split a run of letters into variables and read the first; the rest follows as factors."""
        token = self.tokens[self.pos]
        self.tokens[self.pos : self.pos + 1] = [
            Token("id", c, token.spaced and i == 0) for i, c in enumerate(token.value)
        ]
        return self.symbol()

    def symbol(self) -> Node:
        token = self.take()
        name = token.value
        subscripted = False
        if self.is_op("_"):
            self.take()
            name += "_" + self.subscript()
            subscripted = True
        if self.is_op("("):
            direct = not self.tokens[self.pos].spaced or self.tokens[self.pos - 1].value != name
            if name in ("f", "g", "h") and direct:
                return ("call", name, self.arguments())
        if self.is_op("'"):
            count = 0
            while self.accept("'"):
                count += 1
            name += "'" * count
            if self.is_op("("):
                return ("call", name, self.arguments())
        if not subscripted and name in ("e", "i"):
            return ("const", name)
        return ("sym", name)

    def subscript(self) -> str:
        if not self.accept("{"):
            return self.take().value
        parts = []
        while not self.is_op("}"):
            if self.kind == "end":
                raise Unreadable("unbalanced braces")
            parts.append(self.take().value)
        self.take()
        return " ".join(parts)

    def arguments(self) -> tuple[Node, ...]:
        self.expect("(")
        node = self.items()
        self.expect(")")
        return node[1] if node[0] == "list" else (node,)

    def bracketed(self, token: Token) -> Node:
        value = token.value
        if value in ("|", "||"):
            if self.bars:
                raise Unreadable("nested bars")
            self.take()
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            self.expect(value)
            return ("fn", "abs" if value == "|" else "norm", (node,))
        pairs = {
            "(": (")", "]"), "[": ("]", ")"), "{": ("}",), "lbrace": ("rbrace",),
            "langle": ("rangle", ">"),
            "lfloor": ("rfloor",), "lceil": ("rceil",),
        }  # fmt: skip
        if value == "<":
            raise Unreadable("a stray <")
        if value not in pairs:
            raise Unreadable(f"{value!r} is not understood here")
        self.take()
        bars, self.bars = self.bars, 1 if self.has_condition(value) else 0
        self.braces += value in ("lbrace", "{")
        if self.is_op(*pairs[value]):
            self.take()
            self.bars = bars
            self.braces -= value in ("lbrace", "{")
            if value in ("{", "lbrace"):
                return ("const", "empty")
            raise Unreadable("empty brackets")
        node = self.items()
        if value in ("{", "lbrace") and self.is_op("|", ":"):
            self.take()
            self.bars = 0
            node = ("builder", node, self.items())
        close = self.expect(*pairs[value])
        self.bars = bars
        self.braces -= value in ("lbrace", "{")
        return bracket_node(value, close, node)

    def has_condition(self, opening: str) -> bool:
        """Whether a lone bar in these braces starts the condition of a set: {x | x > 2}."""
        if opening not in ("{", "lbrace"):
            return False
        level, bars = 0, 0
        for token in self.tokens[self.pos :]:
            level += (token.value in ("{", "lbrace")) - (token.value in ("}", "rbrace"))
            if level < 0:
                break
            bars += token.value == "|"
        return bars % 2 == 1

    def tex_argument(self, *, whole: bool = False) -> Node:
        """A TeX argument: a braced group, or one digit, letter or command."""
        self.enter()
        token = self.tokens[self.pos]
        if self.is_op("{"):
            self.take()
            bars, self.bars = self.bars, 0
            node = self.items()
            self.bars = bars
            self.expect("}")
            if node[0] == "list":
                raise Unreadable("a list where a number belongs")
        elif (
            token.kind == "num" and not whole and len(token.value) > 1 and token.value[0].isdigit()
        ):
            self.tokens[self.pos : self.pos + 1] = [
                Token("num", c, token.spaced and i == 0)
                for i, c in enumerate(token.value)
                if c.isdigit()
            ]
            if "." in token.value:
                raise Unreadable("a decimal without braces")
            node = literal(self.take().value)
        elif token.kind == "num":
            node = literal(self.take().value)
        elif token.kind == "word" and self.is_letters(token):
            node = self.letters_product()
        elif token.kind == "op" and token.value not in ("(", "|", "lbrace"):
            raise Unreadable("a missing argument")
        else:
            node = self.atom()
        self.depth -= 1
        return node
