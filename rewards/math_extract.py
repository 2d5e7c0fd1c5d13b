"""Find the final answer in a completion, in time linear in its length.

Order: what stands in the last <answer> tags, or else in the whole answer after the thinking;
there, the last \\boxed{} (boxes side by side count together), `####`, "the answer is ...", the
bare text, and last the one value of the final sentence. An answer that only the thinking holds
is not found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TAIL_CHARS = 60_000  # the final answer is looked for in the last characters only
MAX_STATEMENT = 600
MAX_BARE = 1500
MAX_PIECES = 60  # boxes or tags side by side

_SPECIAL_TOKENS = (
    "<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<eos>",
    "<|eom_id|>",
    "<end_of_turn>", "<pad>", "<|return|>", "<\u2581end\u2581of\u2581sentence>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(\{)?|\\.|[{}]", re.S)
_BOX_SUFFIX = re.compile(r"\s*(?:_\s*\{?[0-9]{1,2}\}?|\^\s*\{?\\circ\}?|\^\\circ|\\%|%|\u00b0)")
_GAP = re.compile(
    r"(?:[\s$,;&.*]|\\[()\[\],;:! \\]|\\q?quad|\\text\s*\{|\\mbox\s*\{|[{}]|\band\b|\bor\b"
    r"|\beither\b|\balternatively\b"
    r"|\bmaybe\b|\bperhaps\b|\bpossibly\b|\bbut\b|(?:\\?[A-Za-z]\w?|\([a-zA-Z]\))\s*(?:=|:))*",
    re.I,
)
_FILLER = re.compile(
    r"\b(?:the|final|answers?|case|is|are|also|it|could|be|can|possible|another|one|candidate|option|choice|solution|might"
    r"|may|my|guess)\b|[0-9#:]",
    re.I,
)
_HEDGE = re.compile(
    r"\b(?:or|could|might|alternatively|either|maybe|perhaps|possibly|otherwise)\b", re.I
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correct(?:ion|ed)?|mistake|rather|no|instead|final|so|thus|therefore)\b",
    re.I,
)
_STATEMENT = re.compile(
    r"(?:\b(?:ans(?:wers?)?|choice|option)\b(?:[*_]{1,3})?(?:[^\n.:=$]{0,60}?\s(?:is|are|was|be"
    r"|equals)\b|\s*[:=\uff1a])|\u7b54\u6848\s*(?:\u662f|\u4e3a|[:\uff1a]))[\s*_]*[:\uff1a]?"
    r"(?:\s*(?:therefore|thus|simply|just|exactly|indeed|clearly|then|option|choice"
    r"|indeed)\b)*:?[ \t]*",
    re.I,
)
_HEADING = re.compile(
    r"^[ \t]*(?:#+\s*|\*{1,3}\s*)?(?:final\s+)?answer\s*:?\s*\*{0,3}\s*:?[ \t]*$", re.I | re.M
)
_LETTER_STATEMENT = re.compile(
    r"\b(?i:option|choice)\s+\(?([A-J])\)?\s+(?:is|must be)\s+(?:the\s+)?(?:correct|right|answer)"
    r"|(?<!\bor )(?<!and )(?<!, )\(([A-J])\)\s+is\s+(?:the\s+)?(?:correct|right|answer)"
    r"|(?<!\bor )(?<!and )(?<!, )\b([A-J])\s+is\s+(?:the\s+)?(?:correct|right|best)"
    r"\s+(?:answer|choice|option)",
)
_SENTENCE_END = re.compile(r"(?<![ap]\.m)(?<!\bsq)[.!?](?=\s+[A-Z\n(\\$*]|\s*\Z)|\n")
_PLURAL = re.compile(r"\b(?:solutions|roots|zeros|values)\b[^.]*\bare\b", re.I)
_LISTED = re.compile(r"\.\s+(?:[A-J]|-?[0-9]+)[.,](?=[\s$*]|\Z)")  # A. B. C.
_REASON = re.compile(
    r"[,;]?\s+(?:because|since|as|which|where|when|so|if|in order|making|giving|given|for"
    r"|after|at which|by|who)\b"
    r"|,\s+(?:and\s+)?(?:not|rather than|instead of)\s"
    r"|\s+[\u2014\u2013]\s+|\s+-\s+(?=[a-z])|;\s",
    re.I,
)
_WORDS = re.compile(r"[A-Za-z][a-z']+,?\s+\S+\s+\S")  # prose, not a bare answer
_ARITHMETIC = re.compile(r"(?:[-+*/\u00d7\u00f7^().,$\u20ac\u00a3%=\s0-9]|\b[b-zB-HJ-Z]\b)+")
_CAUSE = re.compile(r"[,;]?\s+(?:because|since)\b", re.I)
_SEGMENT = re.compile(r"\$\$?([^$]{1,300}?)\$\$?|\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]", re.S)
_NUMBER = re.compile(
    r"(?<![\w.])[-\u2212]?[$\u20ac\u00a3]?\s?(?:[0-9]{1,3}(?:,[0-9]{3})+"
    r"|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?\s?%?(?!\w)"
)
_NAME = re.compile(r"\\?[A-Za-z]{1,2}(?:_\{?\w\}?)?")  # of what the sentence is about
_DOUBT = re.compile(
    r"\?|\b(?:not|no|or|maybe|perhaps|if|guess|possibly|could|might|either|cannot|can't|don't"
    r"|unknown|unsure|"
    r"options?|choices?|wrong|incorrect|let|suppose|assume|between)\b"
    r"|n't|\b(?:more|less|greater|fewer|larger|smaller) than\b|\bat (?:least|most)\b",
    re.I,
)


@dataclass(frozen=True)
class Extraction:
    """`parts` = the answer, in several pieces when boxes stand side by side; each piece in one
    or more spellings to try in order. `source` says where it stood; `later` = answers stated
    after it.
    """

    parts: tuple[tuple[str, ...], ...]
    source: str
    later: tuple[str, ...] = ()


NOTHING = Extraction((), "none")


def final_answer_text(completion: str) -> str | None:
    """What follows the thinking; None when the thinking was never closed."""
    text = _without_special_tokens(completion[-TAIL_CHARS:])
    close = text.rfind("</think>")
    if close < 0 and len(completion) > TAIL_CHARS:
        close_all = completion.rfind("</think>")
        opened = completion.rfind("<think>")
        if opened > close_all:
            return None
    elif close >= 0:
        text = text[close + len("</think>") :]
    return None if "<think>" in text else text.strip()


def _without_special_tokens(text: str) -> str:
    text = text.rstrip()
    while text.endswith(_SPECIAL_TOKENS):
        text = text[: text.rindex("<")].rstrip()
    return text


def extract(completion: str) -> Extraction:
    """The final answer of a completion."""
    text = final_answer_text(completion)
    if not text:
        return NOTHING
    tagged = _tagged(text)
    if tagged is None:
        return _extract_from(text, "")
    inside, after = tagged
    found = _extract_from(inside, "answer tags, ") if inside.strip() else NOTHING
    boxed = _boxed(after)
    if boxed is not None:
        found = Extraction(
            found.parts, found.source, found.later + tuple(part[0] for part in boxed.parts)
        )
    return found


def _tagged(text: str) -> tuple[str, str] | None:
    """The inside of the last <answer> tags and the text after them; an open pair reaches to the
    end.
    """
    opened = text.rfind("<answer>")
    if opened < 0:
        closed = text.rfind("</answer>")
        return None if closed < 0 else (text[:closed], text[closed + 9 :])
    start = opened + len("<answer>")
    closed = text.find("</answer>", start)
    inside, after = (text[start:], "") if closed < 0 else (text[start:closed], text[closed + 9 :])
    pieces = [inside.strip()]
    while len(pieces) < MAX_PIECES:  # pairs side by side count together
        before = text[:opened].rstrip()
        opened = before.rfind("<answer>")
        if opened < 0 or not before.endswith("</answer>"):
            break
        piece = before[opened + 8 : -9].strip()
        if piece not in pieces:
            pieces.insert(0, piece)
    return (inside if len(pieces) == 1 else ", ".join(pieces)), after


def _extract_from(text: str, where: str) -> Extraction:
    boxed = _boxed(text)
    if boxed is not None:
        return Extraction(boxed.parts, where + boxed.source, boxed.later)
    found = _hashes(text) or _stated(text)
    if found is not None:
        return Extraction(found.parts, where + found.source)
    bare = text.strip()
    if len(bare) <= MAX_BARE and (where or "\n" not in bare or len(bare) < 200):
        spellings = (bare,)
        if _WORDS.match(bare):
            spellings = (bare, *_sentence_value(bare), *_CAUSE.split(bare, maxsplit=1)[:1])
        return Extraction((spellings,), where + "bare answer")
    value = _sentence_value(text)
    return Extraction((value,), where + "last sentence") if value else NOTHING


# ---- boxes


def boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of the closed boxes that are in no other box, in one scan."""
    found: list[tuple[int, int, str]] = []
    stack: list[tuple[int, int] | None] = []
    open_boxes = 0
    for match in _BOX.finditer(text):
        token = match[0]
        if token.startswith(("\\boxed", "\\fbox", "\\framebox")):
            if match[1]:
                stack.append((match.start(), match.end()))
                open_boxes += 1
            elif open_boxes == 0:
                end = match.end()
                content = re.match(r"\s*(\\[A-Za-z]+|[^\s\\{}$])", text[end : end + 40])
                if content:
                    found.append((match.start(), end + content.end(), content[1]))
        elif token == "{":
            stack.append(None)
        elif token == "}" and stack:
            opened = stack.pop()
            if opened is not None:
                open_boxes -= 1
                start, inner = opened
                while found and found[-1][0] > start:
                    found.pop()
                found.append((start, match.end(), text[inner : match.start()]))
    return found


def _boxed(text: str) -> Extraction | None:
    if "boxed" not in text and "box" not in text:
        return None
    found = boxes(text)
    if not found:
        return None
    group = [found[-1]]
    for box in reversed(found[:-1]):
        if not _side_by_side(text[box[1] : group[0][0]]) or len(group) >= MAX_PIECES:
            break
        group.insert(0, box)
    parts = []
    for _, end, content in group:
        suffix = _BOX_SUFFIX.match(text, end)
        parts.append((content.strip() + (suffix[0].strip() if suffix else ""),))
    after = text[group[-1][1] :]
    stated = _stated(after)
    later = stated.parts[0] if stated is not None else ()
    return Extraction(tuple(parts), "box" if len(parts) == 1 else "boxes", later[:1])


def _side_by_side(gap: str) -> bool:
    """Whether two boxes list values of one answer: only separators between, or words of doubt."""
    if len(gap) > 80:
        return False
    if _GAP.fullmatch(gap) or _GAP.fullmatch(_FILLER.sub(" ", gap)):
        return True
    return bool(_HEDGE.search(gap)) and not _CORRECTION.search(gap) and "\n" not in gap


# ---- statements


def _hashes(text: str) -> Extraction | None:
    at = text.rfind("####")
    if at < 0:
        return None
    line = text[at + 4 :].strip().split("\n", 1)[0].strip()
    return Extraction(((line,),), "####") if line else None


def _stated(text: str) -> Extraction | None:
    """The last "the answer is ..." or heading "Answer"; choices as "(B) is correct"."""
    tail = text[-20_000:]
    found = [m for pattern in (_STATEMENT, _HEADING) for m in pattern.finditer(tail)]
    found = sorted((m for m in found if tail[m.end() :].strip()), key=lambda m: m.end())
    last = found[-1] if found else None
    letter = None
    for match in _LETTER_STATEMENT.finditer(tail):
        letter = match
    if letter is not None and (last is None or letter.start() >= last.start()):
        return Extraction((((letter[1] or letter[2] or letter[3]),),), "choice")
    if last is None:
        return None
    parts = [_spellings(_statement(tail, last.end()))]
    for match in reversed(found[:-1]):
        start = last.start() if match.end() <= last.start() else match.end()
        rest = _statement(tail[:start], match.end())
        spellings = _spellings(rest)
        named = bool(spellings) and _FILLER.sub("", spellings[0]).strip() != ""
        if spellings and not named and spellings[0].strip()[:1].isdigit():
            named = True
        if not named or len(rest) > len(spellings[0]) + 8 or len(parts) >= MAX_PIECES:
            break  # other text between: the last statement stands alone
        parts.insert(0, spellings)
        last = match
    parts = [part for part in parts if part]
    return Extraction(tuple(parts), "statement") if parts else None


def _statement(text: str, start: int) -> str:
    return text[start:].lstrip(" \t\n:*_")[:MAX_STATEMENT]


def _spellings(rest: str) -> tuple[str, ...]:
    """The statement up to its end, then without its reason, then its only piece of mathematics."""
    display = re.match(r"(?:\$\$|\\\[)\s*(.+?)\s*(?:\$\$|\\\])", rest, re.S)
    if display:
        return (display[1].strip(),)
    ends = (m.start() for m in _SENTENCE_END.finditer(rest))
    end = next((end for end in ends if _balanced(rest[:end])), len(rest))
    if _LISTED.match(rest, end):
        end = len(rest)
    sentence = rest[:end].strip(" \t*_")
    found = [sentence]
    reason = _REASON.search(sentence)
    if reason and sentence[: reason.start()].strip():
        found.append(sentence[: reason.start()].strip())
    segments = _segments(found[-1])
    if len(segments) == 1 and not _DOUBT.search(_SEGMENT.sub(" ", found[-1])):
        found.append(segments[0])
    return tuple(dict.fromkeys(s for s in found if s))


def _balanced(text: str) -> bool:
    """Whether a piece of text ends outside braces."""
    return text.count("{") == text.count("}")


def _segments(text: str) -> list[str]:
    return [(m[1] or m[2] or m[3]).strip() for m in _SEGMENT.finditer(text)]


def _sentence_value(text: str) -> tuple[str, ...]:
    """The one value of the last sentence, when it states exactly one and no doubt."""
    lines = [line for line in text[-4000:].split("\n") if line.strip()]
    if not lines:
        return ()
    line = lines[-1].strip()
    ends = [m.end() for m in _SENTENCE_END.finditer(line)]
    start = next((e for e in reversed(ends) if line[e:].strip(" .*")), 0)
    sentence = line[start:].strip().rstrip(".!").strip()
    outside = _SEGMENT.sub(" ", sentence)
    if not sentence or _DOUBT.search(outside):
        return ()
    segments = _segments(sentence)
    if segments:
        unique = list(dict.fromkeys(s for s in segments if not _NAME.fullmatch(s)))
        if len(unique) > 1 and _PLURAL.search(outside):
            return (", ".join(unique),)
        return (unique[0],) if len(unique) == 1 else ()
    if "\\" in sentence:
        return ()
    if "=" in sentence:
        runs = [m[0].strip(" ,.(") for m in _ARITHMETIC.finditer(sentence[-400:]) if "=" in m[0]]
        return (runs[-1],) if runs else ()
    numbers = list(dict.fromkeys(m[0].replace(" ", "") for m in _NUMBER.finditer(sentence)))
    return (numbers[0],) if len(numbers) == 1 and len(sentence) > len(numbers[0]) else ()


# ---- golds


def gold_text(gold: str) -> str:
    """The answer in a gold: after `####`, in its last box or <answer> tags, or all of it."""
    text = gold.strip()
    at = text.rfind("####")
    if at >= 0:
        return text[at + 4 :].strip()
    if "<answer>" in text:
        tagged = _tagged(text)
        text = tagged[0].strip() if tagged is not None else text
    found = boxes(text[-TAIL_CHARS:]) if "box" in text else []
    if found:
        extraction = _boxed(text[-TAIL_CHARS:])
        assert extraction is not None
        return ", ".join(part[0] for part in extraction.parts)
    return text
