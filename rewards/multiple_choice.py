"""Multiple choice: the letter that the answer chooses, compared with the gold letter.

A letter counts in any dress: `B`, `(b)`, `**B.**`, `\\boxed{\\text{B}}`, `B) 42`, `Option B`. An
answer that names several letters, one after another or one in each box, chooses none of them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from .completion import after_thinking, completion_text, prompt_texts, strip_end_markers
from .exact_answer import last_boxed

_DRESS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boxed|fbox)\b|[\\*_$`{}\[\]]")
_LEAD = re.compile(r"(?:the )?(?:correct )?(?:final )?(?:answer|option|choice)\b(?: is\b)?")
_LETTER = re.compile(  # at the start of folded text, with what shows that it is no word
    r"\(? ?([a-z]) ?(?:[).:,;]|$|- | (?=(?:because|since|as|is (?:the )?(?:correct|right))\b)) ?"
)
_ANOTHER = re.compile(r"(?:^|[\s(])[a-z][).:,](?:\s|$)|\b(?:or|and) \(?[a-z]\)?$|^[a-z]$")
_STATEMENT = re.compile(  # a look-ahead: what follows one may hold the next
    r"\b(?:answer|option|choice)\b(?:\s+(?:is|would\s+be|must\s+be)\b)?\s*[:=]?(?=([^\n]{0,200}))",
    re.IGNORECASE,
)
_JOINED = re.compile(r" ?(?:,|;|&|\band\b| ) ?")


def multiple_choice(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answer: Sequence[Any],
    *,
    choices: Sequence[Any] | None = None,
    prompt_text: Sequence[str] | None = None,
    **_: Any,
) -> list[float | None]:
    """1 where the answer after the thinking chooses the letter of the column `answer`, else 0.

    The gold is a letter, several (`A, C`: all must be named), or, with a column `choices` (a list,
    or an object by letter), the text of a choice or its index from 0. With `choices` an answer may
    also be a choice's text, and a letter with the text of another choice is wrong. None where the
    gold is none of these.
    """
    rewards: list[float | None] = []
    texts = prompt_texts(prompts, prompt_text)
    for row, (completion, gold, prompt) in enumerate(zip(completions, answer, texts, strict=True)):
        options = _options(None if choices is None else choices[row])
        wanted = _gold_letters(gold, options)
        chosen = chosen_letters(completion_text(completion), prompt=prompt, options=options)
        rewards.append(None if not wanted else float(chosen == wanted))
    return rewards


def chosen_letters(
    completion: str, *, prompt: str = "", options: Mapping[str, str] | None = None
) -> frozenset[str]:
    """The letters that a completion chooses, in capitals; empty where it does not say."""
    text = after_thinking(strip_end_markers(completion), prompt=prompt)
    if text is None:
        return frozenset()
    close = text.rfind("</answer>")
    opened = text.rfind("<answer>", 0, close) if close >= 0 else -1
    if opened >= 0:
        text = text[opened + len("<answer>") : close]
    boxes = _boxes(text)
    if boxes:
        return _agreed([_letters(box, options or {}) for box in boxes])
    readings = [_letters(text, options or {})]
    readings += [_letters(match[1], options or {}) for match in _STATEMENT.finditer(text)]
    return _agreed([letters for letters in readings if letters])


def _boxes(text: str) -> list[str]:
    """What the closed boxes hold, the last first; at most a few."""
    found: list[str] = []
    while len(found) < 8 and (box := last_boxed(text)) is not None:
        found.append(box)
        text = text[: max(text.rfind("\\boxed"), text.rfind("\\fbox"))]
    return found


def _agreed(readings: Sequence[frozenset[str]]) -> frozenset[str]:
    return readings[0] if readings and len(set(readings)) == 1 else frozenset()


def _letters(text: str, options: Mapping[str, str]) -> frozenset[str]:
    """The letters that a short text is about, or none."""
    if len(text) > 2000:
        return frozenset()
    text = _fold(text)
    by_text = {letter for letter, option in options.items() if option and option == text}
    if by_text:
        return frozenset(by_text) if len(by_text) == 1 else frozenset()
    if lead := _LEAD.match(text):
        text = text[lead.end() :].lstrip(" :=")
    if match := _LETTER.match(text):
        letter, rest = match[1].upper(), text[match.end() :].strip(" .")
        if _fits(letter, rest, options):
            return frozenset([letter])
    parts = [part.strip("(). ") for part in _JOINED.split(text.strip(" ."))]
    if parts and all(len(part) == 1 and part.isalpha() and part.isascii() for part in parts):
        return frozenset(part.upper() for part in parts)
    return frozenset()


def _fits(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether what follows a letter names neither another letter nor another choice's text."""
    own = options.get(letter, "")
    if own and rest.startswith(own):
        rest = rest[len(own) :].strip(" .")
    elif any(text and rest.startswith(text) for text in options.values()):
        return False
    return _ANOTHER.search(rest) is None


def _fold(text: str) -> str:
    return " ".join(_DRESS.sub(" ", text).lower().split()).rstrip(".")


def _options(choices: Any) -> dict[str, str]:
    """Letter to folded text, of a list or an object by letter."""
    if isinstance(choices, Mapping):
        return {str(key).strip("() .").upper(): _fold(str(text)) for key, text in choices.items()}
    texts = [] if choices is None or isinstance(choices, str) else list(choices)
    return {
        letter: _fold(str(text))
        for letter, text in zip(string.ascii_uppercase, texts, strict=False)
    }


def _gold_letters(gold: Any, options: Mapping[str, str]) -> frozenset[str]:
    if isinstance(gold, bool) or gold is None:
        return frozenset()
    if isinstance(gold, int):
        letter = string.ascii_uppercase[gold : gold + 1] if gold >= 0 else ""
        return frozenset([letter]) if letter in options else frozenset()
    if isinstance(gold, Sequence) and not isinstance(gold, str):
        parts = [_gold_letters(part, options) for part in gold]
        return frozenset().union(*parts) if all(parts) else frozenset()
    text = str(gold).strip()
    if len(text) <= 8 and text.isascii() and text.isalpha() and text.isupper():
        return frozenset(text)  # AC
    return _letters(text, options)
