"""Reads the forms that code tests come in: stdin and stdout, functions, asserts, HumanEval.

The form is recognised by its keys. A malformed one is a ValueError that names the key.
"""

from __future__ import annotations

import ast
import builtins
import json
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class StdioCase:
    """One script run: stdin and the outputs that are accepted."""

    stdin: str
    expected: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """One call: the function's name, arguments, and the values that are accepted."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    expected: tuple[Any, ...]


@dataclass(frozen=True)
class CallCase:
    """Calls that make one test, in one process; compared as Python does, or as JSON values."""

    calls: tuple[Call, ...]
    strict: bool


@dataclass(frozen=True)
class RefereeCase:
    """Test code that a referee runs against the program in another sandbox."""

    entry_point: str | None
    setup: str
    test: str
    check: bool = False  # the test defines check(candidate)


Case = StdioCase | CallCase | RefereeCase


@dataclass(frozen=True)
class TestSet:
    """The tests of one task, read."""

    __test__ = False  # not a pytest class

    cases: tuple[Case, ...]
    float_tol: float | None = None
    time_limit_s: float | None = None
    memory_limit_mb: int | None = None
    prompt: str = ""  # a function's beginning that the completion may only continue
    entry_point: str | None = None
    imports: str = ""  # import lines of the setup, which the program may rely on
    referee_prelude: tuple[str, ...] = field(default=())


def read_tests(tests: Any) -> TestSet:
    """Read tests given as a dict, a list, or the JSON or Python text of one.

    Keys: {"inputs", "outputs"}; {"fn_name", "cases"} or {"fn_name", "inputs", "outputs"};
    {"entry_point", "setup", "asserts"}; {"test_list", "test_setup_code"}; {"entry_point",
    "prompt", "test"}; a list of {"input", "output"}. Optional: "time_limit_s", "memory_limit_mb",
    "float_tol". ValueError names the key that is missing or malformed.
    """
    if isinstance(tests, str):
        tests = _from_text(tests)
    if isinstance(tests, list | tuple):
        tests = _from_list(list(tests))
    if not isinstance(tests, dict):
        raise ValueError(f"tests: a {type(tests).__name__}; give a dict or its JSON text")
    tests = {key: value for key, value in tests.items() if value is not None}
    for keys, reader in _READERS:
        if all(key in tests for key in keys):
            read = reader(tests)
            break
    else:
        known = "; ".join("+".join(keys) for keys, _ in _READERS)
        raise ValueError(f"tests: keys {sorted(map(str, tests))} fit no form; give one of: {known}")
    if not read["cases"]:
        raise ValueError("tests: no test in it; leave the row out or add one")
    return TestSet(
        **read,
        float_tol=_number(tests, "float_tol", least=0.0),
        time_limit_s=_number(tests, "time_limit_s"),
        memory_limit_mb=_whole(_number(tests, "memory_limit_mb")),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else max(1, int(value))


def _number(tests: dict[str, Any], key: str, *, least: float | None = None) -> float | None:
    value = tests.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"tests.{key}: {value!r} is not a number")
    if not (value > 0 or value == least):
        raise ValueError(f"tests.{key}: {value!r} must be positive")
    return float(value)


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"tests: neither JSON nor Python: {text[:60]!r}") from None
    asserts = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assert)]
    setup = [ast.unparse(node) for node in tree.body if not isinstance(node, ast.Assert)]
    if not asserts:
        raise ValueError(f"tests: no assert in {text[:60]!r}")
    return {"asserts": asserts, "setup": "\n".join(setup)}


def _from_list(rows: list[Any]) -> Any:
    """Read a bare list: asserts, or LiveCodeBench's rows of input and output."""
    if rows and all(isinstance(row, str) for row in rows):
        return {"test_list": rows}
    if rows and all(isinstance(row, dict) and {"input", "output"} <= row.keys() for row in rows):
        inputs, outputs = ([row[key] for row in rows] for key in ("input", "output"))
        names = {row.get("fn_name") for row in rows} - {None}
        functional = {"fn_name": names.pop()} if len(names) == 1 else {}
        return {"inputs": inputs, "outputs": outputs, **functional}
    raise ValueError("tests: a list must hold asserts or objects with input and output")


def _list(tests: dict[str, Any], key: str) -> list[Any]:
    value = tests[key]
    if isinstance(value, str) and key in ("test_list", "asserts", "inputs", "outputs"):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"tests.{key}: a {type(value).__name__}; give a list")
    return list(value)


def _pairs(tests: dict[str, Any]) -> list[tuple[Any, Any]]:
    inputs, outputs = _list(tests, "inputs"), _list(tests, "outputs")
    if len(inputs) != len(outputs):
        raise ValueError(f"tests: {len(inputs)} inputs but {len(outputs)} outputs")
    return list(zip(inputs, outputs, strict=True))


# --- stdin and stdout -----------------------------------------------------------------------


def _text(value: Any, key: str) -> str:
    """Return a stream's text; APPS writes some as lists of lines."""
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"tests.{key}: {value!r:.60} is not text")
    return value


def _read_stdio(tests: dict[str, Any]) -> dict[str, Any]:
    cases = [
        StdioCase(_text(stdin, "inputs"), (_text(expected, "outputs"),))
        for stdin, expected in _pairs(tests)
    ]
    return {"cases": tuple(cases)}


# --- functions ------------------------------------------------------------------------------


def _name(tests: dict[str, Any], key: str) -> str:
    value = tests[key]
    # "Solution().add" and "Solution.add" are other ways to name a method.
    name = value.rpartition(".")[2] if isinstance(value, str) else ""
    if not name.isidentifier():
        raise ValueError(f"tests.{key}: {value!r} is not a function's name")
    return name


def _read_cases(tests: dict[str, Any]) -> dict[str, Any]:
    name = _name(tests, "fn_name")
    cases = []
    for number, case in enumerate(_list(tests, "cases")):
        if not isinstance(case, dict) or not {"args", "expected"} <= case.keys():
            raise ValueError(f"tests.cases[{number}]: give an object with args and expected")
        args, kwargs = case["args"], case.get("kwargs") or {}
        if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
            raise ValueError(f"tests.cases[{number}]: args must be a list, kwargs an object")
        call = Call(name, tuple(args), kwargs, (case["expected"],))
        cases.append(CallCase((call,), strict=False))
    return {"cases": tuple(cases)}


def _literal(text: str, key: str) -> Any:
    """Read a JSON value, or a Python literal where a data set holds those."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(f"tests.{key}: {text[:60]!r} is neither JSON nor a Python literal")


def _whole_keys(value: Any) -> Any:
    """Return APPS' dictionaries with the whole-number keys that JSON made strings of."""
    if isinstance(value, dict) and value and all(str(key).lstrip("-").isdigit() for key in value):
        return {int(key): item for key, item in value.items()}
    return value


def _read_calls(tests: dict[str, Any]) -> dict[str, Any]:
    """LiveCodeBench gives texts, one JSON argument a line; APPS gives the lists themselves."""
    name = _name(tests, "fn_name")
    pairs = _pairs(tests)
    wrapped = all(isinstance(output, list | tuple) and len(output) == 1 for _, output in pairs)
    cases = []
    for given, output in pairs:
        if isinstance(given, str):
            args = [_literal(line, "inputs") for line in given.split("\n") if line.strip()]
        elif isinstance(given, list | tuple):
            args = [_whole_keys(value) for value in given]
        else:
            raise ValueError(f"tests.inputs: {given!r:.60} is neither text nor a list")
        textual = isinstance(given, str) and isinstance(output, str)
        expected = [_literal(output, "outputs") if textual else output]
        if wrapped:  # APPS holds each result in a list of one
            expected.append(output[0])
        cases.append(CallCase((Call(name, tuple(args), {}, tuple(expected)),), strict=False))
    return {"cases": tuple(cases)}


# --- asserts --------------------------------------------------------------------------------


def _parse(code: Any, key: str) -> ast.Module:
    if not isinstance(code, str):
        raise ValueError(f"tests.{key}: {code!r:.60} is not Python text")
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"tests.{key}: {code[:60]!r} is not Python") from None


def _hidden_entry_point(trees: list[ast.Module]) -> str | None:
    """Return the one function that every assert calls where that has a built-in's name.

    MBPP has programs that define `sum`, and asserts that call nothing else.
    """
    nodes = [node for tree in trees for node in ast.walk(tree)]
    called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    return called.pop() if len(called) == 1 else None


def _simple_call(statement: ast.stmt, entry_point: str | None) -> Call | None:
    """Rewrite `assert f(literals) == literal` to a call whose result is compared outside."""
    test = statement.test if isinstance(statement, ast.Assert) else None
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return None
    call, expected = test.left, test.comparators[0]
    if not isinstance(test.ops[0], ast.Eq) or not isinstance(call, ast.Call):
        return None
    if not isinstance(call.func, ast.Name):
        return None
    if call.func.id != entry_point and hasattr(builtins, call.func.id):
        return None
    try:
        args = tuple(ast.literal_eval(argument) for argument in call.args)
        kwargs = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords if word.arg}
        value = ast.literal_eval(expected)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if len(kwargs) != len(call.keywords):
        return None
    return Call(call.func.id, args, kwargs, (value,))


def _is_trivial(statement: ast.stmt) -> bool:
    """Say whether a statement of test code does nothing: a docstring, pass, `assert True`."""
    value = statement.test if isinstance(statement, ast.Assert) else None
    if isinstance(value, ast.Constant):
        return bool(value.value)
    plain = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return plain or isinstance(statement, ast.Pass)


def _simple_check(tree: ast.Module, entry_point: str) -> CallCase | None:
    """Rewrite check(candidate) to calls, where it only asserts what calls of literals return."""
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    others = [node for node in tree.body if node not in functions and not _is_trivial(node)]
    if len(functions) != 1 or not all(isinstance(node, ast.Assign) for node in others):
        return None  # assignments are data sets' METADATA, which no simple assert reads
    check = functions[0]
    if check.name != "check" or len(check.args.args) != 1:
        return None
    candidate = check.args.args[0].arg
    calls = []
    for statement in check.body:
        if _is_trivial(statement):
            continue
        call = _simple_call(statement, candidate)
        if call is None or call.name != candidate:
            return None
        calls.append(replace(call, name=entry_point))
    return CallCase(tuple(calls), strict=True) if calls else None


def _read_asserts(tests: dict[str, Any], *, key: str = "asserts") -> dict[str, Any]:
    """Each assert is a test of its own; those that need more than a comparison get a referee."""
    entry_point = _name(tests, "entry_point") if "entry_point" in tests else None
    setup = "\n".join(
        part if isinstance(part, str) else "\n".join(part)
        for part in (tests.get(name) or "" for name in ("setup", "test_setup_code", "test_imports"))
    )
    setup_tree = _parse(setup, "setup")
    defined = {node.id for node in ast.walk(setup_tree) if isinstance(node, ast.Name)}
    defined |= {node.name for node in setup_tree.body if isinstance(node, _DEFINITIONS)}
    cases: list[Case] = []
    texts = _list(tests, key)
    trees = [_parse(text, key) for text in texts]
    entry_point = entry_point or _hidden_entry_point(trees)
    for text, tree in zip(texts, trees, strict=True):
        if not tree.body:
            continue
        simple = _simple_call(tree.body[0], entry_point) if len(tree.body) == 1 else None
        if simple and simple.name not in defined:
            cases.append(CallCase((simple,), strict=True))
        else:
            cases.append(RefereeCase(entry_point, setup, text))
    return {"cases": tuple(cases), "entry_point": entry_point, "imports": _imports(setup_tree)}


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _imports(tree: ast.Module) -> str:
    """Return the import lines, but for stars: those could define the answer."""
    lines = [
        ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and not any(alias.name == "*" for alias in node.names)
    ]
    return "\n".join(lines)


def _read_test_list(tests: dict[str, Any]) -> dict[str, Any]:
    return _read_asserts(tests, key="test_list")


def _read_humaneval(tests: dict[str, Any]) -> dict[str, Any]:
    """One test: its check(candidate), in the referee with what the prompt defines if need be."""
    entry_point = _name(tests, "entry_point")
    test, prompt = tests["test"], tests.get("prompt") or ""
    tree = _parse(test, "test")
    check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    referee = RefereeCase(entry_point, "", test, check=check)
    prelude = prompt_prelude(prompt, entry_point)
    return {
        "cases": (_simple_check(tree, entry_point) or referee,),
        "prompt": prompt,
        "entry_point": entry_point,
        "referee_prelude": (prelude,) if prelude.strip() else (),
    }


def prompt_prelude(prompt: str, entry_point: str) -> str:
    """Return what a HumanEval prompt defines before the function in question."""
    lines = prompt.split("\n")
    for number, line in enumerate(lines):
        if line.startswith((f"def {entry_point}(", f"async def {entry_point}(")):
            return "\n".join(lines[:number])
    return ""


_READERS = (
    (("fn_name", "cases"), _read_cases),
    (("fn_name", "inputs", "outputs"), _read_calls),
    (("inputs", "outputs"), _read_stdio),
    (("asserts",), _read_asserts),
    (("test_list",), _read_test_list),
    (("entry_point", "test"), _read_humaneval),
)
