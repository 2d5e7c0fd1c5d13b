"""Shaping by length and form: overlong penalty, cosine, Kimi and budget rewards, repetition, steps.

Lengths are counted in tokens. Rewards that depend on correctness ask another reward, `verifier`,
and call a completion right where it gives 1; what the verifier cannot score stays unscored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from .completion import completion_text
from .registry import load_reward
from .signature import RewardFunction, accepted_arguments, is_async

# open-r1's pattern; `^` is the start of the completion, as there
_STEPS = re.compile(r"Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,")


def soft_overlong(
    completion_ids: Sequence[Sequence[int]],
    *,
    max_completion_len: int,
    soft_punish_cache: int,
    **_: Any,
) -> list[float]:
    """DAPO's penalty (arXiv 2503.14476, eq. 13) over the last `soft_punish_cache` tokens.

    With n tokens, limit L and cache C: 0 up to L - C, then (L - C - n) / C down to -1 at L, and -1
    beyond.
    """
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise ValueError(
            f"soft_punish_cache = {soft_punish_cache}: must be between 0 and max_completion_len "
            f"= {max_completion_len}"
        )
    return [
        soft_overlong_penalty(len(ids), max_completion_len, soft_punish_cache)
        for ids in completion_ids
    ]


def soft_overlong_penalty(length: int, max_completion_len: int, soft_punish_cache: int) -> float:
    """The penalty of one completion of `length` tokens; see `soft_overlong`."""
    free = max_completion_len - soft_punish_cache
    if length <= free:
        return 0.0
    return -1.0 if length > max_completion_len else (free - length) / soft_punish_cache


def cosine_length(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
    verifier: str = "exact_answer",
    verifier_kwargs: Mapping[str, Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Correctness on a cosine of the length (arXiv 2502.03373, appendix C.1).

    With n tokens: end + (start - end) (1 + cos(pi min(n / max_len, 1))) / 2. Right answers go from
    `max_value_correct` (short) to `min_value_correct` (long), wrong ones from `min_value_wrong`
    (short) to `max_value_wrong` (long): brevity pays where the answer is right, effort where not.
    """
    if max_len < 1:
        raise ValueError(f"max_len = {max_len}: must be at least 1 token")
    rewards: list[float | None] = []
    for right, ids in zip(
        _verdicts(verifier, verifier_kwargs, prompts, completions, completion_ids, columns),
        completion_ids,
        strict=True,
    ):
        start, end = (
            (max_value_correct, min_value_correct) if right else (min_value_wrong, max_value_wrong)
        )
        # without the clamp the cosine would climb again beyond max_len
        cosine = math.cos(math.pi * min(len(ids) / max_len, 1.0))
        rewards.append(None if right is None else end + 0.5 * (start - end) * (1.0 + cosine))
    return rewards


def kimi_length(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    *,
    verifier: str = "exact_answer",
    verifier_kwargs: Mapping[str, Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Length relative to the other completions of the same prompt (Kimi k1.5, arXiv 2501.12599).

    With l = 0.5 - (n - min n) / (max n - min n): l where the answer is right, min(0, l) where it is
    wrong, 0 where all completions of the prompt are equally long.
    """
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(repr(prompt), []).append(row)
    verdicts = _verdicts(verifier, verifier_kwargs, prompts, completions, completion_ids, columns)
    rewards: list[float | None] = [None] * len(prompts)
    for rows in groups.values():
        lengths = [len(completion_ids[row]) for row in rows]
        shortest, longest = min(lengths), max(lengths)
        for row, length in zip(rows, lengths, strict=True):
            share = (length - shortest) / (longest - shortest) if longest > shortest else 0.5
            value = 0.5 - share
            if verdicts[row] is not None:
                rewards[row] = value if verdicts[row] else min(0.0, value)
    return rewards


def length_budget(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    target_length: int | Sequence[int],
    *,
    mode: Literal["exact", "max"] = "exact",
    alpha: float = 0.0003,
    delta: float = 0.5,
    verifier: str = "exact_answer",
    verifier_kwargs: Mapping[str, Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Correctness within a token budget (L1, arXiv 2503.04697, eq. 1 and 2).

    With n tokens, budget N (a number, or the column `target_length`) and r = 1 where the answer is
    right: "exact" gives r - alpha |N - n|; "max" gives r clip(alpha (N - n) + delta, 0, 1).
    """
    if mode not in ("exact", "max"):
        raise ValueError(f"mode = {mode!r}: must be exact or max")
    targets = (
        [target_length] * len(completions) if isinstance(target_length, int) else target_length
    )
    rewards: list[float | None] = []
    for right, ids, target in zip(
        _verdicts(verifier, verifier_kwargs, prompts, completions, completion_ids, columns),
        completion_ids,
        targets,
        strict=True,
    ):
        left = target - len(ids)
        if right is None:
            rewards.append(None)
        elif mode == "exact":
            rewards.append(float(right) - alpha * abs(left))
        else:
            rewards.append(float(right) * min(max(alpha * left + delta, 0.0), 1.0))
    return rewards


def repetition(
    completion_ids: Sequence[Sequence[int]],
    *,
    ngram_size: int = 3,
    max_penalty: float = -1.0,
    **_: Any,
) -> list[float]:
    """`max_penalty` times the share of repeated token n-grams (arXiv 2502.03373, appendix C.2)."""
    if max_penalty > 0:
        raise ValueError(f"max_penalty = {max_penalty}: must be 0 or negative")
    if ngram_size < 1:
        raise ValueError(f"ngram_size = {ngram_size}: must be at least 1")
    rewards = []
    for ids in completion_ids:
        total = len(ids) - ngram_size + 1
        distinct = len(set(zip(*(ids[start:] for start in range(ngram_size)), strict=False)))
        rewards.append((1 - distinct / total) * max_penalty if distinct < total else 0.0)
    return rewards


def reasoning_steps(completions: Sequence[Any], *, steps: int = 3, **_: Any) -> list[float]:
    """min(1, found / steps), where a step is "Step 1:", a numbered or bulleted line, "First," ...

    open-r1's reward of this name. It rewards the look of reasoning and is easily gamed: keep its
    weight small.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    return [
        min(1.0, len(_STEPS.findall(completion_text(completion))) / steps)
        for completion in completions
    ]


@lru_cache(maxsize=32)
def _verifier(name: str, kwargs: tuple[tuple[str, Any], ...]) -> RewardFunction:
    function = load_reward(name, dict(kwargs))
    if is_async(function):
        raise ValueError(f"verifier {name!r} is async; a verifier must be a plain function")
    return function


def _verdicts(
    verifier: str,
    verifier_kwargs: Mapping[str, Any] | None,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Any],
) -> list[bool | None]:
    """Whether each completion is right by another reward; None where that gives None."""
    function = _verifier(verifier, tuple(sorted((verifier_kwargs or {}).items())))
    arguments = {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": completion_ids,
        **columns,
        "log_extra": lambda *_: None,  # the verifier's own columns belong to the verifier's own row
        "log_metric": lambda *_: None,
    }
    scores = function(**accepted_arguments(function, arguments))
    if len(scores) != len(completions):
        raise ValueError(
            f"verifier {verifier!r} returned {len(scores)} values for {len(completions)} rows"
        )
    return [None if score is None else score >= 1 for score in scores]
