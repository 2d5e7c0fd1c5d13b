"""Length, repetition, steps, language and countdown rewards on published and hand-made values."""

from __future__ import annotations

import itertools
import json
import math
import random
from fractions import Fraction
from typing import Any

import pytest
from thinkrl.rewards.compose import RewardSuite
from thinkrl.rewards.countdown import countdown, expression_value
from thinkrl.rewards.language import LANGUAGES, language_consistency, script_share
from thinkrl.rewards.length import (
    cosine_length,
    kimi_length,
    length_budget,
    reasoning_steps,
    repetition,
    soft_overlong,
)
from thinkrl.rewards.registry import load_reward
from trl.rewards.accuracy_rewards import get_cosine_scaled_reward
from trl.rewards.other_rewards import (
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
)

RIGHT, WRONG = "<think>a</think>4", "<think>a</think>5"


def ids(*lengths):
    return [[7] * length for length in lengths]


# DAPO


def test_soft_overlong_on_the_papers_formula():
    lengths = [0, 80, 81, 90, 99, 100, 101, 1000]
    expected = [0.0, 0.0, -0.05, -0.5, -0.95, -1.0, -1.0, -1.0]
    ours = soft_overlong(ids(*lengths), max_completion_len=100, soft_punish_cache=20)
    assert ours == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("limit", "cache"), [(100, 20), (64, 64), (7, 1), (50, 0)])
def test_soft_overlong_is_trls(limit, cache):
    lengths = ids(*range(limit + 20))
    theirs = get_soft_overlong_punishment(limit, cache)(completion_ids=lengths)
    assert soft_overlong(lengths, max_completion_len=limit, soft_punish_cache=cache) == theirs


@pytest.mark.parametrize("cache", [-1, 101])
def test_soft_overlong_refuses_a_cache_outside_the_limit(cache):
    with pytest.raises(ValueError, match=f"soft_punish_cache = {cache}"):
        soft_overlong(ids(3), max_completion_len=100, soft_punish_cache=cache)


# cosine


def test_cosine_on_published_values():
    lengths = ids(0, 25, 50, 75, 100, 150)
    right = cosine_length(["q"] * 6, [RIGHT] * 6, lengths, max_len=100, answer=["4"] * 6)
    wrong = cosine_length(["q"] * 6, [WRONG] * 6, lengths, max_len=100, answer=["4"] * 6)
    assert right == pytest.approx([1, 0.9268, 0.75, 0.5732, 0.5, 0.5], abs=1e-4)
    assert wrong == pytest.approx([-1, -0.9268, -0.75, -0.5732, -0.5, -0.5], abs=1e-4)


def test_cosine_is_trls_where_both_verifiers_agree():
    values: dict[str, Any] = {
        "min_value_wrong": -0.8,
        "max_value_wrong": -0.1,
        "min_value_correct": 0.2,
        "max_value_correct": 1.5,
    }
    lengths = ids(0, 1, 13, 40, 77, 90)
    texts = ["\\boxed{4}", "\\boxed{5}"] * 3
    theirs = get_cosine_scaled_reward(77, **values)(
        completions=[[{"content": text}] for text in texts],
        solution=["$4$"] * 6,
        completion_ids=lengths,
    )
    ours = cosine_length(["q"] * 6, texts, lengths, max_len=77, answer=["4"] * 6, **values)
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_cosine_asks_the_verifier_that_is_named():
    tagged = "<think>a</think><answer>4</answer>"
    options = {"max_len": 10, "verifier": "think_format", "verifier_kwargs": {"answer_tags": True}}
    suite = RewardSuite([load_reward("cosine_length", options)])
    scores = suite.score(["q"] * 2, [tagged, "<think>a</think>4"], ids(10, 10))
    assert scores.total == pytest.approx([0.5, -0.5])


def test_what_the_verifier_cannot_score_stays_unscored():
    golds = ["4", None]
    assert cosine_length(["q"] * 2, [RIGHT] * 2, ids(0, 0), max_len=9, answer=golds) == [1.0, None]
    assert kimi_length(["q"] * 2, [RIGHT] * 2, ids(1, 3), answer=golds) == [0.5, None]
    assert length_budget(["q"] * 2, [RIGHT] * 2, ids(1, 3), 3, answer=golds)[1] is None


def test_mistakes_of_shaping_rewards_are_named():
    with pytest.raises(ValueError, match="max_len = 0"):
        cosine_length(["q"], [RIGHT], ids(1), max_len=0, answer=["4"])
    suite = RewardSuite([load_reward("cosine_length", {"max_len": 9})])
    with pytest.raises(ValueError, match="'exact_answer' needs 'answer': no such column"):
        suite.score(["q"], [RIGHT], ids(1))
    with pytest.raises(ValueError, match="mode = 'soft'"):
        load_reward("length_budget", {"mode": "soft", "target_length": 3})(
            ["q"], [RIGHT], ids(1), answer=["4"]
        )
    with pytest.raises(ValueError, match="max_penalty = 1"):
        repetition(ids(3), max_penalty=1)
    with pytest.raises(ValueError, match="ngram_size = 0"):
        repetition(ids(3), ngram_size=0)
    with pytest.raises(ValueError, match="steps = 0"):
        reasoning_steps(["a"], steps=0)


# Kimi


def test_kimi_length_by_hand():
    """Lengths 10, 20, 30: l = .5, 0, -.5; wrong answers lose the positive part."""
    completions = [RIGHT, RIGHT, RIGHT, WRONG, WRONG, WRONG]
    prompts = ["p"] * 6
    lengths = ids(10, 20, 30, 10, 20, 30)
    expected = [0.5, 0.0, -0.5, 0.0, 0.0, -0.5]
    assert kimi_length(prompts, completions, lengths, answer=["4"] * 6) == expected


def test_kimi_length_compares_completions_of_one_prompt_only():
    prompts = ["p", "q", "p", "q", "r", "r"]
    lengths = ids(10, 100, 30, 300, 5, 5)
    rewards = kimi_length(prompts, [RIGHT] * 6, lengths, answer=["4"] * 6)
    assert rewards == [0.5, 0.5, -0.5, -0.5, 0.0, 0.0]
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert kimi_length(chats, [RIGHT] * 6, lengths, answer=["4"] * 6) == rewards


# L1


def test_length_budget_by_hand():
    four = (["q"] * 4, [RIGHT, RIGHT, WRONG, WRONG], ids(900, 1300, 900, 1300))
    exact = length_budget(*four, 1000, answer=["4"] * 4)
    assert exact == pytest.approx([1 - 0.03, 1 - 0.09, -0.03, -0.09])
    at_most = length_budget(*four, 1000, mode="max", answer=["4"] * 4)
    assert at_most == pytest.approx([0.53, 0.41, 0.0, 0.0])
    clipped = length_budget(*four, [9999, 0, 0, 0], mode="max", alpha=0.01, answer=["4"] * 4)
    assert clipped == [1.0, 0.0, 0.0, 0.0]


def test_length_budget_takes_the_target_from_a_column_or_the_recipe():
    columns = {"answer": ["4", "4"], "target_length": [100, 200]}
    from_column = RewardSuite([load_reward("length_budget", {"alpha": 0.01})])
    assert from_column.score(["q"] * 2, [RIGHT] * 2, ids(100, 100), columns).total == [1.0, 0.0]
    bound = RewardSuite([load_reward("length_budget", {"alpha": 0.01, "target_length": 150})])
    assert bound.score(["q"] * 2, [RIGHT] * 2, ids(100, 100), columns).total == [0.5, 0.5]


# repetition and steps


def test_repetition_on_published_values():
    rows = [[1, 2, 3, 4], [5] * 5, [1, 2] * 3, [1], []]
    assert repetition(rows, ngram_size=2) == pytest.approx([0, -0.75, -0.6, 0, 0], abs=1e-12)


@pytest.mark.parametrize("ngram_size", [1, 2, 3, 7])
def test_repetition_is_trls(ngram_size):
    rng = random.Random(ngram_size)
    rows = [[rng.randrange(4) for _ in range(rng.randrange(40))] for _ in range(50)]
    theirs = get_repetition_penalty_reward(ngram_size, max_penalty=-0.5)(completion_ids=rows)
    assert repetition(rows, ngram_size=ngram_size, max_penalty=-0.5) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", 0),
        ("The answer is 4.", 0),
        ("Step 1: add. Step 2: stop.", 2),
        ("1. add\n2. stop", 1),
        ("plan:\n- a\n- b\n* c\n- d", 4),
        ("First, add. Second, stop. Next, check. Finally, 4.", 4),
        ("Step one: first, nothing counts.", 0),
    ],
)
def test_reasoning_steps(text, steps):
    assert reasoning_steps([text]) == [min(1.0, steps / 3)]
    assert reasoning_steps([[{"role": "assistant", "content": text}]], steps=8) == [steps / 8]


# language


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("Let us add two and two.", "en", 1.0),
        ("Let us add two and two.", "zh", 0.0),
        ("\u6211\u4eec\u6765\u7b97", "zh", 1.0),
        ("\u6211\u4eec add", "zh", 2 / 5),
        ("\u6211\u4eec add", "en", 3 / 5),
        ("\u3053\u308c\u306f\u6570\u5b57\u3067\u3059", "ja", 1.0),
        ("\uc548\ub155 \ud558\uc138\uc694", "ko", 1.0),
        ("\u0421\u043b\u043e\u0436\u0438\u043c \u0434\u0432\u0430", "ru", 1.0),
        ("\u0421\u043b\u043e\u0436\u0438\u043c abc", "ru", 6 / 9),
        ("\u0645\u0631\u062d\u0628\u0627", "ar", 1.0),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "hi", 1.0),
        ("na\u00efve \u00dcbung", "de", 1.0),
        ("12 + 34 = 46 !?", "zh", 1.0),  # no letter at all
        ("", "zh", 1.0),
        ("\u6211\u4eec `code here` $x + y$ \\(abc\\) \\[z\\] $$w$$", "zh", 1.0),
        ("\u6211\u4eec\n```python\nprint('hello')\n```\n\u597d", "zh", 1.0),
        ("\u6211\u4eec \\frac \\alpha <b>", "zh", 1.0),
        ("it costs $5 and\nthen $6 more", "en", 1.0),
        ("\u6211 costs $5", "zh", 1 / 6),  # a lone dollar opens nothing
        ("the angle \u03b8 and \u03b1", "en", 1.0),  # lone Greek letters are variables
        ("\u03b3\u03b5\u03b9\u03b1 abc", "el", 4 / 7),
        ("\u03b3\u03b5\u03b9\u03b1 abc", "en", 3 / 7),
        ("hello", "en-GB", 1.0),
        ("hello", "EN_us", 1.0),
    ],
)
def test_script_share(text, language, share):
    assert script_share(text, language) == pytest.approx(share)


def test_language_consistency_reads_the_thinking_and_a_column():
    mixed = "<think>\u6211\u4eec</think>The answer is 4."
    assert language_consistency(["q"], [mixed], language="zh") == [1.0]
    assert language_consistency(["q"], [mixed]) == [0.0]
    opened = "\u6211\u4eec</think>4 is right"
    assert language_consistency(["<think>"], [opened], language="zh") == [1.0]
    assert language_consistency(["q"] * 2, [mixed] * 2, language=["zh", "en"]) == [1.0, 0.0]
    suite = RewardSuite([load_reward("language_consistency")])
    assert suite.score(["q"], [mixed], None, {"language": ["zh"]}).total == [1.0]
    with pytest.raises(ValueError, match="language = 'xx': unknown; codes: am, ar"):
        script_share("a", "xx")
    assert len(LANGUAGES) > 45


@pytest.mark.parametrize("unit", ["$", "`", "\\(", "$\n", "```", "$$ \\[ "])
def test_fences_are_read_in_one_pass(unit):
    """Two megabytes of fences: reading again from every fence would not end."""
    assert script_share(unit * (2_000_000 // len(unit)), "en") == 1.0


# countdown


@pytest.mark.parametrize(
    ("answer", "numbers", "value"),
    [
        ("64 + ((62 + 89) - 16)", [16, 62, 64, 89], 199),
        ("66 - (64 - 9)", [66, 9, 64], 11),
        ("8/(3-8/3)", [8, 8, 3, 3], 24),  # needs exact fractions
        ("1/3", [1, 3], Fraction(1, 3)),
        ("8 * 3 = 24", [3, 8], 24),
        ("8 * 3 = 24.", [3, 8], 24),
        ("$8 \\times 3$", [3, 8], 24),
        ("\\frac{8}{3}", [3, 8], Fraction(8, 3)),
        ("\\left(8 - 3\\right) \\cdot 2", [2, 3, 8], 10),
        ("8 \u00d7 3 \u00f7 2 \u2212 1", [1, 2, 3, 8], 11),
        ("-3 + 8", [3, 8], 5),
        ("2*(-3+8)", [2, 3, 8], 10),
        ("5", [5], 5),
        ("((5))", [5], 5),
        ("1-2-3", [1, 2, 3], -4),
        ("8/4/2", [2, 4, 8], 1),
        ("0*7", [0, 7], 0),
        # not an expression
        ("", [5], None),
        ("8 * 3 = 25", [3, 8], None),
        ("24 = 8 * 3", [3, 8], None),
        ("8 = 8 * 3 / 3", [3, 3, 8], None),
        ("8 * 3 = 24 = 24", [3, 8], None),
        ("8 ** 3", [3, 8], None),
        ("8 // 3", [3, 8], None),
        ("8 ^ 3", [3, 8], None),
        ("8 % 3", [3, 8], None),
        ("8 3", [3, 8], None),
        ("2(3+8)", [2, 3, 8], None),
        ("8 +", [8], None),
        ("* 8", [8], None),
        ("(8 + 3", [3, 8], None),
        ("8 + 3)", [3, 8], None),
        ("(8 + 3}", [3, 8], None),
        ("()8", [8], None),
        ("8/0", [0, 8], None),
        ("8/(3-3)", [3, 3, 8], None),
        ("8 - -3", [3, 8], None),
        ("3.0 + 8", [3, 8], None),
        ("8e1", [8, 1], None),
        ("08 + 3", [3, 8], None),
        ("8_3", [3, 8], None),
        ("\u0668 + 3", [3, 8], None),
        ("The answer is 8 + 3", [3, 8], None),
        ("8 + 3; import os", [3, 8], None),
        ("__import__('os')", [], None),
        # other numbers than those given
        ("8 + 3", [3, 8, 2], None),
        ("8 + 3 + 3", [3, 8], None),
        ("11", [3, 8], None),
        ("83", [3, 8], None),
        ("8 + 3 - 0", [3, 8], None),
        ("8 + 4", [3, 8], None),
    ],
)
def test_expressions(answer, numbers, value):
    assert expression_value(answer, numbers) == value


@pytest.mark.parametrize(
    "answer",
    [
        "(" * 400 + "5" + ")" * 400,
        "(" * 200_000,
        "9" * 100_000,
        "1" + "+1" * 100_000,
        "*".join(["99999999999999999999"] * 40),
        "\\frac{" * 150 + "1",
        "{" * 100_000 + "}" * 100_000,
    ],
)
def test_hostile_expressions_are_refused_before_they_cost(answer):
    assert expression_value(answer, [5]) is None


def test_subsets_only_where_the_task_allows_them():
    assert expression_value("8 + 3", [3, 8, 2], use_all=False) == 11
    assert expression_value("8 + 3 + 3", [3, 8, 2], use_all=False) is None
    assert expression_value("", [3], use_all=False) is None


def test_the_parser_agrees_with_python_on_random_expressions():
    rng = random.Random(0)

    def grow(depth):
        if depth == 0 or rng.random() < 0.3:
            return str(rng.randrange(1, 10))
        left, right = grow(depth - 1), grow(depth - 1)
        text = f"{left}{rng.choice('+-*/')}{right}"
        return f"({text})" if rng.random() < 0.5 else text

    checked = 0
    for _ in range(500):
        text = grow(3)
        numbers = [int(c) for c in text if c.isdigit()]
        exact = "".join(f"Fraction({c})" if c.isdigit() else c for c in text)
        try:
            expected = eval(exact)
        except ZeroDivisionError:
            expected = None
        assert expression_value(text, numbers) == expected
        checked += expected is not None
    assert checked > 400


def test_countdown_reward():
    completions = [
        "<think>8*3</think><answer>8*3</answer>",
        "<think>8*3</think>\\boxed{8 \\times 3}",
        "<think>8*3</think>8*3=24",
        "<think>8*3</think>8+3",
        "<think>8*3</think>24",
        "<think>8*3",
        "8*3",
    ]
    n = len(completions)
    columns = {"numbers": [[8, 3]] * n, "target": [24] * n}
    suite = RewardSuite([countdown])
    scores = suite.score(["q"] * n, completions, None, columns)
    assert scores.total == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert scores.extra["extracted_answer"][:2] == ["8*3", "8 \\times 3"]
    partial = RewardSuite([load_reward("countdown", {"format_score": 0.1})])
    assert partial.score(["q"] * n, completions, None, columns).total == [
        *(1.0, 1.0, 1.0, 0.1, 0.0, 0.0, 1.0)
    ]
    opened = countdown(["<think>"] * 2, ["a</think>8*3", "8*3"], [[8, 3]] * 2, [24] * 2)
    assert opened == [1.0, 0.0]


def test_countdown_columns_as_csv_text_and_rows_without_them():
    answers = ["8*3"] * 4
    assert countdown(
        ["q"] * 4, answers, ["[8, 3]", "8 3", None, [8.0, 3]], ["24", 24.0, 1, 24]
    ) == [*(1.0, 1.0, None, 1.0)]
    suite = RewardSuite([countdown])
    with pytest.raises(ValueError, match=r"'countdown' raised ValueError: numbers .* whole"):
        suite.score(["q"], ["8*3"], None, {"numbers": [[8.5, 3]], "target": [24]})


def test_solutions_by_another_solver_are_accepted_and_miss_every_other_target(data_dir):
    path = data_dir / "countdown" / "rg_problems.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row.get("solution_checked")]
    assert len(rows) >= 100
    for row in rows:
        assert expression_value(row["solution"], row["numbers"], use_all=False) == row["target"]
        missing = [*row["numbers"], 1]  # a number that the solution does not use
        assert expression_value(row["solution"], missing) is None


def test_all_orders_of_24_with_one_operator():
    numbers = [1, 2, 3, 4]
    for order in itertools.permutations(numbers):
        assert expression_value("*".join(map(str, order)), numbers) == math.prod(numbers)
