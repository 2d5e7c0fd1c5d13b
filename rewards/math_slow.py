"""What only computer algebra decides: sums, integrals, limits, derivatives, rational equations.

Runs in a worker process with limits of time and memory; the trees come in as JSON and sympy is
built from them node by node, so no text is ever evaluated.
"""

from __future__ import annotations

import threading
from fractions import Fraction
from typing import Any

from .math_equal import ENOUGH, points, variables
from .math_nodes import Node
from .workers import WorkerPool

MEMORY_MB = 1024
MAX_EXPONENT = 500  # of a power that sympy would expand
_lock = threading.Lock()
_pool: WorkerPool | None = None


def pool() -> WorkerPool:
    """The workers of the maths reward, shared by the process."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = WorkerPool(2, memory_mb=MEMORY_MB, preload=("sympy", __name__))
        return _pool


def encode(node: Any) -> Any:
    """A tree as JSON: tuples as lists, fractions as {"f": "1/3"}."""
    if isinstance(node, tuple):
        return [encode(part) for part in node]
    return {"f": str(node)} if isinstance(node, Fraction) else node


def decode(data: Any) -> Any:
    """The tree that `encode` wrote."""
    if isinstance(data, list):
        return tuple(decode(part) for part in data)
    return Fraction(data["f"]) if isinstance(data, dict) else data


def equal_values(left: Any, right: Any) -> bool:
    """Whether two trees with operators of calculus have the same value."""
    import sympy

    a, b = decode(left), decode(right)
    difference = to_sympy(a).doit() - to_sympy(b).doit()
    if difference == 0:
        return True
    names = variables(a) | variables(b)
    agreed = 0
    envs = points(names) if names else [{}]
    for env in envs:
        values = {
            sympy.Symbol(name): sympy.Rational(env[name].numerator, env[name].denominator)
            for name in names
        }
        value = difference.subs(values).evalf(30, maxn=200)
        if value.has(sympy.nan, sympy.zoo, sympy.oo) or not value.is_number:
            continue
        if abs(complex(value)) > 1e-20:
            return False
        agreed += 1
    return agreed >= min(ENOUGH, len(envs))


def equal_equations(left: Any, right: Any) -> bool:
    """Whether two equations F = 0 and G = 0 are the same once their denominators are gone."""
    import sympy

    a, b = (sympy.together(to_sympy(decode(side))) for side in (left, right))
    ratio = sympy.cancel(sympy.expand(sympy.fraction(a)[0]) / sympy.expand(sympy.fraction(b)[0]))
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)


def to_sympy(node: Node) -> Any:
    """The sympy expression of a tree. Raises ValueError for what it has no form for."""
    import sympy

    kind = node[0]
    if kind == "num":
        return sympy.Rational(node[1].numerator, node[1].denominator)
    if kind == "sym":
        return sympy.Symbol(node[1])
    if kind == "const":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "inf": sympy.oo}[node[1]]
    if kind == "add":
        return sympy.Add(*map(to_sympy, node[1]))
    if kind == "mul":
        return sympy.Mul(*map(to_sympy, node[1]))
    if kind == "div":
        return to_sympy(node[1]) / to_sympy(node[2])
    if kind == "neg":
        return -to_sympy(node[1])
    if kind == "pct":
        return to_sympy(node[1]) / 100
    if kind == "deg":
        return to_sympy(node[1]) * sympy.pi / 180
    if kind == "pow":
        return _power(to_sympy(node[1]), to_sympy(node[2]))
    if kind == "fn":
        return _function(node[1], [to_sympy(argument) for argument in node[2]])
    if kind == "call":
        return sympy.Function(node[1])(*map(to_sympy, node[2]))
    if kind == "big":
        return _operator(node)
    raise ValueError(f"{kind} has no sympy form")


def _power(base: Any, exponent: Any) -> Any:
    if (
        base.is_number
        and exponent.is_number
        and (not exponent.is_real or abs(exponent) > MAX_EXPONENT)
    ) and exponent.is_real:
        raise ValueError("a power is too large")
    return base**exponent


def _function(name: str, arguments: list[Any]) -> Any:
    import sympy

    if name == "root":
        return sympy.real_root(*arguments) if arguments[1] != 2 else sympy.sqrt(arguments[0])
    if name == "log":
        return sympy.log(*arguments) if len(arguments) == 2 else sympy.log(arguments[0], 10)
    if name == "factorial" and arguments[0].is_number and arguments[0] > 2000:
        raise ValueError("a factorial is too large")
    renamed = {
        "ln": "log",
        "abs": "Abs",
        "norm": "Abs",
        "max": "Max",
        "min": "Min",
        "ceil": "ceiling",
        "Re": "re",
        "Im": "im",
    }
    function = getattr(sympy, renamed.get(name, name), None)
    if (
        function is None
        or not isinstance(function, type)
        or not issubclass(function, sympy.Function | sympy.Max | sympy.Min)
    ):
        raise ValueError(f"{name} has no sympy form")
    return function(*arguments)


def _operator(node: Node) -> Any:
    import sympy

    kind = node[1]
    if kind == "derivative":
        return sympy.Derivative(to_sympy(node[4]), (to_sympy(node[2]), int(node[3][1])))
    if kind == "lim":
        return sympy.Limit(to_sympy(node[4]), to_sympy(node[2]), to_sympy(node[3]))
    if any(part is None for part in node[2:]) and kind != "int":
        raise ValueError("an operator without bounds")
    body = to_sympy(node[5])
    if kind == "int":
        variable = to_sympy(node[2])
        if node[3] is None or node[4] is None:
            return sympy.Integral(body, variable)
        return sympy.Integral(body, (variable, to_sympy(node[3]), to_sympy(node[4])))
    if kind in ("sum", "prod"):
        index = sympy.Symbol(node[2][1])
        body = body.subs(sympy.I, index) if node[2] == ("const", "i") else body
        bounds = (index, to_sympy(node[3]), to_sympy(node[4]))
        return sympy.Sum(body, bounds) if kind == "sum" else sympy.Product(body, bounds)
    raise ValueError(f"{kind} has no sympy form")
