"""Rewards programs by running them: isolated, limited, and judged outside on plain data.

Expected values never enter the sandbox of the program under test. Printed output and returned
values are compared here, as text and tagged JSON. Assert-style tests of the form
`assert f(literals) == literal` are rewritten to that; any other test code runs in a referee, a
second sandbox that the program cannot see, with the program's names bound to stubs that carry
plain data. An object that is not plain data stays with the program and is equal to nothing: a test
that relies on the program's own `__eq__` cannot pass.

Every test runs in a fresh process, so nothing that one leaves behind reaches the next.
"""

from __future__ import annotations

import asyncio
import re
import textwrap
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from .code_compare import same_output, same_value, shown
from .code_extract import extract_code
from .code_formats import (
    CallCase,
    Case,
    RefereeCase,
    StdioCase,
    TestSet,
    prompt_prelude,
    read_tests,
)
from .completion import completion_text
from .plain_data import NotPlain, parse, to_json
from .sandbox import Lane, Limits, Outcome, SandboxLost, pool

Status = Literal[
    "passed",
    "wrong_answer",
    "runtime_error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "no_code",
    "sandbox_error",
]
Isolation = Literal["required", "unsafe"]
_PROMPTING = re.compile(r"\binput\s*\(\s*[^)\s]")


@dataclass(frozen=True)
class CaseResult:
    """How one test ended; detail is for people: what was printed, returned or raised."""

    status: Status
    detail: str = ""
    seconds: float = 0.0
    memory_mb: float = 0.0


@dataclass(frozen=True)
class CodeResult:
    """How a program did: tests passed of all, and the first failure's status."""

    passed: int
    total: int
    status: Status
    cases: list[CaseResult] = field(default_factory=list)


@dataclass(frozen=True)
class _Program:
    """One completion with its tests, ready to run."""

    code: str
    tests: TestSet
    limits: Limits

    def task(self) -> dict[str, Any]:
        """Return what the candidate's sandbox needs to load the program."""
        prelude = [self.tests.imports] if self.tests.imports else []
        source, prompt, name = self.code, self.tests.prompt, self.tests.entry_point
        if prompt and name:
            defined = rf"^((async[ \t]+)?def[ \t]+{name}\b|{name}[ \t]*=)"
            if re.search(defined, source, re.MULTILINE):
                prelude.append(prompt_prelude(prompt, name))
            else:
                source = _continued(prompt, source)
        return {"source": source, "prelude": prelude, "quiet_prompts": False}


def _continued(prompt: str, body: str) -> str:
    """Return the prompt's function with the completion as its body, indented as it must be."""
    first = next((line for line in body.split("\n") if line.strip()), "")
    if first and not first[0].isspace():
        lines = body.split("\n")
        rest = [line for line in lines[lines.index(first) + 1 :] if line.strip()]
        if rest and all(line[0].isspace() for line in rest) and not first.rstrip().endswith(":"):
            body = body.replace(first, "    " + first, 1)  # only the first line lost its place
        else:
            body = textwrap.indent(body, "    ")
    return prompt + ("" if prompt.endswith("\n") else "\n") + body


_FATES: dict[str, Status] = {
    "time_limit": "time_limit",
    "memory_limit": "memory_limit",
    "output_limit": "output_limit",
    "crashed": "runtime_error",
    "cancelled": "runtime_error",
}


def _result(outcome: Outcome, status: Status, detail: str = "") -> CaseResult:
    if status == "runtime_error" and not detail:
        lines = outcome.stderr[-4000:].decode("utf-8", "replace").strip().split("\n")
        detail = lines[-1][:300]
    return CaseResult(status, detail, round(outcome.wall_s, 4), round(outcome.memory_mb, 1))


def _run_stdio(lane: Lane, program: _Program, case: StdioCase) -> CaseResult:
    task, stdin = program.task(), case.stdin.encode("utf-8", "surrogateescape")

    def attempt(quiet_prompts: bool) -> CaseResult:
        job = task | {"quiet_prompts": quiet_prompts}
        outcome = lane.run("program", job, limits=program.limits, stdin=stdin)
        if outcome.fate != "ended":
            return _result(outcome, _FATES[outcome.fate])
        tolerance = program.tests.float_tol
        if any(same_output(outcome.stdout, text, float_tol=tolerance) for text in case.expected):
            return _result(outcome, "passed")
        return _result(
            outcome, "wrong_answer", shown(outcome.stdout[:400].decode("utf-8", "replace"))
        )

    result = attempt(False)
    if result.status == "wrong_answer" and _PROMPTING.search(program.code):
        # CPython writes the prompts of input() to a redirected stdout but not to a terminal's;
        # either way is right.
        quiet = attempt(True)
        return quiet if quiet.status == "passed" else result
    return result


def _run_calls(lane: Lane, program: _Program, case: CallCase) -> CaseResult:
    calls = [(call.name, to_json((call.args, call.kwargs))) for call in case.calls]
    outcome = lane.run("functions", program.task() | {"calls": calls}, limits=program.limits)
    if outcome.fate != "ended":
        return _result(outcome, _FATES[outcome.fate])
    try:
        tag, *results = parse(outcome.result)
    except (NotPlain, ValueError, TypeError):
        return _result(outcome, "runtime_error", "the program ended without returning")
    if tag != "list" or len(results) != len(case.calls):
        return _result(outcome, "wrong_answer", "the result is not plain data")
    options = {"float_tol": program.tests.float_tol, "strict": case.strict}
    for result, call in zip(results, case.calls, strict=True):
        if not any(same_value(result, value, **options) for value in call.expected):
            return _result(outcome, "wrong_answer", shown(result))
    return _result(outcome, "passed")


def _run_refereed(lane: Lane, program: _Program, case: RefereeCase) -> CaseResult:
    referee_task = {
        "prelude": list(program.tests.referee_prelude),
        "setup": case.setup,
        "test": case.test,
        "entry_point": case.entry_point,
        "check": case.check,
    }
    outcome, referee = lane.run_refereed(program.task(), referee_task, limits=program.limits)
    try:
        verdict, why = parse(referee.result)
    except (NotPlain, ValueError):
        verdict, why = "gone", "the test code did not end"
    if verdict == "passed" and outcome.fate in ("ended", "cancelled"):
        return _result(outcome, "passed")
    if verdict == "failed":
        return _result(outcome, "wrong_answer", why)
    if outcome.fate in ("ended", "cancelled"):
        if referee.fate in ("time_limit", "memory_limit"):
            return _result(outcome, _FATES[referee.fate], why)
        return _result(outcome, "runtime_error", why)
    return _result(outcome, _FATES[outcome.fate])


def _run_case(lane: Lane, program: _Program, case: Case) -> CaseResult:
    try:
        if isinstance(case, StdioCase):
            return _run_stdio(lane, program, case)
        if isinstance(case, CallCase):
            return _run_calls(lane, program, case)
        return _run_refereed(lane, program, case)
    except SandboxLost as error:
        return CaseResult("sandbox_error", str(error))


def _run_until_failure(lane: Lane, program: _Program) -> list[CaseResult]:
    results = []
    for case in program.tests.cases:
        results.append(_run_case(lane, program, case))
        if results[-1].status != "passed":
            break
    return results


def _summary(results: list[CaseResult], total: int) -> CodeResult:
    passed = sum(result.status == "passed" for result in results)
    failed = [result for result in results if result.status != "passed"]
    # A true failure outweighs a test that could not be run.
    failed.sort(key=lambda result: result.status == "sandbox_error")
    return CodeResult(passed, total, failed[0].status if failed else "passed", results)


def _prepare(
    completion: str, tests: Any, time_limit_s: float | None, memory_limit_mb: int | None
) -> _Program | CodeResult:
    """Read the tests and find the code; without any the result is already known."""
    read = read_tests(tests)
    code = extract_code(completion)
    if code is None:
        return CodeResult(0, len(read.cases), "no_code")
    limits = Limits(
        time_limit_s or read.time_limit_s or Limits.wall_s,
        int(memory_limit_mb or read.memory_limit_mb or Limits.memory_mb),
    )
    return _Program(code, read, limits)


def _submit(
    items: Sequence[tuple[str, Any]],
    *,
    time_limit_s: float | None,
    memory_limit_mb: int | None,
    isolation: Isolation,
    stop_at_first_failure: bool,
) -> list[tuple[int, list[Future[list[CaseResult]]]] | CodeResult]:
    """Queue every test; return, per item, its number of tests and their futures."""
    lanes = pool(isolation)
    queued: list[tuple[int, list[Future[list[CaseResult]]]] | CodeResult] = []
    for completion, tests in items:
        program = _prepare(completion, tests, time_limit_s, memory_limit_mb)
        if isinstance(program, CodeResult):
            queued.append(program)
            continue
        jobs: list[Callable[[Lane], list[CaseResult]]]
        if stop_at_first_failure:
            jobs = [lambda lane, program=program: _run_until_failure(lane, program)]
        else:
            jobs = [
                lambda lane, program=program, case=case: [_run_case(lane, program, case)]
                for case in program.tests.cases
            ]
        queued.append((len(program.tests.cases), [lanes.submit(job) for job in jobs]))
    return queued


def run_batch(
    items: Sequence[tuple[str, dict[str, Any] | str]],
    *,
    time_limit_s: float | None = None,
    memory_limit_mb: int | None = None,
    isolation: Isolation = "required",
    stop_at_first_failure: bool = False,
) -> list[CodeResult]:
    """Run many (completion, tests) pairs on all cores; results are in their order.

    Limits are per test: an argument outweighs the tests' own, the defaults are 6 s and 512 MB.
    ValueError: tests are malformed (see code_formats.read_tests), or isolation is required and
    this machine offers none.
    """
    queued = _submit(
        items,
        time_limit_s=time_limit_s,
        memory_limit_mb=memory_limit_mb,
        isolation=isolation,
        stop_at_first_failure=stop_at_first_failure,
    )
    return [
        entry
        if isinstance(entry, CodeResult)
        else _summary([result for future in entry[1] for result in future.result()], entry[0])
        for entry in queued
    ]


def run_tests(
    completion: str,
    tests: dict[str, Any] | str,
    *,
    time_limit_s: float | None = None,
    memory_limit_mb: int | None = None,
    isolation: Isolation = "required",
    stop_at_first_failure: bool = False,
) -> CodeResult:
    """Run the program in one completion against its tests; see run_batch."""
    return run_batch(
        [(completion, tests)],
        time_limit_s=time_limit_s,
        memory_limit_mb=memory_limit_mb,
        isolation=isolation,
        stop_at_first_failure=stop_at_first_failure,
    )[0]


async def arun_tests(
    completion: str,
    tests: dict[str, Any] | str,
    *,
    time_limit_s: float | None = None,
    memory_limit_mb: int | None = None,
    isolation: Isolation = "required",
    stop_at_first_failure: bool = False,
) -> CodeResult:
    """Run one program without blocking the event loop; see run_batch."""
    queued = await asyncio.to_thread(
        _submit,
        [(completion, tests)],
        time_limit_s=time_limit_s,
        memory_limit_mb=memory_limit_mb,
        isolation=isolation,
        stop_at_first_failure=stop_at_first_failure,
    )
    entry = queued[0]
    if isinstance(entry, CodeResult):
        return entry
    results = await asyncio.gather(*map(asyncio.wrap_future, entry[1]))
    return _summary([result for part in results for result in part], entry[0])


# --- the reward -----------------------------------------------------------------------------


def code_tests(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    tests: Sequence[Any],
    *,
    mode: Literal["all", "fraction"] = "all",
    time_limit_s: float | None = None,
    memory_limit_mb: int | None = None,
    isolation: Isolation = "required",
    log_extra: Callable[[str, list[Any]], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Reward 1 for a program that passes every test, or the share of tests that it passes.

    TRL's signature; the column `tests` holds a row's tests in any form of
    code_formats.read_tests, and a row without any is unscored. A test that could not be run for
    the machine's fault leaves the row unscored (None), unless mode is "all" and another failed.
    """
    if mode not in ("all", "fraction"):
        raise ValueError(f"code_tests.mode: {mode!r}; choose all or fraction")
    rows = [number for number, row_tests in enumerate(tests) if row_tests is not None]
    results = run_batch(
        [(completion_text(completions[number]), tests[number]) for number in rows],
        time_limit_s=time_limit_s,
        memory_limit_mb=memory_limit_mb,
        isolation=isolation,
        stop_at_first_failure=mode == "all",
    )
    scores: list[float | None] = [None] * len(completions)
    statuses: list[str | None] = [None] * len(completions)
    for number, result in zip(rows, results, strict=True):
        scores[number], statuses[number] = row_score(result, mode), result.status
    if log_extra is not None:
        log_extra("code_status", statuses)
    return scores


def row_score(result: CodeResult, mode: str = "all") -> float | None:
    """The reward of one result, all or nothing or a fraction; None where the sandbox failed."""
    if mode == "fraction" and any(case.status == "sandbox_error" for case in result.cases):
        return None
    if result.status == "sandbox_error":
        return None
    return (
        float(result.status == "passed") if mode == "all" else result.passed / max(1, result.total)
    )
