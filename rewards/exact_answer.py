"""The answer that stands after the thinking, compared with the gold exactly.

For answers of one form (a digit, a word, a whole number). Mathematics in all its spellings is what
`math_answer` is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from .completion import after_thinking, completion_text, prompt_texts, strip_end_markers

_BRACES = re.compile(r"\\[{}\\]|[{}]")  # escaped braces belong to the content
_LONGEST_NUMBER = 200  # characters; longer texts are compared as texts


def exact_answer(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    *,
    prompt_text: Sequence[str] | None = None,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    **_: Any,
) -> list[float | None]:
    """1 where the completion's answer equals the column `answer`, else 0; None without a gold.

    The answer is the last \\boxed{}, else <answer>, else the text after </think>; thinking may be
    empty or absent, but an unclosed <think> has no answer. Texts are equal up to white space, and
    plain numbers by value (1,000 = 1000.0). A gold may be a whole GSM8K solution with `####`, or a
    list of alternatives.
    """
    texts = prompt_texts(prompts, prompt_text)
    found = [
        extract_answer(completion_text(completion), prompt=text)
        for completion, text in zip(completions, texts, strict=True)
    ]
    if log_extra is not None:
        log_extra("extracted_answer", list(found))
    return [
        None if not gold_answers(gold) else float(is_match(candidate, gold))
        for candidate, gold in zip(found, answer, strict=True)
    ]


def exact_match(
    completions: Sequence[Any], answer: Sequence[Any], *, ignore_case: bool = False, **_: Any
) -> list[float | None]:
    """1 where the whole completion, thinking included, is the column `answer`, else 0.

    Only white space and end markers around it are forgiven.
    """

    def fold(text: str) -> str:
        text = strip_end_markers(text).strip()
        return text.casefold() if ignore_case else text

    return [
        None if gold is None else float(fold(completion_text(completion)) == fold(str(gold)))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def extract_answer(completion: str, *, prompt: str = "") -> str | None:
    """The final answer of a completion, or None: no text, or thinking that never ended."""
    text = after_thinking(strip_end_markers(completion), prompt=prompt)
    if text is None:
        return None
    found = last_boxed(text)
    if found is None:
        found = _last_tagged(text)
    return (text if found is None else found).strip() or None


def last_boxed(text: str) -> str | None:
    """The content of the last closed \\boxed{...} or \\fbox{...}, braces nested; linear time."""
    opens: list[int] = []
    last: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        position = match.start()
        if match[0] == "{":
            opens.append(position)
        elif match[0] == "}" and opens:
            start = opens.pop()
            if _is_box(text, start) and (last is None or start > last[0]):
                last = start, position
    return None if last is None else text[last[0] + 1 : last[1]]


def _is_box(text: str, brace: int) -> bool:
    end = brace - 1 if text[brace - 1 : brace] == " " else brace
    return text.endswith(("\\boxed", "\\fbox"), 0, end)


def _last_tagged(text: str) -> str | None:
    close = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, close) if close >= 0 else -1
    return None if start < 0 else text[start + len("<answer>") : close]


def gold_answers(gold: Any) -> list[str]:
    """The acceptable answers of a gold: what follows `####`, what a \\boxed{} holds, or its text.

    A list gives alternatives; None and empty text give none.
    """
    if isinstance(gold, list | tuple):
        return [answer for one in gold for answer in gold_answers(one)]
    if gold is None:
        return []
    text = str(gold)
    if "####" in text:
        text = text.rsplit("####", 1)[1]
    boxed = last_boxed(text)
    text = (text if boxed is None else boxed).strip()
    return [text] if text else []


def is_match(candidate: str | None, gold: Any) -> bool:
    """Whether a candidate equals any of the gold's answers."""
    if candidate is None:
        return False
    read = _read(candidate)
    return any(read == _read(answer) for answer in gold_answers(gold))


def _read(text: str) -> str | Fraction:
    """A plain number as its value, anything else as text with its white space evened out."""
    text = " ".join(text.split())
    if len(text) > 1 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1].strip()
    number = _number(text)
    return text if number is None else number


def _number(text: str) -> Fraction | None:
    """An integer, decimal or a/b, thousands separated by commas or not; a leading $ is dropped."""
    text = text.removeprefix("$").strip().removesuffix(".").replace("\u2212", "-")
    if not text.isascii() or len(text) > _LONGEST_NUMBER:
        return None
    whole, dot, decimals = text.partition(".")
    if "," in whole:
        first, *groups = whole.lstrip("+-").split(",")
        if not (1 <= len(first) <= 3 and all(len(group) == 3 for group in groups)):
            return None
        whole = whole.replace(",", "")
    plain = whole + dot + decimals
    if any(c not in "0123456789+-./" for c in plain):
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None
