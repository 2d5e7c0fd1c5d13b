"""Units of measurement: names to exact factors and dimensions, and the reading of unit phrases."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from .math_lex import Token
from .math_symbols import words

Dims = tuple[tuple[str, int], ...]  # (("length", 1), ("time", -1)), sorted by name


@dataclass(frozen=True)
class Unit:
    """A factor to base units and a dimension; `offset` only for temperatures (K = x * factor +
    offset).
    """

    factor: Fraction
    dims: Dims
    offset: Fraction = Fraction(0)
    pi: bool = False  # the factor is to be multiplied by pi / 180: degrees of angle

    def times(self, other: Unit, power: int = 1) -> Unit:
        """The product of this unit and a power of another one."""
        merged = dict(self.dims)
        for name, exponent in other.dims:
            merged[name] = merged.get(name, 0) + exponent * power
        dims = tuple(sorted((name, e) for name, e in merged.items() if e))
        return Unit(self.factor * other.factor**power, dims, self.offset, self.pi or other.pi)

    def power(self, exponent: int) -> Unit:
        """This unit to an integer power."""
        return Unit(Fraction(1), ()).times(self, exponent)


NO_UNIT = Unit(Fraction(1), ())
DEGREE = Unit(Fraction(1), (("angle", 1),), pi=True)
PERCENT = Unit(Fraction(1, 100), (("percent", 1),))

_INCH = Fraction(254, 10000)
_POUND = Fraction(45359237, 100000000)
_GALLON = Fraction(3785411784, 10**12)
# dimension -> {names: factor}; all factors are exact by definition (SI brochure; NIST SP 811)
_TABLE: dict[str, dict[str, Fraction | int]] = {
    "length": {
        "m meter metre": 1, "cm centimeter centimetre": Fraction(1, 100),
        "mm millimeter millimetre": Fraction(1, 1000), "km kilometer kilometre kms": 1000,
        "dm decimeter decimetre": Fraction(1, 10), "nm nanometer nanometre": Fraction(1, 10**9),
        "micrometer micrometre micron": Fraction(1, 10**6), "inch inche in": _INCH,
        "ft foot feet": 12 * _INCH,
        "yd yard": 36 * _INCH, "mi mile": 63360 * _INCH, "lightyear": 9460730472580800,
    },
    "mass": {
        "kg kilogram kilo kgs": 1, "g gram gm gramme": Fraction(1, 1000),
        "mg milligram": Fraction(1, 10**6),
        "tonne": 1000, "lb pound lbs": _POUND, "oz ounce": _POUND / 16, "ton": 2000 * _POUND,
    },
    "time": {
        "s second sec": 1, "min minute": 60, "h hour hr": 3600, "day": 86400, "week wk": 604800,
        "ms millisecond": Fraction(1, 1000), "fortnight": 1209600,
    },
    "months": {"month mo": 1, "year yr": 12, "decade": 120, "century centurie": 1200},
    "current": {"ampere amp": 1},
    "USD": {"dollar usd buck": 1, "cent penny pennie": Fraction(1, 100), "dime": Fraction(1, 10),
            "quarterdollar": Fraction(1, 4)},
    "EUR": {"euro eur": 1}, "GBP": {"gbp quid": 1, "pence": Fraction(1, 100)},
    "INR": {"inr rupee": 1, "paise": Fraction(1, 100)}, "JPY": {"jpy yen": 1},
    "CNY": {"cny yuan rmb": 1}, "peso": {"peso": 1},
    "angle": {"rad radian": 1, "revolution_angle": 1},
    "temperature": {"kelvin": 1}, "bit": {"bit": 1, "byte": 8, "kilobyte kb": 8000,
    "megabyte mb": 8 * 10**6,
                                        "gigabyte gb": 8 * 10**9},
    "amount": {"mol mole": 1},
    "generic": {"unit un": 1},
}  # fmt: skip
_COMPOUND: dict[str, tuple[Fraction | int, Dims]] = {
    "l liter litre": (Fraction(1, 1000), (("length", 3),)),
    "ml milliliter millilitre cc": (Fraction(1, 10**6), (("length", 3),)),
    "cl centiliter centilitre": (Fraction(1, 10**5), (("length", 3),)),
    "dl deciliter": (Fraction(1, 10**4), (("length", 3),)),
    "gal gallon": (_GALLON, (("length", 3),)),
    "qt quart": (_GALLON / 4, (("length", 3),)),
    "pt pint": (_GALLON / 8, (("length", 3),)),
    "cup": (_GALLON / 16, (("length", 3),)),
    "tablespoon tbsp": (_GALLON / 256, (("length", 3),)),
    "teaspoon tsp": (_GALLON / 768, (("length", 3),)),
    "acre": (43560 * 144 * _INCH**2, (("length", 2),)),
    "hectare ha": (10000, (("length", 2),)),
    "mph": (63360 * _INCH / 3600, (("length", 1), ("time", -1))),
    "kph kmh kmph": (Fraction(1000, 3600), (("length", 1), ("time", -1))),
    "mps": (1, (("length", 1), ("time", -1))),
    "knot": (Fraction(1852, 3600), (("length", 1), ("time", -1))),
    "mpg": (63360 * _INCH / _GALLON, (("length", -2),)),
    "hz hertz": (1, (("time", -1),)),
    "newton": (1, (("length", 1), ("mass", 1), ("time", -2))),
    "joule": (1, (("length", 2), ("mass", 1), ("time", -2))),
    "kj kilojoule": (1000, (("length", 2), ("mass", 1), ("time", -2))),
    "kwh": (3600000, (("length", 2), ("mass", 1), ("time", -2))),
    "watt": (1, (("length", 2), ("mass", 1), ("time", -3))),
    "kw kilowatt": (1000, (("length", 2), ("mass", 1), ("time", -3))),
    "pascal pa": (1, (("length", -1), ("mass", 1), ("time", -2))),
    "kpa kilopascal": (1000, (("length", -1), ("mass", 1), ("time", -2))),
    "volt": (1, (("current", -1), ("length", 2), ("mass", 1), ("time", -3))),
    "ohm": (1, (("current", -2), ("length", 2), ("mass", 1), ("time", -3))),
    "coulomb": (1, (("current", 1), ("time", 1))),
}
_LETTERS = {  # single capital letters, only in text or where unit letters are asked for
    "N": "newton", "J": "joule", "W": "watt", "V": "volt", "A": "ampere", "K": "kelvin", "L": "l",
    "C": "coulomb",
}  # fmt: skip
_CURRENCY = {"$": "USD", "\u20ac": "EUR", "\u00a3": "GBP", "\u20b9": "INR", "\u00a5": "JPY"}
_SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "lakh": 10**5, "crore": 10**7, "dozen": 12, "mln": 10**6, "bn": 10**9,
}  # fmt: skip
# words that turn a number into something else, or that are no noun
_NOT_UNITS = words(
    "or and not no maybe perhaps possibly either neither nor if but is are was were be equals "
    "equal plus minus times over divided by less more than least most about approximately "
    "roughly around between from to wrong incorrect unless else other both none any all some "
    "answer answers option choice depends unknown because since so hence thus therefore guess "
    "probably likely could might may would should cannot can't what which half third quarter "
    "negative positive cubed squared factorial root power choose mod modulo such that where "
    "when for with without except otherwise instead until too also then wait hmm actually "
    "correct true false yes base only exactly even odd prime zero one two three four five six "
    "seven eight nine ten i we my"
)
_FUNCTION_WORDS = words(
    "the a an of in on at total different distinct each left remaining altogether together"
)
_AFTER_UNITS = words("old long tall wide high deep thick apart away left remaining altogether")


def _build() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for dimension, names in _TABLE.items():
        for aliases, factor in names.items():
            for alias in aliases.split():
                units[alias] = Unit(Fraction(factor), ((dimension, 1),))
    for aliases, (factor, dims) in _COMPOUND.items():
        for alias in aliases.split():
            units[alias] = Unit(Fraction(factor), tuple(sorted(dims)))
    for alias in ("degree", "deg"):
        units[alias] = DEGREE
    for alias in ("celsius", "centigrade", "degc"):
        units[alias] = Unit(Fraction(1), (("temperature", 1),), Fraction(27315, 100))
    for alias in ("fahrenheit", "degf"):
        units[alias] = Unit(Fraction(5, 9), (("temperature", 1),), Fraction(45967, 180))
    units["percent"] = PERCENT
    units["pct"] = PERCENT
    return units


NAMED_UNITS = _build()
_PLURALS = {"feet": "foot", "inches": "inch", "men": "man", "women": "woman", "children": "child",
    "people": "person",
            "mice": "mouse", "geese": "goose", "teeth": "tooth", "pence": "pence", "dice": "die",
            "vertices": "vertex",
            "persons": "person"}  # fmt: skip


def singular(word: str) -> str:
    """A word in lower case without its plural ending."""
    word = word.lower()
    if word in _PLURALS:
        return _PLURALS[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "xes", "ches", "shes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def lookup(word: str) -> Unit | None:
    """The unit that a word names, in any number and common spelling."""
    if word in _LETTERS:
        return NAMED_UNITS[_LETTERS[word]]
    lower = word.lower()
    if len(word) == 1 and word not in ("m", "g", "s", "h", "l"):
        return None
    return NAMED_UNITS.get(lower) or (NAMED_UNITS.get(singular(lower)) if len(lower) > 3 else None)


def is_unit_word(word: str) -> bool:
    """Whether a bare word of mathematics is read as a unit and not as a product of variables."""
    return lookup(word) is not None or word.lower() in _SCALES


def currency(symbol: str) -> Unit:
    """The unit of a currency sign."""
    return Unit(Fraction(1), ((_CURRENCY[symbol], 1),))


CURRENCY_SIGNS = frozenset(_CURRENCY)
TEMPERATURES = {"C": NAMED_UNITS["celsius"], "F": NAMED_UNITS["fahrenheit"]}


class PhraseReader:
    """Reads a unit phrase from tokens: `square feet`, `km/h`, `cm^2`, `dollars per hour`, `right
    triangles`.
    """

    def __init__(self, tokens: list[Token], pos: int):
        self.tokens = tokens
        self.pos = pos
        self.scale = 1

    def read(self) -> Unit | None:
        """The unit, with `pos` moved behind it; None (and `pos` unmoved) when there is none."""
        start = self.pos
        while self.word() in _SCALES:
            self.scale *= _SCALES[self.word()]
            self.pos += 1
        unit = self.product()
        if unit is not None and self.word() in _AFTER_UNITS:
            self.pos += 1  # 20 years old, 3 feet deep
        if unit is None and self.scale == 1:
            self.pos = start
        return unit if unit is not None else (NO_UNIT if self.scale != 1 else None)

    def word(self) -> str:
        token = self.tokens[self.pos]
        return token.value.lower() if token.kind == "word" else ""

    def product(self) -> Unit | None:
        rate = self.word() in ("per", "a", "an", "each") or self.tokens[self.pos].value == "/"
        if rate and lookup(self.tokens[self.pos + 1].value) is not None:
            unit: Unit | None = NO_UNIT
        else:
            unit = self.factor()
        if unit is None:
            return None
        while True:
            save = self.pos
            sign = self.connector()
            if sign == 0:
                following = self.factor() if self.word() and self.known() else None
                sign = 1
            else:
                following = self.factor()
            if following is None:
                self.pos = save
                return unit
            unit = unit.times(following, sign)

    def known(self) -> bool:
        word = self.tokens[self.pos].value
        return lookup(word) is not None or word.lower() in ("square", "cubic", "sq", "cu")

    def connector(self) -> int:
        token = self.tokens[self.pos]
        value = token.value
        if value == "/" or (
            token.kind == "word" and value.lower() in ("per", "an", "a", "each", "p")
        ):
            if (
                value.lower() in ("a", "an", "each", "p")
                and lookup(self.tokens[self.pos + 1].value) is None
            ):
                return 0
            self.pos += 1
            return -1
        if value in ("*", "-") and self.tokens[self.pos + 1].kind == "word":
            self.pos += 1
            return 1
        return 0

    def factor(self) -> Unit | None:
        power = 1
        if self.word() in ("square", "sq", "cubic", "cu"):
            after = self.tokens[self.pos + 1]
            dot = after.value == "."
            if dot:
                after = self.tokens[self.pos + 2]
            if after.kind == "word" and lookup(after.value):
                power = 2 if self.word().startswith("sq") else 3
                self.pos += 2 if dot else 1
        token = self.tokens[self.pos]
        if token.kind != "word" or token.value.lower() in _NOT_UNITS:
            return None
        unit = lookup(token.value)
        if unit is None:
            return self.noun() if power == 1 else None
        self.pos += 1
        if self.tokens[self.pos].value == "." and self.tokens[self.pos + 1].kind != "num":
            self.pos += 1
        unit = self.temperature(unit)
        return unit.power(power * self.exponent()) if unit is not DEGREE else unit

    def temperature(self, unit: Unit) -> Unit:
        if unit is DEGREE and self.word() in ("c", "f", "celsius", "fahrenheit", "centigrade"):
            name = "celsius" if self.word()[0] == "c" else "fahrenheit"
            self.pos += 1
            return NAMED_UNITS[name]
        return unit

    def exponent(self) -> int:
        if self.word() in ("squared", "cubed"):
            self.pos += 1
            return 2 if self.tokens[self.pos - 1].value.lower() == "squared" else 3
        values = [t.value for t in self.tokens[self.pos : self.pos + 5]]
        for pattern in (("^", "{", "-", 0, "}"), ("^", "{", 0, "}"), ("^", "-", 0), ("^", 0)):
            if len(values) < len(pattern):
                continue
            if all(
                p == v if p else v.isdigit() and len(v) == 1
                for p, v in zip(pattern, values, strict=False)
            ):
                self.pos += len(pattern)
                digit = int(values[pattern.index(0)])
                return -digit if "-" in pattern else digit
        return 1

    def noun(self) -> Unit | None:
        words = []
        while self.tokens[self.pos].kind == "word" and len(words) < 5:
            token = self.tokens[self.pos]
            lower = token.value.lower()
            if lower in _NOT_UNITS or (lower == "per" and words):
                break
            if len(lower) < 2 and lower != "a":
                break
            if not token.in_text and len(lower) < 3:
                break
            words.append(lower)
            self.pos += 1
        key = " ".join(singular(w) for w in words if w not in _FUNCTION_WORDS)
        if not key or not re.fullmatch(r"[a-z' -]+", key):
            self.pos -= len(words)
            return None
        return Unit(Fraction(1), ((f"noun:{key}", 1),))
