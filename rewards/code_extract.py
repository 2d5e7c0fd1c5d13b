"""Finds the program in a completion: linear in its length, and without parsing Python."""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

from .completion import after_thinking, strip_end_markers

_PYTHON = re.compile(r"(python|py|python3|py3|python3?\.\d+|pypy3?)\b", re.IGNORECASE)
_FENCE = re.compile(r"^([ \t>]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$")
_INLINE_FENCE = re.compile(r"```(?:python3?\b|py\b)?([^`\n]+)```")
_ANSWER = re.compile(r"<answer>|</answer>")
_CODE_LINE = re.compile(
    r"(?:(?:async[ \t]+)?def[ \t]+\w+|class[ \t]+\w+[ \t]*[(:]|import[ \t]+\w"
    r"|from[ \t]+[\w.]+[ \t]+import\b|@\w|return\b|(?:for|while|if|elif|with)\b.*:"
    r"|(?:else|try|finally):|raise\b"
    r"|[\w.\[\], \t*]+[-+*/%&|^]?=[^=]|[\w.]+\(.*\)?|pass\b|global\b|assert\b|lambda\b|yield\b)"
)


class _Block(NamedTuple):
    language: str
    code: str


def _blocks(text: str) -> list[_Block]:
    """Return the fenced blocks in order; the last may lack its closing fence."""
    blocks: list[_Block] = []
    fence, language, indent, lines = "", "", "", []
    for line in text.split("\n"):
        match = _FENCE.match(line.rstrip("\r"))
        if not fence:
            if match:
                indent, fence, language = match.groups()
                lines = []
            continue
        bare = match and not match[3] and len(match[1]) <= len(indent) + 3  # deeper: a docstring's
        if match and bare and match[2][0] == fence[0] and len(match[2]) >= len(fence):
            blocks.append(_Block(language, "\n".join(lines)))
            fence = ""
        else:
            lines.append(line.removeprefix(indent))
    if fence and any(line.strip() for line in lines):
        blocks.append(_Block(language, "\n".join(lines)))
    return blocks


def _looks_like_code(text: str) -> bool:
    return any(_CODE_LINE.match(line.strip()[:200]) for line in text.split("\n"))


def _is_python(block: _Block) -> bool:
    return not block.language or _PYTHON.match(block.language.strip("{}.")) is not None


def _fenced(text: str) -> str | None:
    """Return the last Python block, or the last one without a language that looks like code.

    A block without a language after a Python block is as often its output as a better program.
    """
    blocks = [block for block in _blocks(text) if _is_python(block) and block.code.strip()]
    for block in reversed(blocks):
        if block.language or _looks_like_code(block.code):
            return block.code
    if blocks:
        return blocks[-1].code
    inline = _INLINE_FENCE.findall(text) if "```" in text else []
    return inline[-1] if inline else None


def _last_answer(text: str) -> str | None:
    """Return what the last <answer> tag holds, closed or cut off at the end."""
    start = None
    content = None
    for match in _ANSWER.finditer(text):
        if match.group() == "<answer>":
            start = match.end()
        elif start is not None:
            content, start = text[start : match.start()], None
    return content if start is None else text[start:]


def _is_prose(line: str) -> bool:
    """Say whether a line outside any fence reads as a sentence."""
    words = line.split()
    plain = all(word.rstrip(",.:'`").isalpha() for word in words[:2])
    return not words or (
        len(words) > 2 and plain and line[:1].isupper() and "=" not in line and words[1] != "if"
    )


def _unfenced(text: str) -> str | None:
    """Return text that is code as it stands, without sentences before and after it."""
    lines = text.split("\n")
    first, last = 0, len(lines)
    while first < last and _is_prose(lines[first]):
        first += 1
    while last > first and _is_prose(lines[last - 1]):
        last -= 1
    code = "\n".join(lines[first:last])
    return code if _looks_like_code(code) else None


def extract_code(completion: str) -> str | None:
    """Return the program that a completion offers, or None.

    The last fenced block (python, py, python3 or no language) outside the thinking, inside the
    last <answer> tags where those hold one; else the text of the tags; else unfenced code.
    """
    text = after_thinking(completion)
    if text is None:
        return None
    text = strip_end_markers(text)
    answer = _last_answer(text)
    if answer is not None:
        code = _fenced(answer)
        if code is None and "```" not in answer:
            code = _unfenced(answer)
        if code is not None:
            return _tidy(code)
    code = _fenced(text)
    if code is None and answer is None and not _blocks(text):
        code = _unfenced(text)
    return None if code is None else _tidy(code)


def _tidy(code: str) -> str:
    """Normalise line ends and take off indentation that every line shares, but for a bare body."""
    code = code.replace("\r\n", "\n").removeprefix("\ufeff").strip("\n") + "\n"
    first = next((line for line in code.split("\n") if line.strip()), "")
    if re.match(r"[ \t]+(?:def|class|import|from|@)\b", first):
        return textwrap.dedent(code)
    return code
