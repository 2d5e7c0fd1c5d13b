"""Right and wrong pairs by class, numbers against independent values, golds against themselves."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import mpmath
import pytest
from thinkrl.rewards.math_answer import check_golds, explain, verify
from thinkrl.rewards.math_extract import gold_text
from thinkrl.rewards.math_read import read
from thinkrl.rewards.math_show import show

from .math_pairs import COMPLETIONS, NUMERIC, RIGHT, WRONG


def wrong_verdicts(pairs: list[tuple[str, str]], *, right: bool) -> list[tuple[str, str]]:
    return [
        (gold, answer)
        for gold, answer in pairs
        for completion in (answer, f"So the result is \\boxed{{{answer}}}.")
        if verify(completion, gold) is not right
    ]


def test_there_are_enough_pairs() -> None:
    pairs = sum(map(len, RIGHT.values())) + sum(map(len, WRONG.values())) + len(COMPLETIONS)
    assert pairs + len(NUMERIC) >= 800


@pytest.mark.parametrize("group", RIGHT)
def test_right_pairs_are_accepted(group: str) -> None:
    assert wrong_verdicts(RIGHT[group], right=True) == []


@pytest.mark.parametrize("group", WRONG)
def test_wrong_pairs_are_rejected(group: str) -> None:
    assert wrong_verdicts(WRONG[group], right=False) == []


@pytest.mark.parametrize(("gold", "completion", "right"), COMPLETIONS)
def test_the_final_answer_is_found(gold: str, completion: str, right: bool) -> None:
    assert verify(completion, gold) is right


def independent_values() -> list[tuple[str, object]]:
    """The forms of NUMERIC with the values of their expressions at 60 digits."""
    mpmath.mp.dps = 60
    names = {name: getattr(mpmath, name) for name in dir(mpmath)}
    values = []
    for form, expression in NUMERIC:
        if expression != "nan":
            values.append((form, eval(expression, dict(names))))
    return values


def test_numbers_agree_exactly_where_their_independent_values_do() -> None:
    forms = independent_values()
    draw = random.Random(7)
    pairs = [(a, b) for a in forms for b in forms]
    equal = [(a, b) for a, b in pairs if same(a[1], b[1])]
    others = draw.sample([pair for pair in pairs if not same(pair[0][1], pair[1][1])], 2500)
    for (left, a), (right, b) in equal + others:
        assert verify(left, right) is same(a, b), (left, right)


def same(a, b) -> bool:
    if a == 0:
        return b == 0
    return bool(abs(a - b) <= abs(a) * mpmath.mpf(10) ** -40)


# ---- public data


def rows(folder: Path, *names: str) -> list[dict]:
    return [json.loads(line) for name in names for line in (folder / name).open()]


def test_golds_of_math_match_themselves(data_dir: Path) -> None:
    golds = [row["answer"] for row in rows(data_dir / "math", "train.jsonl", "test.jsonl")]
    bad = set(check_golds(sorted(set(golds))))
    names = sorted(set(golds))
    failed = sum(golds.count(names[row]) for row in bad)
    assert len(golds) == 12_500
    assert failed <= len(golds) * 0.001, [names[row] for row in bad]


def test_golds_of_gsm8k_match_themselves(data_dir: Path) -> None:
    golds = [row["answer"] for row in rows(data_dir / "gsm8k", "train.jsonl", "test.jsonl")]
    for gold in golds:
        assert "####" in gold
    assert check_golds(golds) == []


def test_reference_solutions_of_math_are_right(data_dir: Path) -> None:
    tests = rows(data_dir / "math", "test.jsonl")[::4]
    right = sum(verify(row["solution"], row["answer"]) for row in tests if row["answer"].strip())
    assert right >= 0.995 * len(tests)


def test_restated_golds_of_math_are_right(data_dir: Path) -> None:
    golds = sorted({row["answer"] for row in rows(data_dir / "math", "test.jsonl")} - {""})
    for restate in (str, plain_fractions, spaced, styled):
        wrong = [g for g in golds if not verify(f"The answer is ${restate(g)}$.", g)]
        assert len(wrong) <= 0.01 * len(golds), wrong[:20]


def plain_fractions(gold: str) -> str:
    return re.sub(r"(?<![0-9 ])\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}", r"(\1/\2)", gold)


def spaced(gold: str) -> str:
    return gold.replace("+", " + ").replace(" ", r"\, ").replace("\\frac", "\\dfrac")


def styled(gold: str) -> str:
    return r"\displaystyle " + gold.replace("(", r"\left(").replace(")", r"\right)").replace(
        r"\left\left", r"\left"
    ).replace(r"\right\right", r"\right")


def change_digit(gold: str, draw: random.Random) -> str | None:
    places = [m.start() for m in re.finditer("[0-9]", gold)]
    if not places:
        return None
    at = draw.choice(places)
    return gold[:at] + str((int(gold[at]) + draw.randint(1, 8)) % 10) + gold[at + 1 :]


def change_sign(gold: str, draw: random.Random) -> str | None:
    zero = not re.search("[1-9a-z]", re.sub(r"\\[a-z]+\{pmatrix\}", "", gold))  # or a zero vector
    return None if zero or gold.startswith("0") else gold[1:] if gold[0] == "-" else "-" + gold


def drop_item(gold: str, draw: random.Random) -> str | None:
    head, comma, last = gold.rpartition(",")
    return head + ")" * last.count(")") if comma and last.strip() and "!" not in last[:2] else None


def change_bracket(gold: str, draw: random.Random) -> str | None:
    if "," not in gold or "\\text" in gold:
        return None
    for old, new in (("(", "["), ("[", "("), (")", "]"), ("]", ")")):
        if old in gold:
            return gold.replace(old, new, 1)
    return None


@pytest.mark.parametrize("change", [change_digit, change_sign, drop_item, change_bracket])
def test_perturbed_golds_of_math_are_wrong(data_dir: Path, change) -> None:
    draw = random.Random(3)
    golds = sorted({row["answer"] for row in rows(data_dir / "math", "train.jsonl")} - {""})
    accepted = []
    for gold in golds:
        other = change(gold, draw)
        if other and other.strip() != gold.strip() and verify(f"\\boxed{{{other}}}", gold):
            accepted.append((gold, other))
    assert len(accepted) <= 0.001 * len(golds), accepted


def test_recorded_answers_with_score_one_are_right(data_dir: Path) -> None:
    traces = rows(data_dir / "r1_traces", "short_zero_style.jsonl")
    skip = (
        "integration",
        "decimal",
        "power_function",
        "advanced_geometry",
    )  # rounded, or without C
    traces = [t for t in traces if not any(name in t["task"] for name in skip)]
    wrong = [t["gold"] for t in traces if not verify(t["messages"][-1]["content"], t["gold"])]
    assert len(traces) > 300
    assert wrong == []


def test_explain_names_what_was_read_and_the_rule() -> None:
    report = explain(r"so \boxed{0.5}", r"\frac12")
    assert report["correct"] and report["status"] == "matched" and report["rule"] == "number"
    assert report["extracted"] == ["0.5"] and report["source"] == "box"
    assert report["gold_read"] == ["1/2"] and report["answer_read"] == ["1/2"]
    assert explain("<think>5", "5")["status"] == "no_answer"
    assert explain("6", "5")["status"] == "different"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("4", "4"), (r"\frac{2}{4}", "1/2"), ("0.35", "7/20"), (r"25\%", "25 %"),
        (r"5\text{ cm}", "5 cm"), ("12 cm^2", "12 cm^2"), ("$18", "18 dollar"),
        (r"9.8\text{ m/s}^2", "49/5 m*s^-2"), (r"30^\circ", "30 degree"), ("(1, 2]", "(1, 2]"),
        ("x<3", "(-infinity, 3)"), (r"[1,2]\cup\{3\}", "[1, 2] U {3}"), (r"\{1,2\}", "{1, 2}"),
        ("1 and 2", "1, 2"), ("(1,2)", "(1, 2)"), ("x^2+1", "x^2+1"), ("-(x+1)^2", "-(x+1)^2"),
        (r"2\sqrt3-i", "2*sqrt(3)-i"), (r"\frac{1}{x+1}", "1/(x+1)"), ("y=2x", "y = 2*x"),
        ("x^2+y^2=4", "x^2+y^2 = 4"), ("x+y<3", "x+y < 3"), ("3:2", "3 : 2"),
        (r"3\pmod 5", "3 mod 5"), ("1011_2", "1011 (base 2)"), ("9 a.m.", "9 am"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "[[1, 2], [3, 4]]"), ("(B)", "choice B"),
        ("Evelyn", "text: evelyn"), (r"\int_0^1 x dx", "int(x, 0, 1, x)"),
        ("1" * 400, "1" * 297 + "..."),
    ],
)  # fmt: skip
def test_readings_are_shown_as_plain_text(answer: str, text: str) -> None:
    assert show(read(answer)[0]) == text


def test_gold_text_finds_the_answer_in_a_whole_solution() -> None:
    assert gold_text("Two and two.\n#### 4") == "4"
    assert gold_text(r"Hence $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert gold_text("<think>x</think><answer>7</answer>") == "7"
