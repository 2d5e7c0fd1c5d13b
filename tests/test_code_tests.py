"""The code reward: every form of tests, honest programs, limits, the reward function."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from thinkrl.rewards.code_formats import CallCase, RefereeCase, StdioCase, read_tests
from thinkrl.rewards.code_tests import CodeResult, arun_tests, code_tests, run_batch, run_tests
from thinkrl.rewards.registry import load_reward

from .code_honest import FUNCTIONS, SCRIPTS
from .sandbox_here import needs_isolation

ADD = "```python\ndef add(a, b):\n    return a + b\n```"
ADD_CASES = {"fn_name": "add", "cases": [{"args": [1, 2], "expected": 3}]}
ECHO = {"inputs": ["1\n", "2\n"], "outputs": ["1\n", "2\n"]}


@pytest.fixture(scope="module")
def honest() -> dict[str, CodeResult]:
    items: list[tuple[str, dict[str, Any]]] = [
        (f"```python\n{code}\n```", {"inputs": [stdin], "outputs": [expected]})
        for code, stdin, expected in SCRIPTS.values()
    ]
    items += [
        (f"```python\n{code}\n```", {"fn_name": name, "cases": [{"args": args, "expected": value}]})
        for code, name, args, value in FUNCTIONS.values()
    ]
    names = [f"script-{name}" for name in SCRIPTS] + [f"function-{name}" for name in FUNCTIONS]
    return dict(zip(names, run_batch(items, time_limit_s=20.0), strict=True))


@needs_isolation
@pytest.mark.parametrize(
    "name", [*(f"script-{name}" for name in SCRIPTS), *(f"function-{name}" for name in FUNCTIONS)]
)
def test_honest_programs_pass(honest: dict[str, CodeResult], name: str) -> None:
    assert honest[name].status == "passed", honest[name]


CLASSES = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item): self.items.append(item)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
def numbers(n):
    yield from range(n)
def sort_in_place(items): items.sort()
def fail(x): raise ValueError('bad ' + str(x))
class Odd(KeyError): pass
def odd(): raise Odd('x')
def sum(a, b): return a + b
def apply(f, xs): return [f(x) for x in xs]
def half(x): return x / 2
"""


@needs_isolation
@pytest.mark.parametrize(
    ("tests", "status"),
    [
        (ADD_CASES, "passed"),
        (json.dumps(ADD_CASES), "passed"),
        (
            {"fn_name": "add", "cases": [{"args": [], "kwargs": {"a": 1, "b": 2}, "expected": 3}]},
            "passed",
        ),
        ({"fn_name": "Solution().add", "cases": [{"args": [1, 2], "expected": 3}]}, "passed"),
        ({"fn_name": "add", "cases": [{"args": [1, 2], "expected": 4}]}, "wrong_answer"),
        ({"fn_name": "plus", "cases": [{"args": [1, 2], "expected": 3}]}, "runtime_error"),
        ({"fn_name": "add", "inputs": ["1\n2"], "outputs": ["3"]}, "passed"),
        ({"fn_name": "add", "inputs": ['"a"\n"b"'], "outputs": ['"ab"']}, "passed"),
        ({"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}, "passed"),
        ({"fn_name": "add", "inputs": [[1, 2], [2, 3]], "outputs": [[3], [5]]}, "passed"),
        ({"fn_name": "add", "inputs": [[[1], [2]]], "outputs": [[1, 2]]}, "passed"),
        ({"fn_name": "add", "inputs": [["a", "b"]], "outputs": ["ab"]}, "passed"),
        ({"fn_name": "add", "inputs": [[1, 2], [2, 3]], "outputs": [[3], 5]}, "wrong_answer"),
        ({"fn_name": "add", "cases": [{"args": [0.1, 0.2], "expected": 0.3}]}, "wrong_answer"),
        (
            {"fn_name": "add", "cases": [{"args": [0.1, 0.2], "expected": 0.3}], "float_tol": 1e-9},
            "passed",
        ),
        ({"entry_point": "add", "setup": "", "asserts": ["assert add(1, 2) == 3"]}, "passed"),
        ({"asserts": ["assert add([1], [2]) == [1, 2]"]}, "passed"),
        ({"asserts": ["assert add([1], [2]) == (1, 2)"]}, "wrong_answer"),
        ({"asserts": ["assert add((1,), (2,)) == (1, 2)"]}, "passed"),
        ({"asserts": ["assert add(True, 0) is True"]}, "wrong_answer"),
        ({"asserts": ["assert 3 == add(1, 2)", "assert not add(0, 0)"]}, "passed"),
        ({"setup": "import math", "asserts": ["assert math.isclose(add(.1, .2), .3)"]}, "passed"),
        ({"setup": "two = 2", "asserts": ["assert add(two, two) == two + two"]}, "passed"),
        ({"asserts": ["for i in range(5): assert add(i, i) == 2 * i"]}, "passed"),
        ({"asserts": ["assert add(add(1, 2), 3) == 6, 'sum'"]}, "passed"),
        ({"asserts": ["assert sorted(add([2], [1])) == [1, 2]"]}, "passed"),
        (
            {
                "asserts": [
                    "assert isinstance(add('a', 'b'), str) and add({1}.__len__(), 1) in (2, 3)"
                ]
            },
            "passed",
        ),
        ({"test_list": ["assert add(1, 2) == 3"], "test_setup_code": ""}, "passed"),
        ({"test_list": ["assert add(1, 2) == 4"]}, "wrong_answer"),
        (["assert add(1, 2) == 3", "assert add(2, 2) == 4"], "passed"),
        ("assert add(1, 2) == 3\nassert add(2, 2) == 4\n", "passed"),
        ({"asserts": ["assert undefined(1) == 3"]}, "runtime_error"),
        ({"asserts": ["assert add(1) == 3"]}, "runtime_error"),
        ({"asserts": ["assert add(1) in (3,)"]}, "wrong_answer"),
        (
            {"entry_point": "add", "asserts": ["while True: add(1, 2)"], "time_limit_s": 0.5},
            "time_limit",
        ),
        (
            {
                "entry_point": "add",
                "prompt": "import math\ndef twice(x): return 2 * x\ndef add(a, b):\n    # add\n",
                "test": "def check(f):\n    assert f(twice(1), math.floor(1.5)) == 3\n",
            },
            "passed",
        ),
    ],
    ids=str,
)
def test_forms(tests: Any, status: str) -> None:
    result = run_tests(ADD, tests)
    assert result.status == status, result
    assert result.total == len(read_tests(tests).cases) == len(result.cases)
    assert (result.passed == result.total) == (status == "passed")


@needs_isolation
@pytest.mark.parametrize(
    ("assertion", "holds"),
    [
        ("s = Stack(); s.push(1); s.push([2]); assert s.pop() == [2] and len(s) == 1", True),
        ("s = Stack(); s.items = [5]; assert s.pop() == 5", True),
        ("s = Stack(); s.push(Stack()); assert s.pop() is not None", True),
        ("assert Stack() == Stack()", False),
        ("assert list(numbers(600)) == list(range(600))", True),
        ("assert 3 in numbers(4) and max(numbers(4)) == 3", True),
        ("assert next(numbers(4)) == 0", True),
        ("assert numbers(2) == [0, 1]", False),
        ("x = [3, 1, 2]; sort_in_place(x); assert x == [1, 2, 3]", True),
        ("try: fail(1)\nexcept ValueError as error: assert 'bad 1' in str(error)", True),
        ("try: fail(1)\nexcept ValueError: pass\nelse: assert False", True),
        ("try: fail(1)\nexcept KeyError: pass", False),
        ("try: odd()\nexcept KeyError: pass", True),
        ("assert sum(2, 3) == 5", True),
        ("assert half(3) == 1.5 and half(2) == 1", True),
        ("assert apply(lambda x: x * x, [1, 2, 3]) == [1, 4, 9]", True),
        ("assert apply(half, [2]) == [1] and apply(str, [2]) == ['2']", True),
        ("assert apply(lambda x: half(x) + 1, [2]) == [2]", True),
        ("assert type(half(2)) is float", True),
    ],
)
def test_test_code_runs_against_remote_objects(assertion: str, holds: bool) -> None:
    result = run_tests(CLASSES, {"asserts": [assertion]})
    assert (result.status == "passed") is holds, result


@needs_isolation
def test_humaneval_completions_may_be_a_body_or_the_whole_function() -> None:
    tests = {
        "entry_point": "add",
        "prompt": "from typing import List\n\ndef add(a: List[int], b: int) -> int:\n    # add\n",
        "test": "def check(candidate):\n    assert candidate([1], 2) == 3\n",
    }
    bodies = [
        "    return a[0] + b\n",
        "    total = a[0]\n    return total + b\n\ndef unused(): pass\n",
        "return a[0] + b\n",
        "total = a[0]\nreturn total + b\n",
        "total = a[0]\n    return total + b\n",
        "```python\n    return a[0] + b\n```",
        "```python\ndef add(a: List[int], b: int) -> int:\n    return a[0] + b\n```",
        "```python\nfrom __future__ import annotations\ndef add(a, b): return a[0] + b\n```",
    ]
    results = run_batch([(body, tests) for body in bodies])
    assert [r.status for r in results] == ["passed"] * len(bodies), results
    assert run_tests("    return a[0] - b\n", tests).status == "wrong_answer"


@needs_isolation
def test_simple_checks_are_compared_outside_the_referee() -> None:
    test = (
        "METADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    'doc'\n    assert True, 'a'\n"
        "    assert candidate([1]) == [1], 'b'\n    assert candidate([2]) == [1, 2]\n"
    )
    tests = {"entry_point": "f", "prompt": "", "test": test}
    read = read_tests(tests)
    assert isinstance(read.cases[0], CallCase)
    assert [call.expected for call in read.cases[0].calls] == [([1],), ([1, 2],)]
    for changed in ("assert len(candidate([1])) == 1", "x = 1", "assert False", "assert g(1) == 1"):
        other = read_tests(tests | {"test": test.replace("assert True, 'a'", changed)})
        assert isinstance(other.cases[0], RefereeCase), changed
    # The same list, returned twice, counts as what it was at each return.
    program = "kept = []\ndef f(x):\n    kept.extend(x)\n    return kept\n"
    assert run_tests(program, tests).status == "passed"
    assert run_tests("def f(x): return x\n", tests).status == "wrong_answer"


@needs_isolation
def test_tests_do_not_reach_the_program() -> None:
    """The helper that a prompt defines is the tests' own; the program's version changes nothing."""
    tests = {
        "entry_point": "root",
        "prompt": "def value(x): return x * x - 4\n\n\ndef root():\n",
        "test": "def check(candidate):\n    assert value(candidate()) == 0\n",
    }
    fake = "def value(x): return 0\ndef root(): return 1\n"
    assert run_tests(fake, tests).status == "wrong_answer"
    assert run_tests("    return 2\n", tests).status == "passed"


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ({}, "fit no form"),
        (3, "give a dict"),
        ("not python (", "neither JSON nor Python"),
        ("x = 1", "no assert"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs but 0 outputs"),
        ({"inputs": [], "outputs": []}, "no test"),
        ({"inputs": [1], "outputs": ["1"]}, "tests.inputs"),
        ({"inputs": "ab", "outputs": ["1", "2"]}, "1 inputs but 2"),
        ({"fn_name": "f(x)", "cases": []}, "tests.fn_name"),
        ({"fn_name": "f", "cases": [{"args": [1]}]}, "cases[0]"),
        ({"fn_name": "f", "cases": [{"args": 1, "expected": 2}]}, "args must be a list"),
        ({"fn_name": "f", "inputs": ["x y"], "outputs": ["1"]}, "neither JSON"),
        ({"asserts": ["assert ("]}, "is not Python"),
        ({"asserts": 3}, "give a list"),
        ({"asserts": ["assert f(1) == 1"], "time_limit_s": -1}, "must be positive"),
        ({"asserts": ["assert f(1) == 1"], "float_tol": "x"}, "is not a number"),
        ({"entry_point": "f", "test": "def check("}, "is not Python"),
        ([{"input": "1"}], "a list must hold"),
    ],
    ids=str,
)
def test_malformed_tests_are_named(tests: Any, words: str) -> None:
    with pytest.raises(ValueError, match="tests") as raised:
        read_tests(tests)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_reading_forms() -> None:
    read = read_tests([{"input": "1", "output": "2", "testtype": "stdin"}])
    assert read.cases == (StdioCase("1", ("2",)),)
    read = read_tests({"inputs": [["a", "b"]], "outputs": [["c"]], "time_limit_s": 2, "x": None})
    assert read.cases == (StdioCase("a\nb", ("c",)),)
    assert read.time_limit_s == 2
    read = read_tests({"test_list": ["assert set(f(1)) == {1}"], "test_imports": ["import math"]})
    assert isinstance(read.cases[0], RefereeCase)
    assert read.imports == "import math"


@needs_isolation
def test_batches_async_and_early_stop() -> None:
    good, bad = "print(input())", "print(3)"
    results = run_batch([(good, ECHO), (bad, ECHO), ("no code here", ECHO)])
    assert [(r.passed, r.total, r.status) for r in results] == [
        (2, 2, "passed"),
        (0, 2, "wrong_answer"),
        (0, 2, "no_code"),
    ]
    stopped = run_tests(bad, ECHO, stop_at_first_failure=True)
    assert (stopped.total, len(stopped.cases)) == (2, 1)

    async def both() -> list[CodeResult]:
        return list(await asyncio.gather(arun_tests(good, ECHO), arun_tests(bad, ECHO)))

    assert [r.status for r in asyncio.run(both())] == ["passed", "wrong_answer"]


@needs_isolation
def test_limits_come_from_the_argument_then_the_tests() -> None:
    slow = "import time\ntime.sleep(1)\nprint(input())"
    assert run_tests(slow, ECHO | {"time_limit_s": 0.3}).status == "time_limit"
    assert run_tests(slow, ECHO | {"time_limit_s": 0.3}, time_limit_s=20).status == "passed"
    big = "x = bytearray(b'1') * (100 << 20)\nprint(input())"
    assert run_tests(big, ECHO | {"memory_limit_mb": 64}).status == "memory_limit"
    assert run_tests(big, ECHO).status == "passed"


@needs_isolation
def test_the_reward() -> None:
    logged: dict[str, list[Any]] = {}
    completions = [
        "print(input())",
        [{"role": "assistant", "content": "```python\nprint(1)\n```"}],
        "none",
        "print(input())",
    ]
    arguments: dict[str, Any] = {
        "prompts": ["p"] * 4,
        "completions": completions,
        "completion_ids": [[1]] * 4,
        "tests": [ECHO, ECHO, json.dumps(ECHO), None],
        "log_extra": lambda name, values: logged.update({name: values}),
    }
    assert load_reward("code_tests", {})(**arguments) == [1.0, 0.0, 0.0, None]
    assert load_reward("code_tests", {"mode": "fraction"})(**arguments) == [1.0, 0.5, 0.0, None]
    assert logged == {"code_status": ["passed", "wrong_answer", "no_code", None]}
    with pytest.raises(ValueError, match=r"code_tests\.mode"):
        code_tests(["p"], ["x"], [ECHO], mode="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="isolation"):
        code_tests(["p"], ["x"], [ECHO], isolation="none")  # type: ignore[arg-type]
