"""Whether two expression trees have the same value: exactly, then at random points at two
precisions.
"""

from __future__ import annotations

import random
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .math_eval import (
    HIGH,
    LOW,
    NATURAL,
    Budget,
    Inexact,
    NoValue,
    TooCostly,
    context,
    exact,
    magnitude,
    numeric,
)
from .math_nodes import Node
from .math_symbols import words

POINTS = 9
ENOUGH = 3  # points with a value on both sides that an identity needs
_RANGES = (
    (0.3, 0.9),
    (1.1, 2.9),
    (-0.9, -0.2),
    (3, 9),
    (-3, -1.1),
    (12, 40),
    (0.3, 2),
    (-30, -7),
    (50, 200),
)
_INTEGER_NAMES = frozenset("nmkNKMjlpq")


@lru_cache(maxsize=4096)
def variables(node: Node) -> frozenset[str]:
    """The names of the free variables of a tree."""
    if node[0] == "sym":
        return frozenset([node[1]])
    names: frozenset[str] = frozenset()
    for part in node[1:]:
        names |= _variables_in(part)
    if node[0] == "big" and node[2] is not None and node[2][0] == "sym" and node[1] != "derivative":
        names -= {node[2][1]}
    return names


def _variables_in(part: Any) -> frozenset[str]:
    if not isinstance(part, tuple) or not part:
        return frozenset()
    if isinstance(part[0], str) and part[0] not in ("<", "(", "["):
        return variables(part) if len(part) > 1 else frozenset()
    names: frozenset[str] = frozenset()
    for item in part:
        names |= _variables_in(item)
    return names


def contains(node: Any, kinds: frozenset[str]) -> bool:
    """Whether a tree holds a node of one of these kinds or function names."""
    if not isinstance(node, tuple) or not node:
        return False
    if isinstance(node[0], str) and (
        node[0] in kinds or (node[0] in ("fn", "const") and node[1] in kinds)
    ):
        return True
    return any(contains(part, kinds) for part in node)


_INTEGER_ONLY = words("factorial factorial2 binomial gcd lcm floor ceil")


def points(names: frozenset[str], *, integers: bool = False) -> list[dict[str, Any]]:
    """Deterministic random rational points for these variables, of both signs and several sizes."""
    found: list[dict[str, Any]] = []
    for place, (low, high) in enumerate(_RANGES[:POINTS]):
        env: dict[str, Any] = {"\\call f": Fraction(1237 + place)}
        for name in sorted(names):
            draw = random.Random(f"{name}/{place}")
            if integers and name in _INTEGER_NAMES:
                env[name] = Fraction(draw.randint(1, 4 + 2 * place))
            else:
                env[name] = Fraction(draw.randint(int(low * 997), int(high * 997)), 997)
        found.append(env)
    return found


def same_value(left: Node, right: Node, budget: Budget) -> bool:
    """Whether two trees agree as numbers, or as functions of their variables.

    A logarithm without a base is to base 10 on both sides or to base e on both sides.
    """
    if left == right:
        return True
    names = variables(left) | variables(right)
    integers = contains((left, right), _INTEGER_ONLY) or _alternates(left) or _alternates(right)
    envs = points(names, integers=integers) if names else [{}]
    if _agree(left, right, envs, budget):
        return True
    if contains((left, right), _LOG) and _agree(
        left, right, [{**env, NATURAL: True} for env in envs], budget
    ):
        return True
    return bool(names) and _same_logarithms(left, right, envs, budget)


_LOG, _LOGARITHMS = frozenset(["log"]), frozenset(["log", "ln"])
_ONE_SIDED = frozenset(["abs", "sign", "i", "root"])  # what tells x from -x, or leaves the reals


def _same_logarithms(left: Node, right: Node, envs: list[dict[str, Any]], budget: Budget) -> bool:
    """Whether laws of real logarithms make two trees equal: compared at positive points only."""
    sides = (left, right)
    if not all(contains(side, _LOGARITHMS) for side in sides) or contains(sides, _ONE_SIDED):
        return False
    positive = [env for env in envs if all(value > 0 for value in env.values())]
    return _agree(left, right, positive, budget)


def _agree(left: Node, right: Node, envs: list[dict[str, Any]], budget: Budget) -> bool:
    agreed = 0
    for env in envs:
        verdict = _same_at(left, right, env, budget)
        if verdict is False:
            return False
        agreed += verdict is True
    return agreed >= min(ENOUGH, len(envs))


def _alternates(node: Any) -> bool:
    """Whether a tree holds (-1)^n or trigonometry of a multiple of pi n."""
    if not isinstance(node, tuple) or not node:
        return False
    if node[0] == "pow" and not variables(node[1]) and variables(node[2]):
        return node[1][0] == "neg" or (node[1][0] == "num" and node[1][1] < 0)
    return any(_alternates(part) for part in node)


def _same_at(left: Node, right: Node, env: dict[str, Any], budget: Budget) -> bool | None:
    """Agreement at one point; None where the point says nothing."""
    try:
        return exact(left, env, budget) == exact(right, env, budget)
    except Inexact:
        pass
    except TooCostly:
        raise
    except NoValue:
        return None
    return _close_twice(left, right, env, budget)


def _close_twice(left: Node, right: Node, env: dict[str, Any], budget: Budget) -> bool | None:
    mp = context(LOW)
    try:
        low = numeric(left, env, mp, budget), numeric(right, env, mp, budget)
        if any(map(mp.isinf, low)):
            return bool(low[0] == low[1])
        if any(map(mp.isnan, low)):
            return None
        sizes = _size(low[0], mp), _size(low[1], mp)
        if max(sizes) > -(LOW // 4) and not _near(*low, mp, LOW // 4):
            return _different(*low, mp, LOW // 4)
        mp = context(HIGH)
        high = numeric(left, env, mp, budget), numeric(right, env, mp, budget)
    except TooCostly:
        raise
    except NoValue:
        return None
    if _near(*high, mp, HIGH * 3 // 4):
        return True
    # zeros computed with cancellation shrink with the precision; true tiny numbers do not
    if all(_size(v, mp) < size - (HIGH - LOW) // 2 for v, size in zip(high, sizes, strict=True)):
        return True
    return _different(*high, mp, HIGH // 2)


def _size(value: Any, mp: Any) -> int:
    return magnitude(value, mp) if value else -(10**15)


def _near(a: Any, b: Any, mp: Any, bits: int) -> bool:
    """Whether a and b agree in their first `bits` bits."""
    difference = a - b
    return not difference or magnitude(difference, mp) <= max(_size(a, mp), _size(b, mp)) - bits


def _different(a: Any, b: Any, mp: Any, bits: int) -> bool | None:
    """False; but None for two complex values that differ by a phase only: the branch of a root."""
    if _is_real(a, mp) or _is_real(b, mp):
        return False
    return None if _near(abs(a), abs(b), mp, bits) else False


def _is_real(value: Any, mp: Any) -> bool:
    return mp.im(value) == 0 or magnitude(mp.im(value), mp) < magnitude(value, mp) - mp.prec // 2


def proportional(left: Node, right: Node, budget: Budget, *, positive: bool = False) -> bool:
    """Whether left = c * right for one constant c that is not zero (with `positive`: c > 0)."""
    names = variables(left) | variables(right)
    ratio: Any = None
    agreed = 0
    for env in points(names):
        try:
            value: Any = _ratio_exact(left, right, env, budget)
        except TooCostly:
            raise
        except (NoValue, Inexact):
            value = _ratio_numeric(left, right, env, budget)
        if value is None:
            continue
        if value == 0 or (ratio is not None and not _same_ratio(ratio, value)):
            return False
        ratio = value if ratio is None else ratio
        agreed += 1
    if agreed < ENOUGH:
        return False
    return not positive or bool(ratio > 0)


def _ratio_exact(left: Node, right: Node, env: dict[str, Any], budget: Budget) -> Fraction | None:
    top, bottom = exact(left, env, budget), exact(right, env, budget)
    if bottom == 0:
        return None if top == 0 else Fraction(0)
    return top / bottom


def _ratio_numeric(left: Node, right: Node, env: dict[str, Any], budget: Budget) -> Any:
    mp = context(HIGH)
    try:
        top, bottom = numeric(left, env, mp, budget), numeric(right, env, mp, budget)
    except TooCostly:
        raise
    except NoValue:
        return None
    if not bottom or mp.isnan(top) or mp.isnan(bottom) or mp.isinf(top) or mp.isinf(bottom):
        return None
    ratio = top / bottom
    return mp.re(ratio) if _is_real(ratio, mp) else None


def _same_ratio(a: Any, b: Any) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    mp = context(HIGH)
    a = mp.mpf(a.numerator) / a.denominator if isinstance(a, Fraction) else a
    b = mp.mpf(b.numerator) / b.denominator if isinstance(b, Fraction) else b
    return _near(a, b, mp, HIGH // 2)


def differ_by_constant(left: Node, right: Node, budget: Budget) -> bool:
    """Whether left - right is the same number at every point: antiderivatives of one function."""
    difference: Node = ("add", (left, ("neg", right)))
    envs = points(variables(difference))
    mp = context(HIGH)
    values = []
    for env in envs:
        try:
            value: Any = numeric(difference, env, mp, budget)
        except TooCostly:
            raise
        except NoValue:
            continue
        if _is_real(value, mp):
            values.append(mp.re(value))
    if len(values) < ENOUGH:
        return False
    scale = max(1, *(abs(v) for v in values))
    return all(abs(v - values[0]) <= scale * mp.mpf(2) ** (-HIGH // 2) for v in values)


def compare_order(left: Node, right: Node, budget: Budget) -> int | None:
    """-1, 0 or 1 for two real constants; None when one is no real number."""
    try:
        difference = exact(("add", (left, ("neg", right))), {}, budget)
        return (difference > 0) - (difference < 0)
    except (Inexact, NoValue):
        pass
    if same_value(left, right, budget):
        return 0
    mp = context(HIGH)
    try:
        a, b = numeric(left, {}, mp, budget), numeric(right, {}, mp, budget)
    except NoValue:
        return None
    if mp.isnan(a) or mp.isnan(b) or not (_is_real(a, mp) and _is_real(b, mp)):
        return None
    return 1 if mp.re(a) > mp.re(b) else -1


def has_value(node: Node, budget: Budget) -> bool:
    """Whether a tree without variables has a value."""
    try:
        exact(node, {}, budget)
    except Inexact:
        try:
            mp = context(LOW)
            return not mp.isnan(numeric(node, {}, mp, budget))
        except NoValue:
            return False
    except NoValue:
        return False
    return True
