"""Whether a completion matches a regular expression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import regex

from .completion import after_thinking, completion_text, prompt_texts, strip_end_markers


@dataclass(frozen=True)
class RegexMatch:
    """1 where the pattern is found, else 0; the pattern is given here or as a column `pattern`.

    part: `answer` (after the thinking; 0 where the thinking never ended) or `completion` (all).
    mode: `search` (anywhere) or `fullmatch`. Flags go into the pattern: (?i), (?s), (?m), (?x).
    A pattern can take exponential time on text made for it: after `limit_s` a row is unscored and
    counted in `regex/timeouts`. Syntax of the package `regex`, a superset of Python's `re`.
    """

    pattern: str | None = None
    part: Literal["answer", "completion"] = "answer"
    mode: Literal["search", "fullmatch"] = "search"
    limit_s: float = 1.0

    __name__ = "regex"

    def __post_init__(self) -> None:
        if self.part not in ("answer", "completion"):
            raise ValueError(f"part = {self.part!r}: must be answer or completion")
        if self.mode not in ("search", "fullmatch"):
            raise ValueError(f"mode = {self.mode!r}: must be search or fullmatch")
        if self.pattern is not None:
            _compiled(self.pattern)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        pattern: Sequence[str | None] | None = None,
        prompt_text: Sequence[str] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        if self.pattern is None and pattern is None:
            raise ValueError("no pattern: set kwargs.pattern, or give a column `pattern`")
        texts = prompt_texts(prompts, prompt_text)
        rewards: list[float | None] = []
        timeouts = 0
        for row, (completion, prompt) in enumerate(zip(completions, texts, strict=True)):
            wanted = self.pattern or (pattern[row] if pattern is not None else None)
            try:
                rewards.append(self._score(wanted, completion_text(completion), prompt))
            except TimeoutError:
                timeouts += 1
                rewards.append(None)
        if log_metric is not None:
            log_metric("regex/timeouts", timeouts)
        return rewards

    def _score(self, pattern: str | None, text: str, prompt: str) -> float | None:
        if pattern is None:
            return None
        if self.part == "answer":
            answer = after_thinking(strip_end_markers(text), prompt=prompt)
            if answer is None:
                return 0.0
            text = answer.strip()
        compiled = _compiled(pattern)
        match = compiled.fullmatch if self.mode == "fullmatch" else compiled.search
        return float(match(text, timeout=self.limit_s) is not None)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"pattern = {pattern!r}: not a regular expression: {error}") from None
