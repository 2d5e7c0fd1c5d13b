"""The think format, case by case; each label follows from one sentence of the rules."""

from __future__ import annotations

import pytest
from thinkrl.rewards.answer_format import is_think_format, tag_count, think_format
from thinkrl.rewards.completion import after_thinking, strip_end_markers, thinking

R1_ZERO = (
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> "
    "tags, i.e., <think> reasoning process here </think> <answer> answer here </answer>.\n"
    "User: what is 2+2?\nAssistant:"
)
OPENED = R1_ZERO + " <think>"
CHAT_OPENED = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n"
CHAT_CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"  # thinking switched off

# completion, expected
BARE = [
    # one pair at the start, something in it, then an answer
    ("<think>2+2=4</think>4", True),
    ("<think>\nFirst add.\n</think>\n\nThe answer is 4.", True),
    ("<think>a</think> <answer>4</answer>", True),
    ("<think>a</think><answer>\n4\n</answer>\n", True),
    ("<think>a</think>So: <answer>4</answer>", True),
    ("<think>a</think>\\boxed{4}", True),
    ("<think>x < y and y > z</think>x < z", True),
    ("<think>a <b> c </b></think>4", True),
    ("<think>the tag answer: <answer>3</answer> no</think>4", True),
    ("<think>a</think>4 < 5", True),
    ("<think>a</think>see <answers> and </answers>", True),
    ("<think>.</think>.", True),
    ("<think>" + "long " * 1000 + "</think>4", True),
    # white space before is allowed, other text is not
    ("\n\n  <think>a</think>4", True),
    ("\t<think>a</think>4", True),
    ("\u00a0<think>a</think>4", True),
    ("Sure! <think>a</think>4", False),
    (".<think>a</think>4", False),
    ("<answer>4</answer><think>a</think>", False),
    ("<|im_start|><think>a</think>4", False),
    # no tags, one tag, reversed
    ("4", False),
    ("", False),
    ("   ", False),
    ("<think>a", False),
    ("<think>", False),
    ("</think>", False),
    ("a</think>4", False),
    ("</think>a<think>4", False),
    ("<think>2+2=4 4", False),
    # empty thinking, empty answer
    ("<think></think>4", False),
    ("<think> \n\t </think>4", False),
    ("<think>\n\n</think>\n\n4", False),
    ("<think>\u00a0\u2003</think>4", False),
    ("<think>a</think>", False),
    ("<think>a</think> \n ", False),
    ("<think></think>", False),
    ("<think>a</think><answer></answer>", False),
    ("<think>a</think><answer> \n </answer>", False),
    ("<think>a</think>4<answer> </answer>", False),
    # each tag once, quoted or not
    ("<think>a</think><think>b</think>4", False),
    ("<think>a<think>b</think>4", False),
    ("<think>a<think>b</think></think>4", False),
    ("<think><think>a</think>4", False),
    ("<think>a</think></think>4", False),
    ("<think>a</think>4</think>", False),
    ("<think>a</think>4 <think>", False),
    ("<think>I should close `</think>` later</think>4", False),
    ('<think>a "<think>" b</think>4', False),
    ("<think>a</think>I used the <think> tag", False),
    # half-written and misspelt tags are no tags
    ("<think>a</think", False),
    ("<think>a</thin>4", False),
    ("<think a</think>4", False),
    ("think>a</think>4", False),
    ("< think>a</think>4", False),
    ("<Think>a</Think>4", False),
    ("<thinking>a</thinking>4", False),
    ("[think]a[/think]4", False),
    ("<think>a< /think>4", False),
    ("&lt;think&gt;a&lt;/think&gt;4", False),
    ("<think>a<thin b</think>4", True),
    ("<think>I am <thinking> of 4</think>4", True),
    # a pair of answer tags: closed, once, nothing after it
    ("<think>a</think><answer>4", False),
    ("<think>a</think>4</answer>", False),
    ("<think>a</think></answer>4<answer>", False),
    ("<think>a</think><answer>4</answer> done", False),
    ("<think>a</think><answer>4</answer><answer>4</answer>", False),
    ("<think>a</think><answer><answer>4</answer></answer>", False),
    ("<think>a</think><answer>4<answer>", False),
    ("<think>a</think><answer>4</answer", False),
    ("<think>a</think><answer 4</answer>", False),
    ("<think>a</think><answer", False),
    # special tokens at the end are ignored, elsewhere they are text
    ("<think>a</think>4<|im_end|>", True),
    ("<think>a</think>4<|eot_id|>", True),
    ("<think>a</think>4</s>", True),
    ("<think>a</think>4<|endoftext|><|endoftext|>", True),
    ("<think>a</think>4 <|im_end|>\n</s>\n", True),
    ("<think>a</think>4<\uff5cend\u2581of\u2581sentence\uff5c>", True),
    ("<think>a</think>4<eos><pad><pad>", True),
    ("<think>a</think><answer>4</answer><|im_end|>\n", True),
    ("<think>a</think><|im_end|>", False),
    ("<think>a</think>\n</s>", False),
    ("<think>a</think><answer></answer></s>", False),
    ("<think>a<|im_end|>", False),
]

TAGGED = [  # with answer_tags=True
    ("<think>a</think><answer>4</answer>", True),
    ("<think>\na\n</think>\n<answer>\n4\n</answer>", True),
    (" <think> a </think> <answer> 4 </answer> ", True),
    ("<think>a</think><answer>4</answer><|eot_id|>", True),
    ("<think>a</think><answer>x < 4</answer>", True),
    ("<think>a</think>4", False),
    ("<think>a</think>\\boxed{4}", False),
    ("<think>a</think>so <answer>4</answer>", False),
    ("<think>a</think><answer>4</answer>.", False),
    ("<think>a</think><answer>4", False),
    ("<think>a</think>4</answer>", False),
    ("<think>a</think><answer></answer>", False),
    ("<think>a</think><answer>\n</answer>", False),
    ("<think>a</think><answer>4</answer><answer>5</answer>", False),
    ("<think>a</think></answer>4<answer>", False),
    ("<think></think><answer>4</answer>", False),
    ("<think>a<answer>4</answer></think>", False),
    ("<answer>4</answer>", False),
    ("x<think>a</think><answer>4</answer>", False),
]

PROMPTED = [  # prompt, completion, answer_tags, expected
    # the template only mentions the tags: the completion must open
    (R1_ZERO, " <think>a</think> <answer>4</answer>", True, True),
    (R1_ZERO, " <think>a</think> 4", False, True),
    (R1_ZERO, " a</think> <answer>4</answer>", True, False),
    # the prompt has opened: the completion must not
    (OPENED, " a</think> <answer>4</answer>", True, True),
    (OPENED, "a</think>4", False, True),
    (OPENED, "\na\n</think>\n4<|im_end|>", False, True),
    (OPENED, "<think>a</think>4", False, False),
    (OPENED, " <think>\na</think> <answer>4</answer>", True, False),
    (OPENED, "a<think>b</think>4", False, False),
    (OPENED, "</think>4", False, False),
    (OPENED, " \n</think>4", False, False),
    (OPENED, "a</think>", False, False),
    (OPENED, "a", False, False),
    (OPENED, "a</think>b</think>4", False, False),
    (OPENED, "a</think>4", True, False),
    (OPENED, "", False, False),
    (CHAT_OPENED, "a\n</think>\n\n4", False, True),
    (CHAT_OPENED, "<think>\na\n</think>\n\n4", False, False),
    ("<think>", "a</think>4", False, True),
    ("q <think> \n\t", "a</think>4", False, True),
    # not opened: text after the tag, or the tag closed again
    ("q <think> well", "a</think>4", False, False),
    ("q <think> well", "<think>a</think>4", False, True),
    (CHAT_CLOSED, "4", False, False),
    (CHAT_CLOSED, "<think>a</think>4", False, True),
    ("use <think>", "<think>a</think>4", False, False),
]

TRUNCATED = [  # completion, answer_tags, expected
    ("<think>a", False, False),
    ("<think>a</think", False, False),
    ("<think>a</think>", False, False),
    ("<think>a</think>4", False, True),
    ("<think>a</think>the answer is 4 because", False, True),
    ("<think>a</think><answer>4</answer>", False, True),
    ("<think>a</think><answer>4</answer>", True, True),
    ("<think>a</think><answer>4", True, False),
    ("<think>a</think><answer>4", False, False),
    ("<think>a</think><answer>4</ans", False, False),
    ("<think>a</think><ans", False, False),
    ("<think>a</think>\n<", False, False),
    ("<think>a</think>4", True, False),
]


@pytest.mark.parametrize(("completion", "expected"), BARE)
def test_bare_answers(completion, expected):
    assert is_think_format(completion) is expected


@pytest.mark.parametrize(("completion", "expected"), TAGGED)
def test_answer_tags(completion, expected):
    assert is_think_format(completion, answer_tags=True) is expected


@pytest.mark.parametrize(("completion", "expected"), TAGGED)
def test_what_passes_with_answer_tags_passes_without(completion, expected):
    assert is_think_format(completion) or not expected


@pytest.mark.parametrize(("prompt", "completion", "answer_tags", "expected"), PROMPTED)
def test_prompts_that_open_thinking(prompt, completion, answer_tags, expected):
    assert is_think_format(completion, prompt=prompt, answer_tags=answer_tags) is expected


@pytest.mark.parametrize(("completion", "answer_tags", "expected"), TRUNCATED)
def test_truncated(completion, answer_tags, expected):
    assert is_think_format(completion, truncated=True, answer_tags=answer_tags) is expected


def test_there_are_many_cases_of_both_kinds():
    labels = [case[-1] for case in [*BARE, *TAGGED, *PROMPTED, *TRUNCATED]]
    assert len(labels) >= 120 and sum(labels) >= 40


def test_truncation_never_makes_a_failing_completion_pass():
    for completion, expected in BARE:
        assert expected or not is_think_format(completion, truncated=True)


@pytest.mark.parametrize("opening", ["<think>", "</think>", "<answer", "<", "</s>", "<|", "|>"])
def test_large_hostile_texts_are_read_in_linear_work(opening):
    """Work is counted, not timed: a quadratic reader could not do 2 MB at all."""
    text = "<think>" + opening * (2_000_000 // len(opening))
    assert is_think_format(text) is False
    assert is_think_format(text, prompt="<think>", answer_tags=True, truncated=True) is False
    assert after_thinking(strip_end_markers(text)) in (None, "")


def test_reward_reads_prompts_conversations_and_truncation():
    prompts = ["q", OPENED, "q"]
    completions = ["<think>a</think>4", "a</think>4", "a</think>4"]
    assert think_format(prompts, completions) == [1.0, 1.0, 0.0]
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    chats = [[{"role": "user", "content": "q"}]] * 3
    assert think_format(chats, messages) == [1.0, 0.0, 0.0]
    assert think_format(chats, messages, prompt_text=["q", CHAT_OPENED, CHAT_OPENED]) == [1, 1, 1]
    cut = ["<think>a</think><ans"] * 2
    assert think_format(["q"] * 2, cut, truncated=[True, True]) == [0.0, 0.0]
    assert think_format(["q"], ["<think>a</think>4"], answer_tags=True) == [0.0]


def test_tag_count_gives_a_quarter_for_each_tag_that_stands_once():
    framed = "<think>\na\n</think>\n<answer>\n4\n</answer>"
    completions = [framed, "<think>a</think>4", "4", "<think><think>a</think>4", "a</think>4"]
    assert tag_count(["q"] * 5, completions) == [1.0, 0.5, 0.0, 0.25, 0.25]
    assert tag_count([OPENED], ["a</think><answer>4</answer>"]) == [1.0]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("4<|im_end|>", "4"),
        ("4 </s> <pad>\n", "4"),
        ("<|eot_id|>", ""),
        ("a<|im_end|>b", "a<|im_end|>b"),
        ("p(a<|not one|>", "p(a<|not one|>"),
        ("x <||>", "x <||>"),
        ("4<|>", "4<|>"),
        ("|>", "|>"),
    ],
)
def test_end_markers(text, left):
    assert strip_end_markers(text) == left


@pytest.mark.parametrize(
    ("text", "prompt", "inside", "after"),
    [
        ("<think>a</think>b", "", "a", "b"),
        ("<think></think>b", "", "", "b"),
        ("a</think>b", "<think>\n", "a", "b"),
        ("a</think>b", "", "a", "b"),
        ("no tags", "", "no tags", "no tags"),
        ("no tags", "<think>", "no tags", None),
        ("<think>never closed", "", "never closed", None),
        ("<think>a</think>b<think>again", "", "a", None),
        ("<think>a</think>b</think>c", "", "a</think>b", "c"),
    ],
)
def test_thinking_and_what_follows(text, prompt, inside, after):
    assert thinking(text, prompt=prompt) == inside
    assert after_thinking(text, prompt=prompt) == after
