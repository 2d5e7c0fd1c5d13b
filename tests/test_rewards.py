"""Loading reward functions, running them over a batch, and the exact-answer verifier."""

from __future__ import annotations

import asyncio
import functools
import math
import pickle
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from thinkrl.rewards.compose import RewardSuite
from thinkrl.rewards.exact_answer import (
    exact_answer,
    exact_match,
    extract_answer,
    gold_answers,
    is_match,
    last_boxed,
)
from thinkrl.rewards.registry import BUILTINS, load_reward, load_rewards
from thinkrl.rewards.signature import RewardError, is_async, reward_name

PROMPTS = ["a", "b", "c", "d"]
COMPLETIONS = ["1", "22", "333", "4444"]
IDS = [[1], [2, 2], [3, 3, 3], [4, 4, 4, 4]]


def score(*functions, weights=None, columns=None, state=None):
    suite = RewardSuite(functions, weights)
    try:
        return suite.score(PROMPTS, COMPLETIONS, IDS, columns, state)
    finally:
        suite.close()


def length(completions, **_):
    return [float(len(completion)) for completion in completions]


# calling


def test_everything_of_trls_signature_is_passed_by_keyword():
    def full(prompts, completions, completion_ids, level, trainer_state, log_extra, log_metric):
        assert (prompts, completions, completion_ids) == (PROMPTS, COMPLETIONS, IDS)
        assert level == [1, 2, 3, 4] and trainer_state.global_step == 7
        log_extra("seen", [text * 2 for text in completions])
        log_metric("answers", 4)
        return [0.0] * 4

    def everything(**kwargs):
        assert set(kwargs) == {
            *("prompts", "completions", "completion_ids", "level"),
            *("trainer_state", "log_extra", "log_metric"),
        }
        return [1.0] * 4

    columns = {"level": [1, 2, 3, 4], "prompt": PROMPTS, "completion": COMPLETIONS}
    state = SimpleNamespace(global_step=7)
    scores = score(full, everything, columns=columns, state=state)
    assert scores.by_name == {"full": [0.0] * 4, "everything": [1.0] * 4}
    assert scores.extra == {"seen": ["11", "2222", "333333", "44444444"]}
    assert scores.metrics == {"answers": 4.0}


def test_a_function_gets_only_what_it_takes():
    assert score(lambda completion_ids: [len(ids) for ids in completion_ids]).total == [1, 2, 3, 4]


def test_weights_and_unscored_rows():
    def some(completions, **_):
        return [1.0, None, 0.5, None]

    def others(completions, **_):
        return [None, None, 2, True]

    scores = score(some, others, weights=[2.0, 10.0])
    assert scores.total == [2.0, None, 21.0, 10.0]
    assert scores.by_name == {"some": [1.0, None, 0.5, None], "others": [None, None, 2.0, 1.0]}


@pytest.mark.parametrize(
    "values",
    [
        [1, 0, True, False],
        (1, 0, 1, 0),
        np.array([1.0, 0.0, 1.0, 0.0], dtype=np.float32),
        torch.tensor([1.0, 0.0, 1.0, 0.0]),
        [np.float64(1), np.int64(0), torch.tensor(1), np.bool_(False)],
    ],
)
def test_numbers_of_many_kinds_become_floats(values):
    total = score(lambda completions: values).total
    assert total == [1.0, 0.0, 1.0, 0.0]
    assert all(type(value) is float for value in total)


def test_async_functions_run_at_the_same_time():
    """Each waits for the other: run one after the other, neither could return."""
    here, there = threading.Event(), threading.Event()

    async def meet(mine, other):
        mine.set()
        while not other.is_set():
            await asyncio.sleep(0.001)
        return [1.0] * 4

    async def first(completions):
        return await asyncio.wait_for(meet(here, there), 10)

    async def second(completions):
        return await asyncio.wait_for(meet(there, here), 10)

    assert score(first, length, second).total == [3.0, 4.0, 5.0, 6.0]


def test_async_functions_run_inside_a_running_loop_and_share_one_loop():
    loops = []

    class Judge:
        async def __call__(self, completions, **_):
            loops.append(asyncio.get_running_loop())
            return [0.5] * len(completions)

    suite = RewardSuite([Judge(), functools.partial(Judge())])

    async def inside():
        return suite.score(PROMPTS, COMPLETIONS, IDS).total

    assert asyncio.run(inside()) == suite.score(PROMPTS, COMPLETIONS, IDS).total == [1.0] * 4
    assert len(loops) == 4 and len(set(map(id, loops))) == 1
    suite.close()


def test_names():
    class Judge:
        def __call__(self, completions, **_):
            return [0.0] * len(completions)

    assert reward_name(functools.partial(functools.partial(length, a=1), b=2)) == "length"
    assert reward_name(Judge()) == "Judge"
    assert list(score(length, Judge(), length, length).by_name) == [
        *("length", "Judge", "length_2", "length_3")
    ]
    assert is_async(Judge()) is False


def test_bound_options_win_over_columns_of_the_same_name():
    def by_option(completions, *, bonus, **_):
        return [bonus] * len(completions)

    assert score(functools.partial(by_option, bonus=3), columns={"bonus": [9] * 4}).total == [3] * 4
    with pytest.raises(RewardError, match=r"row 0 is \[9, 9, 9, 9\] \(list\)"):
        score(by_option, columns={"bonus": [9] * 4})


# what cannot be a reward


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 values for 4 completions"),
        ([], "returned 0 values for 4 completions"),
        ([0.0] * 5, "returned 5 values for 4 completions"),
        (1.0, r"returned 1.0 \(float\), not a list"),
        (None, r"returned None \(NoneType\), not a list"),
        ("1111", r"returned '1111' \(str\), not a list"),
        ({"a": 1}, "not a list"),
        ((value for value in range(4)), "not a list"),
        ([0.0, math.nan, 0.0, 0.0], "row 1 is nan"),
        ([0.0, 0.0, math.inf, 0.0], "row 2 is inf"),
        ([0.0, 0.0, 0.0, -math.inf], "row 3 is -inf"),
        ([0, 0, 0, 10**400], "row 3 is inf"),
        (np.array([0.0, 0.0, np.nan, 0.0]), "row 2 is nan"),
        (["1", 0, 0, 0], r"row 0 is '1' \(str\), not a number"),
        ([0, [1], 0, 0], r"row 1 is \[1\] \(list\), not a number"),
        ([0, 0, 1j, 0], r"row 2 is 1j \(complex\), not a number"),
        ([0, 0, 0, np.ones(2)], "row 3 is array"),
    ],
)
def test_what_is_not_a_reward_names_function_row_and_value(returned, message):
    def wrong(completions):
        return returned

    with pytest.raises(RewardError, match=message) as caught:
        score(length, wrong)
    assert str(caught.value).startswith("reward 'wrong'") and "\n" not in str(caught.value)
    assert "return" in str(caught.value).split(";")[-1]  # the remedy


@pytest.mark.parametrize("bad_row", [0, 1, 2, 3])
def test_an_exception_names_function_row_and_line(bad_row):
    def divides(completions, log_extra):
        log_extra("seen", completions)
        return [1 / (len(text) - bad_row - 1) for text in completions]

    with pytest.raises(RewardError) as caught:
        score(divides)
    message = str(caught.value)
    assert message.startswith("reward 'divides' raised ZeroDivisionError")
    assert f"row {bad_row} (completion {COMPLETIONS[bad_row]!r})" in message
    assert re.search(r"test_rewards\.py:\d+", message) and "\n" not in message
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_exception_of_the_whole_batch_or_of_an_async_function_is_named_too():
    def whole(completions):
        if len(completions) > 1:
            raise RuntimeError("two\nlines")
        return [0.0]

    async def judge(completions):
        raise TimeoutError("no answer")

    with pytest.raises(RewardError, match="'whole' raised RuntimeError: two lines, at"):
        score(whole)
    with pytest.raises(RewardError, match="'judge' raised TimeoutError: no answer"):
        score(judge, length)


def test_missing_columns_and_wrong_lengths_are_named():
    def needs(completions, gold, *, margin):
        return [0.0] * 4

    with pytest.raises(RewardError, match=r"'needs' needs 'gold'.*columns: answer, level"):
        score(needs, columns={"answer": COMPLETIONS, "level": [1] * 4})
    with pytest.raises(RewardError, match="needs 'margin'"):
        score(needs, columns={"gold": COMPLETIONS})
    with pytest.raises(ValueError, match="gold has 3 entries for 4 prompts"):
        score(length, columns={"gold": [1, 2, 3]})
    with pytest.raises(RewardError, match=r"log_extra\('seen'\) got 1 values for 4"):
        score(lambda completions, log_extra: log_extra("seen", [1]) or [0.0] * 4)


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        ([], None, "at least one"),
        ([3], None, "not callable"),
        ([length], [1.0, 2.0], "2 weights for 1 functions"),
        ([length], [math.nan], "finite"),
    ],
)
def test_a_suite_refuses_what_it_cannot_run(functions, weights, message):
    with pytest.raises(ValueError, match=message):
        RewardSuite(functions, weights)


# the registry

PLUGIN = """
from dataclasses import dataclass

@dataclass
class Scale:
    factor: float = 1.0
    def __call__(self, completions, **_):
        return [self.factor * len(c) for c in completions]

def length(completions, *, factor=1.0):
    return [factor * len(c) for c in completions]

def get_length(factor):
    def made(completions, **_):
        return [factor * len(c) for c in completions]
    return made

def swallows(completions, **kwargs):
    return [kwargs.get("factor", 0.0)] * len(completions)

NUMBER = 3
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "math.py"  # named like a module of the standard library: still its own
    path.write_text(PLUGIN)
    return path


@pytest.mark.parametrize("name", ["length", "Scale", "get_length"])
def test_functions_classes_and_factories_of_a_file(plugin, name):
    function = load_reward(f"{plugin}:{name}", {"factor": 2})
    assert score(function).total == [2.0, 4.0, 6.0, 8.0]


def test_a_file_is_its_own_module_and_is_read_again_when_it_changed(plugin):
    first = load_reward(f"{plugin}:length")
    assert math.sqrt(4) == 2 and first.__module__.startswith("_reward_math_")
    assert load_reward(f"{plugin}:length") is first
    assert pickle.loads(pickle.dumps(first)) is first
    plugin.write_text(PLUGIN.replace("[factor * len(c)", "[-1.0"))
    assert score(load_reward(f"{plugin}:length")).total == [-1.0] * 4


def test_dotted_modules_and_the_working_directory(plugin, tmp_path, monkeypatch):
    assert load_reward("thinkrl.rewards.exact_answer:exact_answer") is exact_answer
    (tmp_path / "my_own_rewards.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert score(load_reward("my_own_rewards:length")).total == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("exact_anser", {}, "not built in; did you mean exact_answer"),
        ("zzz", {}, "not built in; built in: exact_answer"),
        ("nowhere.py:f", {}, "no such file .*nowhere.py"),
        ("{folder}/mth.py:f", {}, r"no such file .*did you mean math.py\?"),
        ("{file}:lenght", {}, r"has no function 'lenght'; did you mean length\?"),
        ("{file}:NUMBER", {}, "NUMBER is a int, not a function"),
        ("{file}:length", {"facter": 2}, r"unknown keyword facter = 2; did you mean factor\?"),
        ("{file}:get_length", {}, "TypeError.*factor"),
        ("{file}:Scale", {"size": 2}, "unknown keyword size = 2; it takes: factor"),
        ("no_such_package.rewards:f", {}, "import failed: ModuleNotFoundError"),
        ("thinkrl.rewards.exact_answer:exact_anser", {}, "did you mean exact_answer"),
        ("soft_overlong", {"max_len": 3}, "unknown keyword max_len = 3; did you mean max_comple"),
        ("{folder}/broken.py:f", {}, "import failed at line 2: SyntaxError"),
        ("{folder}/raises.py:f", {}, "import failed at line 3: ZeroDivisionError: division"),
    ],
)
def test_loading_errors_are_one_line_with_a_remedy(plugin, tmp_path, name, kwargs, message):
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    (tmp_path / "raises.py").write_text("\n\ny = 1 / 0\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_reward(name.format(folder=tmp_path, file=plugin), kwargs)
    assert "\n" not in str(caught.value)


def test_a_function_that_takes_any_keyword_takes_any_option(plugin):
    assert score(load_reward(f"{plugin}:swallows", {"factor": 5.0})).total == [5.0] * 4


def test_every_built_in_of_this_folder_loads():
    others = {"math_answer", "code_tests", "model_judge"}  # their own tests load them
    for name in BUILTINS.keys() - others:
        assert reward_name(load_reward(name)) == name


def test_a_recipes_list_becomes_a_suite():
    entries = [
        SimpleNamespace(name="exact_answer", weight=1.0, kwargs={}),
        SimpleNamespace(name="think_format", weight=0.5, kwargs={"answer_tags": True}),
    ]
    suite = load_rewards(entries)
    completions = ["<think>a</think><answer>4</answer>", "<think>a</think>4"]
    scores = suite.score(["q", "q"], completions, [[], []], {"answer": ["4", "4"]})
    assert scores.total == [1.5, 1.0]
    assert scores.extra == {"extracted_answer": ["4", "4"]}
    assert list(scores.by_name) == ["exact_answer", "think_format"]


# other people's rewards, unchanged


def test_trls_own_rewards_run_unchanged():
    chats = [[{"role": "assistant", "content": "<think>a</think>\\boxed{4}"}]] * 2
    suite = RewardSuite(
        [
            load_reward("trl.rewards:think_format_reward"),
            load_reward("trl.rewards:accuracy_reward"),
            load_reward(
                "trl.rewards:get_soft_overlong_punishment",
                {"max_completion_len": 100, "soft_punish_cache": 20},
            ),
            load_reward("trl.rewards:get_repetition_penalty_reward", {"ngram_size": 2}),
        ]
    )
    prompts = [[{"role": "user", "content": "2+2"}]] * 2
    scores = suite.score(prompts, chats, [[1] * 90, [1, 2]], {"solution": ["$4$", "$5$"]})
    assert list(scores.by_name.values()) == [
        *([1.0, 1.0], [1.0, 0.0], [-0.5, 0.0]),
        [-(1 - 1 / 89), 0.0],
    ]
    assert "gold_parsed" in scores.extra


def test_open_r1_style_rewards_run_unchanged():
    """Their form: keyword calls, `completion[0]["content"]`, a column, an inner function."""

    def accuracy(completions, solution, **kwargs):
        contents = [completion[0]["content"] for completion in completions]
        return [float(content == gold) for content, gold in zip(contents, solution, strict=True)]

    def get_scaled(scale: float = 2.0):
        def scaled(completions, **kwargs):
            assert kwargs["solution"] == ["4", "5"]
            return [scale] * len(completions)

        return scaled

    chats = [[{"role": "assistant", "content": "4"}]] * 2
    suite = RewardSuite([accuracy, get_scaled(3.0)])
    assert suite.score(["p", "p"], chats, None, {"solution": ["4", "5"]}).total == [4.0, 3.0]


# exact answers


@pytest.mark.parametrize(
    ("completion", "prompt", "expected"),
    [
        ("<think>676789090901</think>1", "", "1"),
        ("<think></think>1", "", "1"),  # thinking may be empty: only the answer counts
        ("1", "", "1"),
        ("a</think>1", "<think>\n", "1"),
        ("<think>the answer is 1", "", None),
        ("the answer is 1", "<think>\n", None),
        ("<think>a</think>", "", None),
        ("<think>a</think> \n", "", None),
        ("", "", None),
        ("<think>a</think>1<|im_end|>", "", "1"),
        ("<think>a</think><answer> 1 </answer>", "", "1"),
        ("<think>\\boxed{7}</think><answer>1</answer>", "", "1"),
        ("<think>a</think>first \\boxed{2}, then \\boxed{1}.", "", "1"),
        ("<think>a</think><answer>so \\boxed{1}</answer> ", "", "1"),
        ("<answer>2</answer><answer>1</answer>", "", "1"),
        ("<answer>1", "", "<answer>1"),
        ("1<think>a", "", None),
        ("<think>a</think>1<think>b</think>2", "", "2"),
    ],
)
def test_extract_answer(completion, prompt, expected):
    assert extract_answer(completion, prompt=prompt) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {4}", "4"),
        ("\\fbox{4}", "4"),
        ("\\boxed{4", None),
        ("\\boxed{3} and \\boxed{4", "3"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{a\\}", None),
        ("{ \\boxed{4} ", "4"),
        ("} \\boxed{4}", "4"),
        ("\\boxed{\\boxed{4}}", "4"),
        ("boxed{4}", None),
        ("\\boxed4", None),
        ("", None),
    ],
)
def test_last_boxed(text, expected):
    assert last_boxed(text) == expected


def test_hostile_boxes_are_read_in_one_pass():
    assert last_boxed("\\boxed{" * 200_000) is None
    assert last_boxed("\\boxed" * 200_000 + "\\fbox" * 200_000) is None
    assert last_boxed("{" * 500_000 + "\\boxed{1}" + "}" * 500_000) == "1"


@pytest.mark.parametrize(
    ("candidate", "gold", "expected"),
    [
        ("72", "72", True),
        ("72", "48/2 = <<48/2=24>>24 clips.\n#### 72", True),
        ("24", "48/2 = <<48/2=24>>24 clips.\n#### 72", False),
        ("72", 72, True),
        ("145", 145.0, True),
        ("72.0", "72", True),
        ("72.", "72", True),
        ("1,000", "1000", True),
        ("1,000,000.50", "1000000.5", True),
        ("10,00", "1000", False),
        ("$18", "18", True),
        ("$18$", "18", True),
        ("1/2", "0.5", True),
        ("0.333", "1/3", False),
        ("-5", "\u22125", True),
        ("+5", "5", True),
        ("5", "-5", False),
        ("1e3", "1000", False),
        ("7_2", "72", False),
        ("\u0667\u0662", "72", False),
        ("Paris", "Paris", True),
        (" New   York\n", "New York", True),
        ("paris", "Paris", False),
        ("B", ["A", "B"], True),
        ("C", ["A", "B"], False),
        ("5", "The answer: \\boxed{5}", True),
        (None, "5", False),
        ("1/0", "1/0", True),
        ("9" * 100_000, "9" * 100_000, True),
    ],
)
def test_is_match(candidate, gold, expected):
    assert is_match(candidate, gold) is expected


def test_exact_answer_scores_and_leaves_rows_without_a_gold_unscored():
    completions = ["<think>a</think>1", "<think></think>1", "1", "<think>1", "1", "1"]
    answers = ["1", "1", "2", "1", None, "  "]
    assert exact_answer(["q"] * 6, completions, answers) == [1.0, 1.0, 0.0, 0.0, None, None]
    assert gold_answers([]) == []


def test_exact_match_compares_the_whole_completion():
    completions = ["4", " 4</s>", "<think>a</think>4", "Yes", "x"]
    golds = ["4", "4", "4", "yes", None]
    assert exact_match(completions, golds) == [1.0, 1.0, 0.0, 0.0, None]
    assert exact_match(completions, golds, ignore_case=True) == [1.0, 1.0, 0.0, 1.0, None]
