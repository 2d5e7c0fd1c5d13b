"""Built-in tasks: right answers, thinking that leads to them, disjoint splits, stable rows."""

from __future__ import annotations

import random

import pytest
from thinkrl.grpo.tasks import TASKS, Countdown, make_task
from thinkrl.models.tokenizer import char_tokenizer
from thinkrl.rewards.countdown import countdown, expression_value
from thinkrl.rewards.exact_answer import exact_answer

SMALL = {"train_rows": 300, "eval_rows": 60, "sft_rows": 400}
VARIANTS = [
    ("walk", {}),
    ("walk", {"moves": 5, "p_think": 1.0}),
    ("arithmetic", {"digits": 3}),
    ("arithmetic", {"operations": "*", "p_think": 0.5}),
    ("countdown", {}),
    ("countdown", {"count": 4, "max_target": 50, "p_think": 0.5}),
]


def parts(completion):
    assert completion.startswith("<think>") and completion.count("</think>") == 1
    thought, answer = completion.removeprefix("<think>").split("</think>")
    return thought, answer


def is_right(name, row, completion):
    if name == "countdown":
        scores = countdown([""], [completion], [row["numbers"]], [row["target"]])
    else:
        scores = exact_answer([""], [completion], [row["answer"]])
    return scores == [1.0]


def test_the_walk_of_the_documentation():
    row = {"prompt": "7-+-++++-+-++=", "answer": "1"}
    assert make_task("walk").thought(row, random.Random(0)) == "676789090901"


def test_walk_answers_follow_from_counting_signs():
    for row in make_task("walk", SMALL).rows("train"):
        prompt = row["prompt"]
        end = (int(prompt[0]) + prompt.count("+") - prompt.count("-")) % 10
        assert row["answer"] == str(end) and len(prompt) == 14 and prompt[-1] == "="


def test_arithmetic_answers_are_right_by_python():
    for row in make_task("arithmetic", {**SMALL, "digits": 4, "operations": "+-*"}).rows("train"):
        assert str(eval(row["prompt"].rstrip("="))) == row["answer"]
        assert not row["answer"].startswith("-")


def test_countdown_problems_are_solved_by_their_answer_with_every_number_once():
    for count in (2, 3, 5, 8):
        task = make_task("countdown", {**SMALL, "count": count, "max_target": 60})
        for row in task.rows("train"):
            assert expression_value(row["answer"], row["numbers"]) == row["target"]
            assert eval(row["answer"]) == row["target"] <= 60
            assert len(row["numbers"]) == count


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
def test_thinking_demonstrations_are_right_and_the_others_guess(name, arguments):
    task = make_task(name, {**SMALL, **arguments})
    rows = task.demonstrations()
    thoughtful = [row for row in rows if parts(row["completion"])[0]]
    share = len(thoughtful) / len(rows)
    assert len(rows) == 400 and abs(share - task.p_think) < 0.08  # 3 sigma of 400 draws
    assert all(is_right(name, row, row["completion"]) for row in thoughtful)
    guesses = [row for row in rows if not parts(row["completion"])[0]]
    lucky = sum(is_right(name, row, row["completion"]) for row in guesses)
    assert lucky <= 0.3 * len(guesses)


def test_every_step_of_a_thought_is_true_and_the_last_gives_the_answer():
    plus_minus = make_task("arithmetic", {**SMALL, "p_think": 1.0, "digits": 3})
    for row in plus_minus.demonstrations(limit=200):
        steps = parts(row["completion"])[0].split(",")
        assert all(eval(step.split("=")[0]) == int(step.split("=")[1]) for step in steps)
        digits = "".join(step[-1] for step in reversed(steps))
        carry = steps[-1].split("=")[1][:-1]
        assert int(carry + digits) == int(row["answer"])
    products = make_task("arithmetic", {**SMALL, "p_think": 1.0, "operations": "*"})
    for row in products.demonstrations(limit=200):
        steps = [step.split("=") for step in parts(row["completion"])[0].split(",")]
        assert all(eval(left) == int(right) for left, right in steps)
        assert sum(int(right) for _, right in steps) == int(row["answer"])
    for row in make_task("countdown", {**SMALL, "p_think": 1.0}).demonstrations(limit=200):
        *tries, success = [t.split(",") for t in parts(row["completion"])[0].split(";")]
        for attempt in [*tries, success]:
            assert all(eval(step.split("=")[0]) == int(step.split("=")[1]) for step in attempt)
        assert success[-1].endswith(f"={row['target']}")
        assert not any(attempt[-1].endswith(f"={row['target']}") for attempt in tries)


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
def test_splits_share_no_problem_whatever_the_seed(name, arguments):
    held_out = make_task(name, {**SMALL, **arguments, "seed": 1})
    other = make_task(name, {**SMALL, **arguments, "seed": 2})
    identities = {held_out.identity(row) for row in held_out.rows("eval")}
    trained = [*other.rows("train"), *other.demonstrations(), *held_out.rows("train")]
    assert identities and not identities & {other.identity(row) for row in trained}


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
def test_rows_are_distinct_and_depend_on_seed_and_position_alone(name, arguments):
    task = make_task(name, {**SMALL, **arguments})
    rows = task.rows("train")
    assert rows == make_task(name, {**SMALL, **arguments}).rows("train")
    assert rows[:7] == task.rows("train", limit=7)
    larger = make_task(name, {**SMALL, **arguments, "train_rows": 301})
    assert larger.rows("train")[: len(rows)] == rows
    assert len({task.identity(row) for row in rows}) == len(rows)
    assert rows != make_task(name, {**SMALL, **arguments, "seed": 1}).rows("train")
    assert task.demonstrations(limit=5) == task.demonstrations()[:5]


@pytest.mark.parametrize(("name", "arguments"), VARIANTS)
def test_the_alphabet_covers_prompts_and_completions(name, arguments):
    task = make_task(name, {**SMALL, **arguments})
    tokenizer = char_tokenizer(task.alphabet)
    for row in task.demonstrations(limit=100):
        text = row["prompt"] + row["completion"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text) - len("<think></think>") + 2


def test_a_task_with_few_problems_gives_what_it_has():
    rows = make_task("walk", {"moves": 1}).rows("train")
    held_out = make_task("walk", {"moves": 1}).rows("eval")
    prompts = [row["prompt"] for row in [*rows, *held_out]]
    assert sorted(prompts) == sorted(f"{digit}{sign}=" for digit in range(10) for sign in "+-")


def test_permuted_numbers_are_the_same_countdown_problem():
    task = Countdown()
    one = {"prompt": "", "numbers": [3, 1, 2], "target": 6}
    assert task.identity(one) == task.identity({**one, "numbers": [1, 2, 3]})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("wolk", {}, "not built in; tasks: walk"),
        ("walk", {"move": 3}, r"data.task.move = 3: .*did you mean moves\?"),
        ("walk", {"zzz": 3}, "unknown argument of walk; arguments: .*moves"),
        ("walk", {"moves": 0}, "data.task.moves = 0: must be between 1 and 256"),
        ("walk", {"moves": "12"}, "moves = '12': must be a whole number"),
        ("walk", {"moves": True}, "moves = True: must be a whole number"),
        ("walk", {"p_think": 1.5}, "p_think = 1.5: must be a share"),
        ("walk", {"train_rows": 0}, "train_rows = 0: must be at least 1"),
        ("arithmetic", {"operations": "/"}, "operations = '/': must be some of"),
        ("arithmetic", {"operations": ""}, "operations = ''"),
        ("arithmetic", {"digits": 51}, "digits = 51"),
        ("countdown", {"count": 1}, "count = 1: must be between 2 and 8"),
        ("countdown", {"max_number": 1}, "max_number = 1"),
    ],
)
def test_wrong_arguments_are_one_line(name, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_task(name, arguments)
    assert "\n" not in str(caught.value)


def test_names():
    assert list(TASKS) == ["walk", "countdown", "arithmetic"]
