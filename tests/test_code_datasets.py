"""HumanEval and MBPP: canonical solutions pass, mutated ones fail as they do under plain Python."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from thinkrl.rewards.code_tests import run_batch

from .sandbox_here import needs_isolation

pytestmark = [
    needs_isolation,
    pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning"),
]
Rows = list[dict[str, Any]]

# Every result differs from the original's, whatever type it has.
SPOILED = """
_original_{name} = {name}
def {name}(*args, **kwargs):
    value = _original_{name}(*args, **kwargs)
    return not value if isinstance(value, bool) else 0 if value is None else None
"""


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def humaneval(data_dir: Path) -> Rows:
    return read(data_dir / "humaneval" / "HumanEval.jsonl")


@pytest.fixture(scope="module")
def mbpp(data_dir: Path) -> Rows:
    return read(data_dir / "mbpp" / "mbpp.jsonl")


def fenced(code: str) -> str:
    return f"Here is my solution.\n```python\n{code}\n```"


def failing(rows: Rows, programs: list[str], **options: Any) -> list[Any]:
    keys = ("entry_point", "prompt", "test", "test_list", "test_setup_code")
    tests = [{key: row[key] for key in keys if key in row} for row in rows]
    results = run_batch(list(zip(programs, tests, strict=True)), time_limit_s=30.0, **options)
    assert "sandbox_error" not in {result.status for result in results}
    failed = zip(rows, results, strict=True)
    return [row["task_id"] for row, result in failed if result.status != "passed"]


def test_canonical_humaneval_solutions_pass(humaneval: Rows) -> None:
    assert len(humaneval) == 164
    assert failing(humaneval, [row["canonical_solution"] for row in humaneval]) == []
    whole = [fenced(row["prompt"] + row["canonical_solution"]) for row in humaneval]
    assert failing(humaneval, whole) == []


def test_canonical_mbpp_solutions_pass(mbpp: Rows) -> None:
    assert len(mbpp) == 974
    assert failing(mbpp, [fenced(row["code"]) for row in mbpp]) == []


def test_spoiled_solutions_fail(humaneval: Rows, mbpp: Rows) -> None:
    programs = [
        fenced(row["prompt"] + row["canonical_solution"] + SPOILED.format(name=row["entry_point"]))
        for row in humaneval
    ]
    assert len(failing(humaneval, programs)) == len(humaneval)
    programs = []
    for row in mbpp:
        called = called_names(row["test_list"][0])
        defined = {n.name for n in ast.parse(row["code"]).body if isinstance(n, ast.FunctionDef)}
        spoiled = [SPOILED.format(name=name) for name in sorted(called & defined)]
        programs.append(fenced(row["code"] + "".join(spoiled)))
    assert len(failing(mbpp, programs, stop_at_first_failure=True)) == len(mbpp)


def called_names(code: str) -> set[str]:
    nodes = ast.walk(ast.parse(code))
    return {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


class Mutate(ast.NodeTransformer):
    """Changes one comparison, operator or constant: the nth one found."""

    CHANGES = {  # noqa: RUF012
        ast.Lt: ast.LtE,
        ast.LtE: ast.Lt,
        ast.Gt: ast.GtE,
        ast.GtE: ast.Gt,
        ast.Eq: ast.NotEq,
        ast.NotEq: ast.Eq,
        ast.Add: ast.Sub,
        ast.Sub: ast.Add,
        ast.Mult: ast.Add,
        ast.And: ast.Or,
        ast.Or: ast.And,
    }

    def __init__(self, nth: int) -> None:
        self.left = nth

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        constant = isinstance(node, ast.Constant) and type(node.value) is int
        if type(node) not in self.CHANGES and not constant:
            return node
        self.left -= 1
        if self.left != -1:
            return node
        return ast.Constant(node.value + 1) if constant else self.CHANGES[type(node)]()  # type: ignore[attr-defined]


def plain_verdict(program: str) -> bool:
    """Say whether the program with its tests ends well under an ordinary interpreter."""
    command = [sys.executable, "-c", program]
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def test_mutants_are_judged_as_by_plain_python(humaneval: Rows) -> None:
    """The independent judge runs the tests beside the program: mutants do not cheat."""
    rows = humaneval[::3]
    mutants = []
    for number, row in enumerate(rows):
        tree = ast.parse(row["prompt"] + row["canonical_solution"])
        mutants.append(ast.unparse(ast.fix_missing_locations(Mutate(number % 3).visit(tree))))
    together = [
        f"{mutant}\n{row['test']}\ncheck({row['entry_point']})\n"
        for row, mutant in zip(rows, mutants, strict=True)
    ]
    with ThreadPoolExecutor(2) as threads:
        verdicts = list(threads.map(plain_verdict, together))
    ours = set(failing(rows, [fenced(mutant) for mutant in mutants]))
    plain = {row["task_id"] for row, right in zip(rows, verdicts, strict=True) if not right}
    assert ours == plain
    assert len(plain) > len(rows) // 2
