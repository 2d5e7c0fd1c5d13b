"""Time limits, worker processes, gates, clips, weights by step, and functions of one row."""

from __future__ import annotations

import asyncio
import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from thinkrl.grpo.config import RewardConfig
from thinkrl.grpo.recipe import load_recipe
from thinkrl.rewards.call import MAX_STUCK
from thinkrl.rewards.compose import MAX_LOST_BATCHES, RewardSuite, Rule
from thinkrl.rewards.in_worker import InWorker
from thinkrl.rewards.registry import load_reward, load_rewards
from thinkrl.rewards.signature import RewardError, takes_one_row

COMPLETIONS = ["1", "22", "333", "4444"]
PROMPTS = ["a", "b", "c", "d"]
NEVER = threading.Event()  # nobody sets it


def score(suite: RewardSuite, columns: Any = None, step: int = 0):
    state = SimpleNamespace(global_step=step, max_steps=10)
    return suite.score(PROMPTS, COMPLETIONS, None, columns, state)


def length(completions, **_):
    return [float(len(completion)) for completion in completions]


def even(completions, **_):
    return [float(len(completion) % 2 == 0) for completion in completions]


# time limits


def hang(completions, log_extra):
    log_extra("seen", ["early"] * 4)
    NEVER.wait()


def test_a_plain_function_that_hangs_is_given_up_and_counted():
    suite = RewardSuite([hang, length], rules=[Rule(timeout_s=0.1), Rule(timeout_s=60)])
    scores = score(suite)
    assert scores.by_name["hang"] == [None] * 4
    assert scores.total == [1.0, 2.0, 3.0, 4.0]
    assert scores.metrics == {"rewards/hang/timeouts": 4.0, "rewards/length/timeouts": 0.0}
    assert scores.extra == {}


def test_an_async_function_that_hangs_is_cancelled():
    fates = []

    async def judge(completions):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            fates.append("cancelled")
            raise

    suite = RewardSuite([judge, length], rules=[Rule(timeout_s=0.1), Rule()])
    scores = score(suite)
    assert scores.by_name["judge"] == [None] * 4 and scores.total == [1.0, 2.0, 3.0, 4.0]
    assert scores.metrics == {"rewards/judge/timeouts": 4.0} and fates == ["cancelled"]
    suite.close()


def test_limits_hold_in_any_thread():
    suite = RewardSuite([hang], rules=[Rule(timeout_s=0.1)])
    found = []
    thread = threading.Thread(target=lambda: found.append(score(suite).total))
    thread.start()
    thread.join(30)
    assert found == [[None] * 4]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_timeout_of_the_functions_own_is_its_error(kind):
    def plain(completions):
        raise TimeoutError("server")

    async def waits(completions):
        raise TimeoutError("server")

    suite = RewardSuite([plain if kind == "plain" else waits], rules=[Rule(timeout_s=60)])
    with pytest.raises(RewardError, match="raised TimeoutError: server"):
        score(suite)
    suite.close()


def test_an_error_within_the_limit_names_its_row():
    def divides(completions):
        return [1 / (len(text) - 3) for text in completions]

    with pytest.raises(RewardError, match=r"ZeroDivisionError.*on row 2 \(completion '333'\)"):
        score(RewardSuite([divides], rules=[Rule(timeout_s=60)]))


def test_an_async_function_that_blocks_is_an_error_not_a_hang(monkeypatch):
    monkeypatch.setattr("thinkrl.rewards.compose._GRACE_S", 0.2)

    async def blocks(completions):
        NEVER.wait()

    suite = RewardSuite([blocks], rules=[Rule(timeout_s=0.1)])
    with pytest.raises(RewardError, match=r"'blocks' overran timeout_s = 0.1 .* in_worker: true"):
        score(suite)


def test_a_function_that_never_answers_ends_the_run():
    async def judge(completions):
        await asyncio.Event().wait()

    suite = RewardSuite([judge, length], rules=[Rule(timeout_s=0.02), Rule()])
    for _ in range(MAX_LOST_BATCHES - 1):
        assert score(suite).total == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(RewardError, match=f"nothing in {MAX_LOST_BATCHES} batches in a row"):
        score(suite)
    suite.close()


def test_threads_that_cannot_be_ended_do_not_pile_up():
    def one(completion):
        NEVER.wait()

    suite = RewardSuite([one], rules=[Rule(timeout_s=0.02)])
    before = threading.active_count()
    score(suite)
    with pytest.raises(RewardError, match=f"{MAX_STUCK} calls overran .* in_worker: true"):
        score(suite)
    assert threading.active_count() - before <= MAX_STUCK


# one row at a time


def test_a_function_of_one_row_gets_scalars():
    def close(prompt, completion, level, trainer_state, log_extra, log_metric):
        assert trainer_state.global_step == 3
        log_extra("seen", prompt + completion)
        log_metric("level", level)
        return None if completion == "22" else level * len(completion)

    assert takes_one_row(close) and not takes_one_row(length)
    scores = score(RewardSuite([close]), {"level": [1, 2, 3, 4]}, step=3)
    assert scores.total == [1.0, None, 9.0, 16.0]
    assert scores.extra == {"seen": ["a1", "b22", "c333", "d4444"]}
    assert scores.metrics == {"level": 2.5}


def test_only_the_slow_row_is_lost():
    async def waits(completion, log_extra):
        log_extra("seen", completion)
        if completion == "22":
            await asyncio.Event().wait()
        return len(completion)

    def sleeps(completion):
        if completion == "333":
            NEVER.wait()
        return len(completion)

    suite = RewardSuite([waits, sleeps], rules=[Rule(timeout_s=1), Rule(timeout_s=1)])
    scores = score(suite)
    assert scores.by_name == {"waits": [1.0, None, 3.0, 4.0], "sleeps": [1.0, 2.0, None, 4.0]}
    assert scores.extra == {"seen": ["1", None, "333", "4444"]}
    assert scores.metrics == {"rewards/waits/timeouts": 1.0, "rewards/sleeps/timeouts": 1.0}
    suite.close()


def test_async_rows_run_at_the_same_time():
    barrier = 0

    async def meet(completion):
        nonlocal barrier
        barrier += 1
        while barrier < 4:  # alone, none could return
            await asyncio.sleep(0.001)
        return 1

    suite = RewardSuite([meet], rules=[Rule(timeout_s=60)])
    assert score(suite).total == [1.0] * 4
    suite.close()


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize(
    ("value", "message"), [(1 / 3, None), ("x", "row 2 is 'x'"), (float("nan"), "row 2 is nan")]
)
def test_what_a_row_returns_is_checked(kind, value, message):
    def plain(completion):
        return value if completion == "333" else 0

    async def waits(completion):
        return plain(completion)

    suite = RewardSuite([plain if kind == "plain" else waits])
    if message is None:
        assert score(suite).total == [0.0, 0.0, 1 / 3, 0.0]
    else:
        with pytest.raises(RewardError, match=message):
            score(suite)
    suite.close()


def test_an_exception_in_a_row_names_it():
    def fails(completion):
        return 1 / (len(completion) - 3)

    with pytest.raises(RewardError, match=r"'fails' raised ZeroDivisionError.*row 2 .*'333'"):
        score(RewardSuite([fails]))


# worker processes

PLUGIN = """
import os, re, time

def explodes(completions, **_):
    return [float(bool(re.match("(a+)+$", c))) for c in completions]  # holds the GIL for years

def explodes_on(completion):
    return float(bool(re.match("(a+)+$", completion)))

def dies(completion):
    if completion == "22":
        os._exit(3)
    return len(completion)

def full(completions, level, trainer_state, log_extra, log_metric, bonus=0.0):
    import torch
    log_extra("pid", [os.getpid()] * len(completions))
    log_metric("step", trainer_state.global_step)
    print("this is no reply")
    return torch.tensor([len(c) + l + bonus for c, l in zip(completions, level)])

def raises(completions):
    return [1 / (len(c) - 3) for c in completions]

def heavy(completions):
    return [float(os.getpid())] * len(completions)
heavy.cpu_heavy = True

async def waits(completions):
    return [0.0] * len(completions)
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return path


def entry(path, function, **fields):
    return RewardConfig(f"{path}:{function}", **fields)


def test_a_worker_gets_and_gives_all_that_trls_signature_has(plugin):
    suite = load_rewards([entry(plugin, "full", kwargs={"bonus": 10.0}, in_worker=True)])
    scores = score(suite, {"level": [1, 2, 3, 4]}, step=7)
    assert scores.total == [12.0, 14.0, 16.0, 18.0] and list(scores.by_name) == ["full"]
    assert scores.metrics == {"step": 7.0}
    assert len(set(scores.extra["pid"])) == 1 and scores.extra["pid"][0] != os.getpid()


def test_a_process_is_killed_even_inside_a_regular_expression(plugin):
    suite = load_rewards([entry(plugin, "explodes", in_worker=True, timeout_s=0.5)])
    hostile = ["a" * 60 + "!", "aaa"]
    scores = suite.score(["q"] * 2, hostile)
    assert scores.total == [None, None] and scores.metrics == {"rewards/explodes/timeouts": 2.0}
    assert suite.score(["q"] * 2, ["b", "aaa"]).total == [0.0, 1.0]  # the pool goes on

    rows = load_rewards([entry(plugin, "explodes_on", in_worker=True, timeout_s=0.5)])
    scores = rows.score(["q"] * 4, ["aa", hostile[0], "b", "a"])
    assert scores.total == [1.0, None, 0.0, 1.0]
    assert scores.metrics == {"rewards/explodes_on/timeouts": 1.0}


def test_a_process_that_dies_loses_its_row_only(plugin):
    suite = load_rewards([entry(plugin, "dies", in_worker=True)])
    scores = score(suite)
    assert scores.total == [1.0, None, 3.0, 4.0]
    assert scores.metrics == {"rewards/dies/crashes": 1.0}


def test_an_exception_in_a_worker_names_function_row_and_line(plugin):
    suite = load_rewards([entry(plugin, "raises", in_worker=True)])
    with pytest.raises(RewardError) as caught:
        score(suite)
    message = str(caught.value)
    assert message.startswith("reward 'raises' raised ZeroDivisionError: ") and "row 2" in message
    assert "plugin.py:23" in message and "\n" not in message


def test_what_is_no_json_and_async_functions_are_refused(plugin):
    suite = load_rewards([entry(plugin, "full", in_worker=True)])
    with pytest.raises(RewardError, match="gets its rows as JSON, and one is not: Object of type"):
        score(suite, {"level": [torch.ones(1)] * 4})
    with pytest.raises(ValueError, match="in_worker is for plain functions"):
        load_rewards([entry(plugin, "waits", in_worker=True)])
    with pytest.raises(RewardError, match="'full' needs 'level'"):
        score(suite)


def test_a_function_can_ask_for_a_worker_itself(plugin):
    (pid,) = set(score(load_rewards([entry(plugin, "heavy")])).total)
    assert pid != os.getpid()


def test_built_in_rewards_are_the_same_in_a_worker():
    columns = {"answer": ["1", "1", "333", None]}
    here = load_rewards([RewardConfig("exact_answer")])
    there = load_rewards([RewardConfig("exact_answer", in_worker=True)])
    assert isinstance(next(iter(there.functions.values())), InWorker)
    assert score(here, columns) == score(there, columns)


# gates, clips, weights by step


def test_a_gate_shuts_a_reward_off():
    def gate(completions, **_):
        return [1.0, 0.0, None, -1.0]

    def other(completions, **_):
        return [2.0, 2.0, 2.0, None]

    suite = RewardSuite([gate, other], [0.0, 1.0], rules=[Rule(), Rule(only_if="gate")])
    scores = score(suite)
    assert scores.by_name["other"] == [2.0, 0.0, None, 0.0]
    assert scores.total == [2.0, 0.0, None, 0.0]
    assert scores.metrics == {"rewards/other/gated": 0.5}


def test_the_gate_counts_as_given_and_before_its_clip():
    rules = [Rule(clip=(0.0, 0.0)), Rule(only_if="length")]
    scores = score(RewardSuite([length, even], rules=rules))
    assert scores.by_name == {"length": [0.0] * 4, "even": [0.0, 1.0, 0.0, 1.0]}


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ((None, "lenght"), "only_if = 'lenght' is no other reward .* choose length"),
        ((None, "even"), "only_if = 'even' is no other reward"),
        (("even", "length"), "has a gate itself; name that one: length|: even"),
    ],
)
def test_gates_that_cannot_work_are_refused(gates, message):
    with pytest.raises(ValueError, match=message):
        RewardSuite([length, even], rules=[Rule(only_if=gate) for gate in gates])


def test_clipping_comes_before_the_weight():
    suite = RewardSuite([length], [10.0], rules=[Rule(clip=(1.5, 3.0))])
    scores = score(suite)
    assert scores.by_name["length"] == [1.5, 2.0, 3.0, 3.0]
    assert scores.total == [15.0, 20.0, 30.0, 30.0]


def test_weights_follow_the_step():
    rules = [Rule(schedule={100: 0.5, 10: 2.0}), Rule()]
    suite = RewardSuite([length, even], [1.0, 1.0], rules=rules)
    seen = {step: score(suite, step=step) for step in (0, 9, 10, 99, 100, 10_000)}
    assert [scores.total[2] for scores in seen.values()] == [3.0, 3.0, 6.0, 6.0, 1.5, 1.5]
    assert [s.metrics["rewards/length/weight"] for s in seen.values()] == [1, 1, 2, 2, 0.5, 0.5]
    assert suite.weights == {"length": 0.5, "even": 1.0}
    assert suite.score(PROMPTS, COMPLETIONS).total[2] == 3.0  # no state: the first step


def test_a_recipes_rules_reach_the_suite():
    suite = load_rewards(
        [
            RewardConfig("think_format", 0.5),
            RewardConfig(
                "thinkrl.rewards.exact_answer:exact_answer",
                kwargs={},
                weights={"0": 1.0, "5": 0.25},
                only_if="think_format",
                clip=(0.0, 0.5),
                timeout_s=60.0,
            ),
        ]
    )
    completions = ["<think>a</think>4", "4", "<think>a</think>5"]
    for step, expected in ((0, [1.0, 0.0, 0.5]), (5, [0.625, 0.0, 0.5])):
        state = SimpleNamespace(global_step=step)
        scores = suite.score(["q"] * 3, completions, None, {"answer": ["4"] * 3}, state)
        assert scores.total == expected
    by_place = RewardConfig("tag_count", only_if="thinkrl.rewards.exact_answer:exact_answer")
    place = RewardConfig("thinkrl.rewards.exact_answer:exact_answer")
    assert load_rewards([place, by_place]).rules["tag_count"].only_if == "exact_answer"


RECIPE = """
model: {path: llama-tiny, tokenizer: char}
data: {train: walk}
rewards:
  - {name: think_format, clip: [0, 1]}
  - {name: exact_answer, weights: {0: 1.0, 100: 0.5}, only_if: think_format, timeout_s: 5,
     in_worker: true}
"""


def test_a_recipe_states_them(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    first, second = load_recipe(str(path)).rewards
    assert first.clip == (0.0, 1.0)
    assert (second.weights, second.only_if) == ({"0": 1.0, "100": 0.5}, "think_format")
    assert (second.timeout_s, second.in_worker) == (5.0, True)
    changed = load_recipe(str(path), ["rewards.1.weights.100=0.1"]).rewards[1]
    assert changed.weights == {"0": 1.0, "100": 0.1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rewards.0.clip=[1, 0]", r"rewards.0.clip = \(1.0, 0.0\): must be \[lowest, highest\]"),
        ("rewards.0.clip=[1]", "rewards.0.clip"),
        ("rewards.1.timeout_s=0", "rewards.1.timeout_s = 0.0: must be above 0"),
        ("rewards.1.weights={first: 1}", "rewards.1.weights = .*must be a weight by step"),
        ("rewards.1.weights={0: x}", "rewards.1.weights.0 = 'x': must be a number"),
        ("rewards.1.onlyif=a", "did you mean rewards.only_if"),
    ],
)
def test_a_recipes_mistakes_are_named(tmp_path, override, message):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    with pytest.raises(ValueError, match=message):
        load_recipe(str(path), [override])


def test_a_recipes_list_without_rules_still_works():
    suite = load_rewards([SimpleNamespace(name="think_format", weight=2.0, kwargs={})])
    assert suite.score(["q"], ["<think>a</think>4"]).total == [2.0]
    assert load_reward("think_format") is suite.functions["think_format"]


def test_wrong_numbers_of_rules_are_refused():
    with pytest.raises(ValueError, match="1 rules for 2 functions"):
        RewardSuite([length, even], rules=[Rule()])
