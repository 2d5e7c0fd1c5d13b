"""Whether a completion thinks first and answers then: `<think>...</think>` and an answer.

The tags are literal text. Everything is counting and slicing, so time is linear in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .completion import (
    CLOSE,
    OPEN,
    completion_text,
    opens_thinking,
    prompt_texts,
    strip_end_markers,
)

ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"


def is_think_format(
    completion: str, *, prompt: str = "", truncated: bool = False, answer_tags: bool = False
) -> bool:
    """Exactly one <think>...</think> at the start with something in it, then a non-empty answer.

    Where the prompt ends with <think> (and white space) it has opened the thinking, and the
    completion must not open it again. Each of the two tags stands once, quoted or not. White space
    before <think> and special tokens at the end are ignored. With `answer_tags` the answer is one
    <answer> pair and nothing else; without, it is bare text, or ends in one closed <answer> pair.
    A truncated completion passes if it was already complete: a tag cut in half is not.
    """
    fault = format_fault(completion, prompt=prompt, truncated=truncated, answer_tags=answer_tags)
    return fault is None


def format_fault(
    completion: str, *, prompt: str = "", truncated: bool = False, answer_tags: bool = False
) -> str | None:
    """The rule of `is_think_format` that a completion breaks, in words, or None."""
    text = strip_end_markers(completion)
    if opens_thinking(prompt):
        text = OPEN + text
    text = text.lstrip()
    if not text.startswith(OPEN):
        return f"does not start with {OPEN}"
    for tag in (OPEN, CLOSE):
        if text.count(tag) != 1:
            return f"{tag} stands {text.count(tag)} times, not once"
    thinking, _, answer = text[len(OPEN) :].partition(CLOSE)
    answer = answer.strip()
    if truncated and _ends_in_half_tag(answer):
        return "cut off inside a tag"
    if not thinking.strip():
        return "the thinking is empty"
    return _answer_fault(answer, answer_tags)


def _answer_fault(answer: str, answer_tags: bool) -> str | None:
    opened, closed = answer.count(ANSWER_OPEN), answer.count(ANSWER_CLOSE)
    if _half_tags(answer):
        return "an answer tag without its >"
    if opened > 1 or opened != closed:
        return f"{ANSWER_OPEN} stands {opened} times and {ANSWER_CLOSE} {closed} times"
    if opened == 0:
        if not answer:
            return "the answer is empty"
        return f"no {ANSWER_OPEN} pair" if answer_tags else None
    before, _, rest = answer.partition(ANSWER_OPEN)
    inside, pair_closes, after = rest.partition(ANSWER_CLOSE)
    if not pair_closes:
        return f"{ANSWER_CLOSE} stands before {ANSWER_OPEN}"
    if not inside.strip():
        return "the answer is empty"
    if after:
        return f"text after {ANSWER_CLOSE}"
    return f"text before {ANSWER_OPEN}" if answer_tags and before else None


def _half_tags(answer: str) -> bool:
    """Whether an answer tag was begun without its `>`, as in `<answer 42`."""
    for tag in (ANSWER_OPEN, ANSWER_CLOSE):
        start = answer.find(tag[:-1])
        while start >= 0:
            following = answer[start + len(tag) - 1 : start + len(tag)]
            if following != ">" and not following.isalnum():  # <answers> is another word
                return True
            start = answer.find(tag[:-1], start + 1)
    return False


def _ends_in_half_tag(answer: str) -> bool:
    """Whether a cut-off answer stops inside `<answer>`; a lone `<` counts where it is all."""
    return answer == "<" or any(answer.endswith(ANSWER_OPEN[:n]) for n in range(2, 8))


def think_format(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    prompt_text: Sequence[str] | None = None,
    truncated: Sequence[bool] | None = None,
    answer_tags: bool = False,
    **_: Any,
) -> list[float]:
    """1 where `is_think_format` holds, else 0.

    `prompt_text` (rendered prompts) and `truncated` are columns that the trainer adds.
    """
    texts = prompt_texts(prompts, prompt_text)
    cut = [False] * len(texts) if truncated is None else truncated
    return [
        float(
            is_think_format(
                completion_text(completion),
                prompt=text,
                truncated=is_cut,
                answer_tags=answer_tags,
            )
        )
        for completion, text, is_cut in zip(completions, texts, cut, strict=True)
    ]


def tag_count(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    prompt_text: Sequence[str] | None = None,
    **_: Any,
) -> list[float]:
    """A quarter for each of <think>, </think>, <answer>, </answer> that stands exactly once.

    A <think> that the prompt opened counts as standing. After open-r1's reward of this name, which
    counts only tags on lines of their own and agrees where they are.
    """
    scores = []
    for completion, text in zip(completions, prompt_texts(prompts, prompt_text), strict=True):
        whole = OPEN * opens_thinking(text) + completion_text(completion)
        tags = (OPEN, CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
        scores.append(sum(0.25 for tag in tags if whole.count(tag) == 1))
    return scores
