"""No hostile program passes, in any form of test, and the next program is unaffected."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
from thinkrl.rewards.code_tests import CodeResult, run_batch, run_tests

from .code_hostile import CALLING, function_programs, scripts
from .sandbox_here import needs_isolation

pytestmark = needs_isolation

POINTS = [(2, 11), (5, 32), (9, 88)]
CASES: dict[str, Any] = {
    "fn_name": "solve",
    "cases": [{"args": [n], "expected": value} for n, value in POINTS],
}
SIMPLE: dict[str, Any] = {
    "entry_point": "solve",
    "asserts": [f"assert solve({n}) == {v}" for n, v in POINTS],
}
REFEREED: dict[str, Any] = {
    "entry_point": "solve",
    "asserts": [f"assert abs(solve({n}) - {value}) < 1e-6" for n, value in POINTS],
}
CHECK: dict[str, Any] = {
    "entry_point": "solve",
    "prompt": "def solve(n):\n",
    "test": "def check(candidate):\n"
    + "".join(f"    assert candidate({n}) == {value}\n" for n, value in POINTS),
}
LOOP = CHECK | {
    "test": "def check(candidate):\n"
    f"    for n, value in {POINTS}:\n        assert candidate(n) == value\n",
}
STDIO: dict[str, Any] = {
    "inputs": [f"{n}\n" for n, _ in POINTS],
    "outputs": [f"{value}\n" for _, value in POINTS],
}
# Within one test a program may remember what it answered: these know the answers and their order.
IN_ORDER = {f"calling-{name}" for name in CALLING if name.startswith("counter_")}
COSTLY = {
    *("loop", "sleep", "ignored_signals", "stopped", "thread_forever", "fork_bomb", "thread_bomb"),
    *("memory_bomb", "recursion", "c_recursion", "deep_folders", "disk_bomb", "inode_bomb"),
}


def collect() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return every attack in every form, by a name for the test."""
    programs = {f"{name}-stdio": (code, STDIO) for name, code in scripts().items()}
    for form, tests in {"cases": CASES, "refereed": REFEREED, "loop": LOOP}.items():
        for name, code in function_programs().items():
            # Loading is the same in every form, and what only costs time is seen once.
            if name.startswith("loading") and (form == "refereed" or name[8:] in COSTLY):
                continue
            if form == "loop" and name in IN_ORDER:
                continue
            programs[f"{name}-{form}"] = (code, tests)
    for name, body in CALLING.items():
        code = f"def solve(n):\n    {body}\n"
        programs[f"calling-{name}-simple"] = (code, SIMPLE)
        if f"calling-{name}" not in IN_ORDER:
            programs[f"calling-{name}-check"] = (code, CHECK)
    return programs


ATTACKS = collect()
HONEST = [
    ("def solve(n): return n * n + 7\n", CASES),
    ("def solve(n): return n * n + 7\n", SIMPLE),
    ("def solve(n): return n * n + 7\n", REFEREED),
    ("def solve(n): return n * n + 7\n", CHECK),
    ("def solve(n): return n * n + 7\n", LOOP),
    ("n = int(input())\nprint(n * n + 7)\n", STDIO),
]


@pytest.fixture(scope="module")
def results() -> dict[str, CodeResult]:
    """Run every attack once, an honest program after each dozen."""
    items: list[tuple[str, dict[str, Any]]] = []
    for number, (code, tests) in enumerate(ATTACKS.values()):
        items.append((f"```python\n{code}```", tests))
        if number % 12 == 0:
            items.append(HONEST[number // 12 % len(HONEST)])
    limited = [(code, tests | {"time_limit_s": 0.5}) for code, tests in items]
    done = run_batch(limited, stop_at_first_failure=True)
    names = iter(ATTACKS)
    return {
        (f"honest after {number}" if items[number] in HONEST else next(names)): result
        for number, result in enumerate(done)
    }


def test_there_are_many() -> None:
    assert len({code for code, _ in ATTACKS.values()}) >= 150


@pytest.mark.parametrize("name", ATTACKS)
def test_none_passes(results: dict[str, CodeResult], name: str) -> None:
    assert results[name].status not in ("passed", "sandbox_error"), results[name]


def test_honest_programs_between_them_pass(results: dict[str, CodeResult]) -> None:
    between = {name: result for name, result in results.items() if name.startswith("honest")}
    # Half a second may be short on a busy machine: time alone is no verdict on honesty.
    assert {r.status for r in between.values()} <= {"passed", "time_limit"}, between
    assert [r.status for r in run_batch(HONEST)] == ["passed"] * len(HONEST)


@pytest.mark.parametrize(
    ("attack", "status"),
    [
        ("loading-loop-stdio", "time_limit"),
        ("loading-sleep-stdio", "time_limit"),
        ("loading-ignored_signals-stdio", "time_limit"),
        ("loading-stopped-stdio", "time_limit"),
        ("loading-memory_at_once-stdio", "memory_limit"),
        ("loading-output_flood-stdio", "output_limit"),
        ("loading-error_flood-stdio", "output_limit"),
        ("loading-fork-stdio", "runtime_error"),
        ("loading-segfault-stdio", "runtime_error"),
        ("loading-kill_parent-stdio", "runtime_error"),
        ("printing-wrong-stdio", "wrong_answer"),
        ("printing-nothing-stdio", "no_code"),
        ("calling-always_equal-cases", "wrong_answer"),
        ("calling-os_exit-cases", "runtime_error"),
    ],
)
def test_statuses(results: dict[str, CodeResult], attack: str, status: str) -> None:
    assert results[attack].status == status


def test_memory_is_limited() -> None:
    code = "held = []\nwhile True: held.append(bytearray(b'x') * (1 << 20))\n"
    result = run_tests(code, {"inputs": [""], "outputs": [""]}, memory_limit_mb=100)
    assert result.status == "memory_limit"
    assert result.cases[0].memory_mb < 400


def test_state_does_not_pass_from_test_to_test() -> None:
    for name in IN_ORDER - {"calling-counter_memory"}:
        result = run_tests(ATTACKS[f"{name}-cases"][0], CASES)
        assert (result.passed, result.status) == (1, "wrong_answer"), name


def test_nothing_is_left_behind() -> None:
    """Programs that leave threads, files and locks end with their process."""
    mark = f"{os.getpid()}-left"
    code = (
        "import threading, time\n"
        f"open('/tmp/{mark}', 'w').write('x')\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "import os; os.mkdir('/tmp/folder'); os.symlink('/etc/passwd', '/tmp/link')\n"
        "print('done')\n"
    )
    tests = {"inputs": [""] * 4, "outputs": ["done"] * 4}
    assert run_tests(code, tests).status == "passed"
    look = {"inputs": [""] * 4, "outputs": ["[]"] * 4}
    assert run_tests("import os\nprint(os.listdir('/tmp'))", look).status == "passed"
    assert mark not in subprocess.run(["ls", "/tmp"], capture_output=True, text=True).stdout
