"""Programs per second, end to end: the code reward beside plain and isolated interpreters.

    python tests/benchmarks/code_throughput.py [--programs 400] [--rounds 3]

Each program is small, has one test and is started, fed, limited, read and judged. The ways take
turns within each round, so that a busy machine weighs on all of them alike; each rate is the
best round's. `python -I -S` has no isolation at all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from thinkrl.rewards.code_tests import run_batch
from thinkrl.rewards.isolation import interpreter, launchers
from thinkrl.rewards.sandbox import isolation_level

SCRIPT = """
import sys
def solve(numbers):
    best = current = numbers[0]
    for number in numbers[1:]:
        current = max(number, current + number)
        best = max(best, current)
    return best
"""
MAIN = "n = int(input())\nprint(solve(list(map(int, sys.stdin.readline().split()))))\n"
Item = tuple[str, dict[str, Any]]


def stdio_items(count: int) -> list[Item]:
    inputs = [f"4\n{i} -{i + 1} {i + 2} {i}\n" for i in range(count)]
    code = f"```python\n{SCRIPT}{MAIN}```"
    return [(code, {"inputs": [s], "outputs": [str(2 * i + 2)]}) for i, s in enumerate(inputs)]


def function_items(count: int) -> list[Item]:
    cases = [{"args": [[i, -i - 1, i + 2, i]], "expected": 2 * i + 2} for i in range(count)]
    return [(SCRIPT, {"fn_name": "solve", "cases": [case]}) for case in cases]


def referee_items(count: int) -> list[Item]:
    check = "def check(candidate):\n    assert abs(candidate([1, -2, 3]) - 3) < 1e-9\n"
    return [(SCRIPT, {"entry_point": "solve", "prompt": "", "test": check})] * count


def with_reward(items: list[Item]) -> None:
    results = run_batch(items)
    assert all(result.status == "passed" for result in results), results[0]


def with_processes(items: list[Item], prefix: list[str]) -> None:
    """Start an interpreter per test, as many at a time as there are cores."""
    command = [*prefix, interpreter().executable, "-I", "-S", "-c", SCRIPT + MAIN]

    def run(item: Item) -> None:
        stdin, expected = item[1]["inputs"][0], item[1]["outputs"][0]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == expected, done.stderr

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(run, items))


def ways(count: int) -> dict[str, Callable[[], None]]:
    stdio = stdio_items(count)
    chosen = {
        "code reward, stdin and stdout": lambda: with_reward(stdio),
        "code reward, functions": lambda: with_reward(function_items(count)),
        "code reward, check() in a referee": lambda: with_reward(referee_items(count)),
        "python -I -S per test, not isolated": lambda: with_processes(stdio, []),
    }
    if any(launcher.name == "bubblewrap" for launcher in launchers()):
        # The whole system is visible here: only the cost of starting is compared.
        bwrap = ["bwrap", "--unshare-all", "--ro-bind", "/", "/"]
        chosen["bubblewrap per test"] = lambda: with_processes(stdio, bwrap)
    return chosen


def measure(count: int, rounds: int) -> dict[str, float]:
    rates: dict[str, float] = {}
    for _ in range(rounds):
        for name, way in ways(count).items():
            started = time.perf_counter()
            way()
            rate = count / (time.perf_counter() - started)
            rates[name] = max(rates.get(name, 0.0), rate)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    with_reward(stdio_items(8) + referee_items(8))  # starts the sandboxes
    rates = measure(options.programs, options.rounds)
    base = rates["python -I -S per test, not isolated"]
    cores = len(os.sched_getaffinity(0))
    print(f"{isolation_level()}; {cores} cores, load {os.getloadavg()[0]:.1f}")
    for name, rate in rates.items():
        print(f"{rate:8.0f}/s  {rate / base:5.2f}x  {name}")
    if options.output:
        facts = {
            "date": time.strftime("%Y-%m-%d"),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "cores": cores,
            "isolation": isolation_level(),
            "programs": options.programs,
            "per_second": {name: round(rate, 1) for name, rate in rates.items()},
        }
        options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
