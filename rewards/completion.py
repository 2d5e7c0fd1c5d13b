"""Reading a completion: its text, whether its thinking has ended, and what stands after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OPEN, CLOSE = "<think>", "</think>"

# End markers that a decoder may leave at the end of a completion, besides <|...|> forms.
_END_MARKERS = (
    "</s>",
    "<s>",
    "<eos>",
    "<bos>",
    "<pad>",
    "<unk>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "[EOS]",
    "[PAD]",
)
_BARS = (("<|", "|>"), ("<\uff5c", "\uff5c>"))  # ASCII bars, and DeepSeek's full-width ones
_LONGEST_MARKER = 40


def completion_text(completion: Any) -> str:
    """The text of a completion: a string, or the last message's content of a conversation."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion:
        content = completion[-1].get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, Sequence):  # content in parts
            return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return ""


def prompt_texts(prompts: Sequence[Any], rendered: Sequence[str] | None = None) -> list[str]:
    """The text that each completion went on from.

    `rendered` (the column `prompt_text`) is what the chat template made of a conversation; without
    it only an assistant message that the prompt itself began can be known.
    """
    if rendered is not None:
        return list(rendered)
    return [
        prompt
        if isinstance(prompt, str)
        else completion_text(prompt)
        if prompt and prompt[-1].get("role") == "assistant"
        else ""
        for prompt in prompts
    ]


def opens_thinking(prompt: str) -> bool:
    """Whether the prompt has already opened <think>: it ends with the tag and white space."""
    return prompt.rstrip().endswith(OPEN)


def strip_end_markers(text: str) -> str:
    """`text` without trailing special tokens (<|im_end|>, </s>, ...) and white space."""
    end = len(text)
    while True:
        while end and text[end - 1].isspace():
            end -= 1
        start = _end_marker_start(text, end)
        if start is None:
            return text[:end]
        end = start


def _end_marker_start(text: str, end: int) -> int | None:
    for marker in _END_MARKERS:
        if text.endswith(marker, 0, end):
            return end - len(marker)
    for opening, closing in _BARS:
        if not text.endswith(closing, 0, end):
            continue
        start = text.rfind(opening, max(0, end - _LONGEST_MARKER), end - len(closing))
        name = text[start + len(opening) : end - len(closing)]
        if start >= 0 and name and not any(c.isspace() or c in "<>|" for c in name):
            return start
    return None


def after_thinking(text: str, *, prompt: str = "") -> str | None:
    """What stands after the thinking; all of it where there is none; None if it never ended.

    Whether the thinking holds anything does not matter here: `think_format` judges that.
    """
    close = text.rfind(CLOSE)
    opened = text.rfind(OPEN)
    if opened > close or (close < 0 and opens_thinking(prompt)):
        return None
    return text if close < 0 else text[close + len(CLOSE) :]


def thinking(text: str, *, prompt: str = "") -> str:
    """The thinking: inside the first <think> up to the last </think>; all of it where no tag is."""
    opened, close = text.find(OPEN), text.rfind(CLOSE)
    start = opened + len(OPEN) if opened >= 0 and not opens_thinking(prompt) else 0
    return text[start : close if close >= start else len(text)]
