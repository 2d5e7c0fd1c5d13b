"""Language consistency: how much of the thinking is written in the script of one language.

DeepSeek-R1 (arXiv 2501.12948, section 2.3) adds the share of target-language words in the chain of
thought to the accuracy reward, against thinking that mixes languages. Here the share is over
letters by script, which needs no word list and works for scripts without spaces. It tells Chinese
from English, not German from English.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .completion import completion_text, prompt_texts, thinking

# Letters by script, as (first, last) code points of the blocks that running text uses (Unicode 16)
_SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF), (0xA640, 0xA69F)),
    "armenian": ((0x530, 0x58F),),
    "hebrew": ((0x590, 0x5FF),),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "devanagari": ((0x900, 0x97F),),
    "bengali": ((0x980, 0x9FF),),
    "gurmukhi": ((0xA00, 0xA7F),),
    "gujarati": ((0xA80, 0xAFF),),
    "tamil": ((0xB80, 0xBFF),),
    "telugu": ((0xC00, 0xC7F),),
    "kannada": ((0xC80, 0xCFF),),
    "malayalam": ((0xD00, 0xD7F),),
    "sinhala": ((0xD80, 0xDFF),),
    "thai": ((0xE00, 0xE7F),),
    "lao": ((0xE80, 0xEFF),),
    "burmese": ((0x1000, 0x109F),),
    "georgian": ((0x10A0, 0x10FF), (0x1C90, 0x1CBF)),
    "ethiopic": ((0x1200, 0x139F),),
    "khmer": ((0x1780, 0x17FF),),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)),
    "kana": ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
}

LANGUAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ["cs", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "id", "it", "lt", "lv"],
        ("latin",),
    ),
    **dict.fromkeys(
        ["ms", "nl", "no", "pl", "pt", "ro", "sk", "sl", "sv", "sw", "tl", "tr", "vi"], ("latin",)
    ),
    **dict.fromkeys(["be", "bg", "kk", "mk", "mn", "ru", "uk"], ("cyrillic",)),
    **dict.fromkeys(["ar", "fa", "ur"], ("arabic",)),
    **dict.fromkeys(["hi", "mr", "ne"], ("devanagari",)),
    "zh": ("han",),
    "ja": ("kana", "han"),
    "ko": ("hangul",),
    "el": ("greek",),
    "he": ("hebrew",),
    "hy": ("armenian",),
    "ka": ("georgian",),
    "bn": ("bengali",),
    "pa": ("gurmukhi",),
    "gu": ("gujarati",),
    "ta": ("tamil",),
    "te": ("telugu",),
    "kn": ("kannada",),
    "ml": ("malayalam",),
    "si": ("sinhala",),
    "th": ("thai",),
    "lo": ("lao",),
    "my": ("burmese",),
    "am": ("ethiopic",),
    "km": ("khmer",),
}

_RANGES = sorted(
    (first, last, script) for script, blocks in _SCRIPTS.items() for first, last in blocks
)
_STARTS = [first for first, _, _ in _RANGES]
_FENCES = (("```", "```"), ("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("`", "`"), ("$", "$"))
_OPENING = re.compile(r"```|\$\$|\\\[|\\\(|`|\$")
# LaTeX commands, tags, and Greek letters that stand alone, which are names of variables
_MARKUP = re.compile(
    r"\\[A-Za-z]+|</?[A-Za-z]+>|(?<![\u0370-\u03ff\u1f00-\u1fff])[\u0370-\u03ff]"
    r"(?![\u0370-\u03ff\u1f00-\u1fff])"
)


def language_consistency(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    language: str | Sequence[str] = "en",
    prompt_text: Sequence[str] | None = None,
    **_: Any,
) -> list[float]:
    """The share of the thinking's letters that belong to the language's script, from 0 to 1.

    `language` is a two-letter code, or a column of them. Code, formulas and tags are left out; 1
    where no letter remains. Without <think> tags the whole completion is read.
    """
    languages = [language] * len(completions) if isinstance(language, str) else language
    texts = prompt_texts(prompts, prompt_text)
    return [
        script_share(thinking(completion_text(completion), prompt=text), code)
        for completion, text, code in zip(completions, texts, languages, strict=True)
    ]


def script_share(text: str, language: str) -> float:
    """The share of letters outside code and formulas that are of `language`'s script."""
    scripts = LANGUAGES.get(language.lower().replace("_", "-").split("-")[0])
    if scripts is None:
        raise ValueError(f"language = {language!r}: unknown; codes: {', '.join(sorted(LANGUAGES))}")
    counts: Counter[str] = Counter()
    for character, count in Counter(_prose(text)).items():
        script = _script(character)
        if script is not None:
            counts[script] += count
    total = sum(counts.values())
    return sum(counts[script] for script in scripts) / total if total else 1.0


def _script(character: str) -> str | None:
    """The script of a letter; None for digits, signs and letters of scripts not listed."""
    if not character.isalpha():
        return None
    place = bisect_right(_STARTS, ord(character)) - 1
    if place < 0:
        return None
    _, last, script = _RANGES[place]
    return script if ord(character) <= last else None


def _prose(text: str) -> str:
    """`text` without code, formulas and markup, in one pass.

    A fence that is never closed opens nothing, nor do ` and $ closed on another line: a lone
    dollar sign is money.
    """
    closings = dict(_FENCES)
    parts: list[str] = []
    position = 0
    never_closed: set[str] = set()
    while (match := _OPENING.search(text, position)) is not None:
        fence = match[0]
        end = -1 if fence in never_closed else text.find(closings[fence], match.end())
        if end < 0:
            never_closed.add(fence)  # so that many lone fences cost one search, not one each
        if end < 0 or (len(fence) == 1 and "\n" in text[match.end() : end]):
            parts.append(text[position : match.end()])
            position = match.end()
            continue
        parts.append(text[position : match.start()])
        position = end + len(closings[fence])
    parts.append(text[position:])
    return _MARKUP.sub(" ", " ".join(parts))
