"""The maths reward as used: options, reward function, hostile input, threads, processes, event
loops.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from thinkrl.rewards.math_answer import check_golds, explain, math_answer, verify
from thinkrl.rewards.math_eval import MAX_STEPS
from thinkrl.rewards.math_extract import boxes

# name -> completion; no gold below is met by any of them
HOSTILE: dict[str, str] = {
    "power tower": r"\boxed{9^{9^{9^9}}}",
    "tower of two thousand": "\\boxed{" + "^".join(["9"] * 2000) + "}",
    "factorial": r"\boxed{(10^9)!}",
    "factorial by name": "factorial(10**9)",
    "factorials": r"\boxed{((9!)!)!}",
    "binomial": r"\boxed{\binom{10^9}{5\cdot10^8}}",
    "polynomial": r"\boxed{(x^{10^8}+1)^{10^8}}",
    "math-verify issue 65": r"\boxed{\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}}",
    "nested braces": "\\boxed{" + "{" * 100_000 + "}" * 100_000 + "}",
    "open braces": "{" * 1_000_000,
    "open boxes": "\\boxed{" * 100_000,
    "many boxes": "\\boxed{1}" * 100_000,
    "display openers": "\\[" * 10_000,
    "inline openers": "\\(" * 8_000,
    "brackets": "\\boxed{" + "(" * 2500 + "1" + ")" * 2500 + "}",
    "minus signs": "\\boxed{" + "-" * 5000 + "1}",
    "nested fractions": "\\boxed{" + "\\frac{1}{" * 700 + "1" + "}" * 700 + "}",
    "nested roots": "\\boxed{" + "\\sqrt{" * 700 + "2" + "}" * 700 + "}",
    "nested text": "\\boxed{" + "\\text{" * 800 + "1" + "}" * 800 + "}",
    "a million digits": "\\boxed{" + "9" * 1_000_000 + "}",
    "5,900 digits": "\\boxed{" + "9" * 5900 + "}",
    "exponent": r"\boxed{1e999999999}",
    "long sum": r"\boxed{\sum_{k=1}^{10^9} k}",
    "double sum": r"\boxed{\sum_{k=1}^{3000}\sum_{j=1}^{3000} kj}",
    "long list": "\\boxed{" + ",".join(map(str, range(1500))) + "}",
    "plus-minus": "\\boxed{" + "\\pm1" * 60 + "}",
    "sine of a tower": r"\boxed{\sin(10^{10^6})}",
    "floor": r"\boxed{\lfloor \pi\cdot 10^{1000000}\rfloor}",
    "exponentials": r"\boxed{e^{e^{e^{e^{e}}}}}",
    "statements": "the answer is " * 100_000,
    "hashes": "####" * 200_000,
    "thinks": "<think>" * 200_000,
    "answer tags": "<answer>1</answer>" * 50_000,
    "open answer tags": "<answer>" * 50_000,
    "blanks": " " * 1_000_000 + "?",
    "lines": "\n" * 1_000_000 + "?",
    "words": "word " * 200_000,
    "ones": "1 " * 100_000,
    "backslashes": "\\" * 100_001,
    "a null": "\\boxed{\x00}",
    "a surrogate": "\\boxed{\ud800}",
    "bars": "\\boxed{" + "|x" * 2500 + "}",
    "inequalities": "\\boxed{" + "x<" * 900 + "1}",
    "intervals": "\\boxed{" + "\\cup".join(f"({i},{i}.5)" for i in range(300)) + "}",
    "equations": "\\boxed{" + "=".join(["\\sqrt{2}"] * 400) + "}",
    "division by zero": r"\boxed{\frac{1}{0}}",
    "logarithm to base zero": r"\boxed{\log_0 5}",
    "python": "__import__('os').system('true')",
    "format string": "\\boxed{{0.__class__}}",
}
GOLDS = ("5", r"\frac{\sqrt{2}}{3}", "x^2+1", "(1,2)", "1, 2, 3", "x<3", "B", r"\text{cat}")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_completions_are_wrong_and_cheap(name: str) -> None:
    for gold in GOLDS:
        report = explain(HOSTILE[name], gold, timeout_s=2.0)
        assert report["correct"] is False
        assert report["status"] in ("different", "no_answer", "timeout")


@pytest.mark.parametrize("name", [n for n, text in HOSTILE.items() if len(text) < 20_000])
def test_hostile_golds_are_read_or_refused(name: str) -> None:
    try:
        assert verify("5", HOSTILE[name], timeout_s=1.0) is False
    except ValueError as error:
        assert "\n" not in str(error) and "math_answer" in str(error)


def test_a_slow_verdict_is_a_recorded_timeout() -> None:
    report = explain("2", r"\int_0^1 x^{x^{x^{x^x}}} dx", timeout_s=0.3)
    assert report["correct"] is False and report["status"] in ("timeout", "different")
    assert verify(r"\frac{1}{3}", r"\int_0^1 x^2\,dx", timeout_s=10)  # the pool goes on


def test_calculus_in_the_workers() -> None:
    assert verify(r"\frac{\pi^2}{6}", r"\sum_{k=1}^{\infty}\frac{1}{k^2}", timeout_s=10)
    assert verify("1", r"\lim_{x\to 0}\frac{\sin x}{x}", timeout_s=10)
    assert verify("3x^2", r"\frac{d}{dx}(x^3)", timeout_s=10)
    assert verify("xy = 3", r"y = \frac{3}{x}", timeout_s=10)
    assert not verify("0.33", r"\int_0^1 x^2\,dx", timeout_s=10)
    assert not verify(r"\int_0^1 x^2\,dx", r"\frac13")  # the question restated
    assert verify(r"\int_0^1 x^2\,dx", r"\frac13", unevaluated=True, timeout_s=10)


def test_budget_bounds_the_work_of_one_verdict() -> None:
    nested = "+".join(rf"\sum_{{k=1}}^{{2000}} \sin(k {n})" for n in range(1, 60))
    report = explain(f"\\boxed{{{nested}}}", r"\sum_{k=1}^{2} k", timeout_s=1.0)
    assert report["correct"] is False and MAX_STEPS < 10**6


# ---- golds and options


@pytest.mark.parametrize(
    "gold", ["", "   ", "$$", r"\boxed{}", "####", "x" * 7000, r"\frac{1}{", "(1, 2", "???"]
)
def test_an_unreadable_gold_raises(gold: str) -> None:
    with pytest.raises(ValueError, match="math_answer: the gold"):
        verify("5", gold)


@pytest.mark.parametrize("gold", [None, [], True, {"a": 1}])
def test_a_gold_of_another_type_raises(gold: object) -> None:
    with pytest.raises(ValueError, match="math_answer: the gold"):
        verify("5", gold)  # type: ignore[arg-type]


def test_a_list_of_golds_is_a_list_of_alternatives() -> None:
    assert verify("0.5", ["7", r"\frac12"])
    assert not verify("8", ["7", r"\frac12"])


def test_check_golds_names_the_rows() -> None:
    assert check_golds(["5", "", r"\frac{1}{2}", None, ["1", "2"]]) == [1, 3]


def test_rounding_is_an_option() -> None:
    assert not verify("0.333", r"\frac13")
    assert verify("0.333", r"\frac13", rounding=3)
    assert verify("0.3333", r"\frac13", rounding=3)
    assert not verify("0.33", r"\frac13", rounding=3)
    assert not verify("0.334", r"\frac13", rounding=3)
    assert verify("3.14", r"\pi", rounding=2)
    assert not verify("3.15", r"\pi", rounding=2)


def test_options_make_texts_count_as_letters() -> None:
    options = ["3 cm", "5 cm", r"\frac{1}{2}", "none"]
    assert not verify("5 cm", "B")
    assert verify("5 cm", "B", options=options)
    assert verify("0.5", "C", options=options)
    assert verify("B", "5 cm", options=options)
    assert not verify("3 cm", "B", options=options)
    assert verify("the answer is 5 cm", "B", options={"A": "3 cm", "B": "5 cm"})


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown option 'tolerance'"):
        verify("5", "5", tolerance=1)


# ---- the reward function


def test_reward_of_strings_and_messages() -> None:
    chat = [
        [{"role": "assistant", "content": r"\boxed{4}"}],
        [{"role": "assistant", "content": "5"}],
    ]
    assert math_answer(["q", "q"], chat, answer=["4", "4"]) == [1.0, 0.0]
    assert math_answer(None, [r"\boxed{4}", "no"], answer=["4", "4"]) == [1.0, 0.0]


def test_an_unreadable_gold_masks_its_row() -> None:
    assert math_answer(None, ["4", "4", "4"], answer=["4", "", None]) == [1.0, None, None]


def test_number_columns_are_golds() -> None:
    assert math_answer(None, ["145", "0.5", "7"], answer=[145.0, 0.5, 7]) == [1.0, 1.0, 1.0]


def test_reward_logs_its_rules_and_refuses_a_wrong_length() -> None:
    logged: dict[str, list] = {}
    math_answer(None, ["4", "5"], answer=["4", "4"], log_extra=logged.__setitem__)
    assert logged == {"math_answer_rule": ["number", "different"]}
    with pytest.raises(ValueError, match="1 answers for 2 completions"):
        math_answer(None, ["4", "5"], answer=["4"])


def test_reward_options_come_as_keywords_and_columns() -> None:
    assert math_answer(None, ["0.33"], answer=[r"\frac13"], rounding=2) == [1.0]
    assert math_answer(None, ["5 cm"], answer=["B"], options=[["3 cm", "5 cm"]]) == [1.0]


# ---- any thread, process, event loop

CASES = [
    (r"\boxed{\sqrt{12}}", r"2\sqrt3", True),
    ("9^{9^{9^9}}", "5", False),
    ("x<3", r"(-\infty,3)", True),
] * 20


def verdicts(_: int = 0) -> list[bool]:
    return [verify(completion, gold) for completion, gold, _ in CASES]


def test_from_threads() -> None:
    expected = [right for _, _, right in CASES]
    with ThreadPoolExecutor(4) as threads:
        assert all(found == expected for found in threads.map(verdicts, range(8)))


def test_from_processes() -> None:
    verdicts()  # the parent's workers and caches are not for the child
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=context) as processes:
        for found in processes.map(calculus, range(4)):
            assert found is True


def calculus(_: int) -> bool:
    return verify(r"\frac13", r"\int_0^1 x^2\,dx", timeout_s=20)


def test_from_an_event_loop_in_a_thread_without_signals() -> None:
    async def both() -> list[bool]:
        return await asyncio.gather(*(asyncio.to_thread(verify, c, g) for c, g, _ in CASES))

    handler, alarm = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    found: list[list[bool]] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(both())))
    thread.start()
    thread.join(60)
    assert found == [[right for _, _, right in CASES]]
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == alarm


def test_the_callers_alarm_survives() -> None:
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        verify(r"\boxed{\sqrt{2}}", r"\sqrt{2}")
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_the_box_scan_is_one_pass() -> None:
    nested = "\\boxed{" * 3 + "5" + "}" * 3
    assert [content for _, _, content in boxes(nested)] == ["\\boxed{\\boxed{5}}"]
    assert [content for _, _, content in boxes(r"\boxed{a}\{\boxed{b}\}\boxed 7")] == [
        "a",
        "b",
        "7",
    ]
    started = time.process_time()
    assert boxes("\\boxed{" * 100_000) == []
    assert time.process_time() >= started
