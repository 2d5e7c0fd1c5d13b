"""The value of an expression tree: exact fractions where possible, else numbers at a chosen
precision.

Nothing is evaluated before its cost is bounded: sizes of powers and factorials, ranges of sums,
the number of steps, and a deadline. Precision lives in a context per thread, so threads do not
disturb each other. Equality of inexact values is relative, at two precisions, never by an
absolute tolerance.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import comb, factorial, gcd, isqrt, lcm
from typing import Any

from mpmath.ctx_mp import MPContext

from .math_nodes import Node
from .math_symbols import words

MAX_BITS = 120_000  # of an exact integer: 2006! has 19,000
MAX_MAGNITUDE = 2**40  # of the binary exponent of an inexact number
MAX_STEPS = 60_000  # nodes visited for one verdict
MAX_TERMS = 3000  # of a finite sum evaluated term by term
LOW, HIGH = 128, 512  # bits of precision of the two passes
NATURAL = "\\natural log"  # present in an environment where log without a base is ln

Env = Mapping[str, Any]


class Inexact(Exception):
    """The value is not a rational number that can be written out."""


class NoValue(ValueError):
    """The expression has no value here: undefined, not numeric, or too costly."""


class TooCostly(NoValue):
    """Evaluation was refused or stopped by a cost bound."""


class Budget:
    """Steps and time that are left for one verdict."""

    def __init__(self, timeout_s: float = 2.0):
        self.deadline = time.monotonic() + timeout_s
        self.steps = MAX_STEPS

    def spend(self, steps: int = 1) -> None:
        """Count work; TooCostly when nothing is left."""
        self.steps -= steps
        if self.steps < 0 or (self.steps % 16 == 0 and time.monotonic() > self.deadline):
            raise TooCostly("timeout")


_local = threading.local()


def context(bits: int) -> Any:
    """This thread's mpmath context, set to `bits` of precision."""
    mp = getattr(_local, "mp", None)
    if mp is None:
        mp = _local.mp = MPContext()
    mp.prec = bits
    return mp


# ---- exact


def exact(node: Node, env: Env, budget: Budget) -> Fraction:
    """The rational value of a tree; Inexact when it has none, NoValue when it is undefined."""
    budget.spend()
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind == "sym":
        value = env.get(node[1])
        if isinstance(value, Fraction):
            return value
        raise Inexact
    handler = _EXACT.get(kind)
    if handler is None:
        raise Inexact
    value = handler(node, env, budget)
    if value.denominator.bit_length() + value.numerator.bit_length() > 2 * MAX_BITS:
        raise Inexact
    return value


def _exact_add(node: Node, env: Env, budget: Budget) -> Fraction:
    return sum((exact(item, env, budget) for item in node[1]), Fraction(0))


def _exact_mul(node: Node, env: Env, budget: Budget) -> Fraction:
    total = Fraction(1)
    for item in node[1]:
        total *= exact(item, env, budget)
        if total.numerator.bit_length() > MAX_BITS:
            raise Inexact
    return total


def _exact_div(node: Node, env: Env, budget: Budget) -> Fraction:
    top, bottom = exact(node[1], env, budget), exact(node[2], env, budget)
    if bottom == 0:
        raise NoValue("division by zero")
    return top / bottom


def _exact_pow(node: Node, env: Env, budget: Budget) -> Fraction:
    base, exponent = exact(node[1], env, budget), exact(node[2], env, budget)
    if exponent.denominator != 1:
        if abs(exponent.numerator) > 1000 or exponent.denominator > 1000:
            raise Inexact
        return _power(_exact_root(base, exponent.denominator), exponent.numerator)
    return _power(base, exponent.numerator)


def _power(base: Fraction, exponent: int) -> Fraction:
    if base in (0, 1, -1):
        if base == 0 and exponent <= 0:
            if exponent == 0:
                return Fraction(1)
            raise NoValue("division by zero")
        return base if exponent % 2 or base >= 0 else -base
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > MAX_BITS:
        raise Inexact
    return base**exponent


def _exact_root(value: Fraction, degree: int) -> Fraction:
    negative = value < 0
    if degree < 1 or (negative and degree % 2 == 0):
        raise Inexact
    top = _integer_root(abs(value.numerator), degree)
    bottom = _integer_root(value.denominator, degree)
    if top is None or bottom is None:
        raise Inexact
    return Fraction(-top if negative else top, bottom)


def _integer_root(value: int, degree: int) -> int | None:
    if value.bit_length() > 8192:
        return None
    if degree == 2:
        root = isqrt(value)
    else:
        low, high = 0, 1 << (value.bit_length() // degree + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
        root = low
    return root if root**degree == value else None


def _exact_fn(node: Node, env: Env, budget: Budget) -> Fraction:
    function = _EXACT_FUNCTIONS.get(node[1])
    if function is None:
        raise Inexact
    return function(*(exact(argument, env, budget) for argument in node[2]))


def _whole(value: Fraction, limit: int) -> int:
    if value.denominator != 1 or not 0 <= value <= limit:
        raise Inexact
    return value.numerator


def _root(value: Fraction, degree: Fraction) -> Fraction:
    return _exact_root(value, _whole(degree, 1000))


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    return Fraction(comb(_whole(n, 4000), _whole(k, 4000)))


def _factorial2(n: Fraction) -> Fraction:
    total, n_ = 1, _whole(n, 4000)
    for factor in range(n_, 0, -2):
        total *= factor
    return Fraction(total)


def _integers(values: tuple[Fraction, ...]) -> list[int]:
    if any(v.denominator != 1 for v in values):
        raise Inexact
    return [v.numerator for v in values]


_EXACT_FUNCTIONS: dict[str, Callable[..., Fraction]] = {
    "root": _root,
    "abs": lambda x: abs(x),
    "floor": lambda x: Fraction(x.numerator // x.denominator),
    "ceil": lambda x: Fraction(-(-x.numerator // x.denominator)),
    "factorial": lambda n: Fraction(factorial(_whole(n, 8000))),
    "factorial2": _factorial2,
    "binomial": _binomial,
    "gcd": lambda *values: Fraction(gcd(*_integers(values))),
    "lcm": lambda *values: Fraction(lcm(*_integers(values))),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "sign": lambda x: Fraction((x > 0) - (x < 0)),
    "conjugate": lambda x: x,
}
_EXACT: dict[str, Callable[[Node, Env, Budget], Fraction]] = {
    "add": _exact_add,
    "mul": _exact_mul,
    "div": _exact_div,
    "pow": _exact_pow,
    "neg": lambda node, env, budget: -exact(node[1], env, budget),
    "pct": lambda node, env, budget: exact(node[1], env, budget) / 100,
    "fn": _exact_fn,
    "base": lambda node, env, budget: Fraction(based_value(node[1], node[2])),
}


def based_value(digits: str, base: int) -> Fraction:
    """The value of digits in a base, also with a point; NoValue for a digit beyond the base."""
    whole, _, part = digits.upper().partition(".")
    total = Fraction(0)
    for place, char in enumerate(whole + part):
        digit = int(char, 36) if char.isalnum() else 99
        if digit >= base:
            raise NoValue(f"{char} is no digit in base {base}")
        total = (
            total * base + digit
            if place < len(whole)
            else total + Fraction(digit, base ** (place + 1 - len(whole)))
        )
    return total


# ---- numeric


def numeric(node: Node, env: Env, mp: Any, budget: Budget) -> Any:
    """The value of a tree as an mpmath number in the context `mp`."""
    budget.spend(1 + mp.prec // 256)
    kind = node[0]
    if kind == "num":
        return _to_mp(node[1], mp)
    if kind == "sym":
        value = env.get(node[1])
        if value is None:
            raise NoValue(f"{node[1]} has no value")
        return _to_mp(value, mp) if isinstance(value, Fraction) else value
    handler = _NUMERIC.get(kind)
    if handler is None:
        raise NoValue(f"{kind} is not a number")
    try:
        value = handler(node, env, mp, budget)
    except (ZeroDivisionError, OverflowError, ArithmeticError) as error:
        raise NoValue(str(error)) from None
    except ValueError as error:
        if isinstance(error, NoValue):
            raise
        raise NoValue(str(error)) from None
    return value


def _to_mp(value: Fraction, mp: Any) -> Any:
    if value.denominator == 1:
        return mp.mpf(value.numerator)
    return mp.mpf(value.numerator) / value.denominator


def magnitude(value: Any, mp: Any) -> int:
    """The binary exponent of a number; 0 for zero."""
    if not value:
        return 0
    size = mp.mag(value)
    if isinstance(size, int):
        return size
    raise NoValue("infinite or undefined")


def _constant(node: Node, env: Env, mp: Any, budget: Budget) -> Any:
    return {
        "pi": lambda: +mp.pi,
        "e": lambda: +mp.e,
        "i": lambda: mp.mpc(0, 1),
        "inf": lambda: mp.inf,
    }.get(node[1], _no_constant)()


def _no_constant() -> Any:
    raise NoValue("not a number")


def _numeric_pow(node: Node, env: Env, mp: Any, budget: Budget) -> Any:
    base = numeric(node[1], env, mp, budget)
    try:
        exponent: Any = exact(node[2], env, budget)
    except (Inexact, NoValue):
        exponent = None
    if exponent is not None and exponent.denominator == 1:
        power = exponent.numerator
        if abs(power) * max(1, abs(magnitude(base, mp))) > MAX_MAGNITUDE:
            raise TooCostly("a power is too large")
        return base**power
    if (
        exponent is not None
        and exponent.denominator % 2
        and exponent.denominator < 1000
        and _is_negative(base, mp)
    ):
        root = mp.exp(
            mp.log(-base) * _to_mp(abs(exponent), mp)
        )  # the real odd root, as in \sqrt[3]{-8}
        root = -root if exponent.numerator % 2 else root
        return root if exponent > 0 else 1 / root
    power = _to_mp(exponent, mp) if exponent is not None else numeric(node[2], env, mp, budget)
    if not base:
        if mp.re(power) > 0:
            return mp.mpf(0)
        raise NoValue("zero to a power")
    if (
        magnitude(power, mp) > 34
        or magnitude(power, mp) + abs(magnitude(base, mp)).bit_length() > 40
    ):
        raise TooCostly("a power is too large")
    return mp.exp(power * mp.log(base))


def _is_negative(value: Any, mp: Any) -> bool:
    return mp.im(value) == 0 and mp.re(value) < 0


def _bounded(value: Any, mp: Any, bits: int = 40) -> Any:
    if magnitude(value, mp) > bits:
        raise TooCostly("an argument is too large")
    return value


def _numeric_root(mp: Any, value: Any, degree: Any) -> Any:
    if degree == 2:
        return mp.sqrt(value)
    if mp.im(degree) != 0 or degree != mp.floor(degree) or not 1 <= degree <= 10000:
        return mp.exp(mp.log(value) / degree)
    if _is_negative(value, mp) and int(degree) % 2:
        return -mp.root(-value, int(degree))
    return mp.root(value, int(degree))


def _numeric_fn(node: Node, env: Env, mp: Any, budget: Budget) -> Any:
    name = node[1]
    if name == "det":
        return _determinant(node[2][0], env, mp, budget)
    arguments = [numeric(argument, env, mp, budget) for argument in node[2]]
    if name == "log":
        base = arguments[1] if len(arguments) == 2 else (mp.e if NATURAL in env else mp.mpf(10))
        return mp.log(arguments[0]) / mp.log(base)
    function = _NUMERIC_FUNCTIONS.get(name)
    if function is None:
        raise NoValue(f"{name} is not a numeric function")
    return function(mp, *arguments)


def _determinant(node: Node, env: Env, mp: Any, budget: Budget) -> Any:
    rows = node[1]
    if len(rows) > 6 or any(len(row) != len(rows) for row in rows):
        raise NoValue("a determinant of no square matrix")
    return mp.det(mp.matrix([[numeric(cell, env, mp, budget) for cell in row] for row in rows]))


def _trig(name: str) -> Callable[..., Any]:
    return lambda mp, x: getattr(mp, name)(_bounded(x, mp))


def _real(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(mp: Any, *values: Any) -> Any:
        if any(mp.im(v) != 0 for v in values):
            raise NoValue("not real")
        return function(mp, *(mp.re(v) for v in values))

    return apply


def _gamma_factorial(mp: Any, n: Any) -> Any:
    return mp.factorial(_bounded(n, mp, 34))


_NUMERIC_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: _trig(name) for name in words("sin cos tan cot sec csc sinh cosh tanh coth sech csch")
    },
    **{name: _trig(name) for name in words("asin acos atan acot asec acsc asinh acosh atanh erf")},
    "ln": lambda mp, x: mp.log(x),
    "root": _numeric_root,
    "abs": lambda mp, x: abs(x),
    "norm": lambda mp, x: abs(x),
    "arg": lambda mp, x: mp.arg(x),
    "Re": lambda mp, x: mp.re(x),
    "Im": lambda mp, x: mp.im(x),
    "conjugate": lambda mp, x: mp.conj(x),
    "sign": _real(lambda mp, x: mp.sign(x)),
    "floor": _real(lambda mp, x: mp.floor(_bounded(x, mp, mp.prec - 20))),
    "ceil": _real(lambda mp, x: mp.ceil(_bounded(x, mp, mp.prec - 20))),
    "max": _real(lambda mp, *values: max(values)),
    "min": _real(lambda mp, *values: min(values)),
    "factorial": _gamma_factorial,
    "factorial2": lambda mp, n: mp.fac2(_bounded(n, mp, 20)),
    "binomial": lambda mp, n, k: mp.binomial(_bounded(n, mp, 30), _bounded(k, mp, 30)),
}


def _numeric_sum(node: Node, env: Env, mp: Any, budget: Budget) -> Any:
    """A finite sum or product, term by term. The others are for the workers."""
    _, kind, index, lower, upper, body = node
    if kind not in ("sum", "prod") or index is None:
        raise NoValue("an operator that is not evaluated here")
    try:
        first, last = exact(lower, env, budget), exact(upper, env, budget)
    except Inexact:
        raise NoValue("bounds that are no numbers") from None
    if first.denominator != 1 or last.denominator != 1 or last - first > MAX_TERMS:
        raise TooCostly("a sum of too many terms")
    total = mp.mpf(0 if kind == "sum" else 1)
    for k in range(first.numerator, last.numerator + 1):
        term = numeric(body, {**env, index[1]: Fraction(k)}, mp, budget)
        total = total + term if kind == "sum" else total * term
    return total


def _numeric_call(node: Node, env: Env, mp: Any, budget: Budget) -> Any:
    """An unknown function: a smooth function of its arguments, drawn by its name."""
    total = mp.mpf(env.get("\\call " + node[1], Fraction(1237, 1000)).numerator) / 1000
    weight = sum(map(ord, node[1])) % 97 + 3
    for place, argument in enumerate(node[2]):
        total += numeric(argument, env, mp, budget) * (weight + 7 * place) / 41
    return mp.cos(_bounded(total, mp)) + mp.mpf(weight) / 7


def _numeric_mul(node: Node, env: Env, mp: Any, budget: Budget) -> Any:
    total = mp.mpf(1)
    for item in node[1]:
        total = total * numeric(item, env, mp, budget)
    return total


_NUMERIC: dict[str, Callable[[Node, Env, Any, Budget], Any]] = {
    "const": _constant,
    "add": lambda n, env, mp, b: mp.fsum([numeric(item, env, mp, b) for item in n[1]]),
    "mul": _numeric_mul,
    "div": lambda n, env, mp, b: numeric(n[1], env, mp, b) / numeric(n[2], env, mp, b),
    "neg": lambda n, env, mp, b: -numeric(n[1], env, mp, b),
    "pct": lambda n, env, mp, b: numeric(n[1], env, mp, b) / 100,
    "deg": lambda n, env, mp, b: numeric(n[1], env, mp, b) * mp.pi / 180,
    "pow": _numeric_pow,
    "fn": _numeric_fn,
    "call": _numeric_call,
    "big": _numeric_sum,
    "base": lambda n, env, mp, b: _to_mp(based_value(n[1], n[2]), mp),
}
