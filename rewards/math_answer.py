"""The maths reward: does the final answer of a completion equal the gold answer?

`verify` says yes or no, `explain` says why, `math_answer` is the reward function with TRL's
signature. Safe from any thread, process or event loop: no signals, no evaluation of text, costs
bounded before they are paid. The policies of comparison are listed in math_compare.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from .math_compare import Comparison
from .math_eval import Budget, NoValue
from .math_extract import Extraction, extract, gold_text
from .math_lex import MAX_CHARS
from .math_read import read
from .math_show import show
from .math_slow import pool
from .math_values import Choice, Many, Quantity, Value, Word

MAX_TEXT = 2000  # characters of a text answer
OPTIONS = frozenset(["rounding", "options", "unevaluated"])


def verify(
    completion: str, gold: str | Sequence[str], *, timeout_s: float = 2.0, **options: Any
) -> bool:
    """Whether the final answer of `completion` equals `gold`, or one of a list of alternatives.

    Options: `rounding=k` accepts the gold rounded to the decimals that the answer shows, k at
    least; `options` = the texts of a multiple-choice question (list, or dict by letter), which
    then count as their letters; `unevaluated=True` accepts a sum, integral or limit for its
    value. Raises ValueError when the gold cannot be read or an option is unknown.
    """
    return bool(explain(completion, gold, timeout_s=timeout_s, **options)["correct"])


def explain(
    completion: str, gold: str | Sequence[str], *, timeout_s: float = 2.0, **options: Any
) -> dict[str, Any]:
    """The verdict with its grounds.

    Keys: correct, status ("matched", "different", "no_answer", "timeout" or "error"), rule (what
    matched), source (where the answer stood), extracted, answer_read, gold_read.
    Raises ValueError as `verify`.
    """
    unknown = set(options) - OPTIONS
    if unknown:
        raise ValueError(
            f"math_answer: unknown option {sorted(unknown)[0]!r}; known: {sorted(OPTIONS)}"
        )
    if not isinstance(completion, str):
        raise ValueError(
            f"math_answer: completion must be a string, not {type(completion).__name__}"
        )
    golds = [read_gold(one) for one in gold_alternatives(gold)]
    if any("'big'" in repr(values) for values in golds):
        pool().warm()  # calculus: starting a worker is no part of the call's time
    started = time.monotonic()
    if options.get("options"):
        golds = [(*values, *_option_letters(values, options["options"])) for values in golds]
    extraction = extract(completion)
    report: dict[str, Any] = {
        "correct": False,
        "status": "no_answer",
        "rule": "",
        "source": extraction.source,
        "extracted": [part[0] for part in extraction.parts],
        "gold_read": [_describe(values) for values in golds],
        "answer_read": [],
    }
    if not extraction.parts:
        return report
    budget = Budget(max(0.0, timeout_s - (time.monotonic() - started)))
    comparison = Comparison(budget, options.get("rounding"), bool(options.get("unevaluated")))
    try:
        answers = [_read_part(part, options.get("options")) for part in extraction.parts]
        report["answer_read"] = [_describe(values) for values in answers]
        rule = next(
            (r for values in golds if (r := _match(comparison, values, answers, extraction))), ""
        )
    except NoValue:
        report["status"] = "timeout"
        return report
    except Exception as error:  # a completion must not be able to stop a training run
        report.update(status="error", rule=f"{type(error).__name__}: {error}"[:200])
        return report
    report.update(correct=bool(rule), status="matched" if rule else "different", rule=rule)
    return report


def math_answer(
    prompts: Any,
    completions: Sequence[Any],
    answer: Sequence[Any],
    *,
    timeout_s: float = 2.0,
    rounding: int | None = None,
    unevaluated: bool = False,
    options: Sequence[Any] | None = None,
    log_extra: Any = None,
    **columns: Any,
) -> list[float | None]:
    """1.0 for a right final answer, 0.0 for another or none, None where the gold cannot be read.

    `completions` are strings or lists of messages; `answer` is the column of golds and `options`
    that of the choices of each row. `timeout_s`, `rounding` and `unevaluated` are those of
    `verify`.
    """
    settings: dict[str, Any] = {"timeout_s": timeout_s, "unevaluated": unevaluated}
    if rounding is not None:
        settings["rounding"] = rounding
    if len(answer) != len(completions):
        raise ValueError(f"math_answer: {len(answer)} answers for {len(completions)} completions")
    rewards: list[float | None] = []
    rules: list[str] = []
    for row, (completion, gold) in enumerate(zip(completions, answer, strict=True)):
        if options is not None:
            settings["options"] = options[row]
        try:
            report = explain(completion_text(completion), _as_gold(gold), **settings)
        except GoldError:
            rewards.append(None)
            rules.append("unreadable gold")
            continue
        rewards.append(1.0 if report["correct"] else 0.0)
        rules.append(report["rule"] or report["status"])
    if log_extra is not None:
        log_extra("math_answer_rule", rules)
    return rewards


def completion_text(completion: Any) -> str:
    """The text of a completion: itself, or the content of the assistant's last message."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Mapping):
        completion = [completion]
    for message in reversed(list(completion)):
        if message.get("role", "assistant") == "assistant":
            content = message.get("content") or ""
            if isinstance(content, str):
                return content
            return "".join(block.get("text", "") for block in content if isinstance(block, Mapping))
    return ""


def check_golds(golds: Sequence[Any]) -> list[int]:
    """Rows whose gold cannot be read or does not match itself. Call it when data is loaded."""
    bad = []
    for row, gold in enumerate(golds):
        try:
            alternatives = gold_alternatives(_as_gold(gold))
            fine = all(verify(f"\\boxed{{{gold_text(one)}}}", gold) for one in alternatives)
        except GoldError:
            fine = False
        if not fine:
            bad.append(row)
    return bad


class GoldError(ValueError):
    """The gold cannot be read."""


def _as_gold(gold: Any) -> Any:
    if isinstance(gold, bool) or gold is None:
        raise GoldError(f"math_answer: the gold {gold!r} is no answer")
    if isinstance(gold, float) and gold.is_integer():
        return str(int(gold))
    if isinstance(gold, int | float):
        return str(gold)
    return gold


def gold_alternatives(gold: Any) -> list[str]:
    """The gold as a list of strings. Raises ValueError for an empty list or something else."""
    gold = _as_gold(gold)
    if isinstance(gold, str):
        return [gold]
    if isinstance(gold, Sequence) and gold:
        return [one for item in gold for one in gold_alternatives(item)]
    raise GoldError(f"math_answer: the gold must be a string or a list of strings, not {gold!r}")


@lru_cache(maxsize=8192)
def read_gold(gold: str) -> tuple[Value, ...]:
    """The readings of a gold. Raises ValueError (GoldError) when there is none."""
    text = gold_text(gold)
    values = read(text) if len(text) <= MAX_CHARS else ()
    values = tuple(v for v in values if not isinstance(v, Word) or _is_text(v.text))
    if not values:
        raise GoldError(
            f"math_answer: the gold {gold[:80]!r} cannot be read; give a number, expression or text"
        )
    return values


def _is_text(text: str) -> bool:
    """Whether an answer that is not read as mathematics makes sense as a text to be repeated."""
    whole = text.count("{") == text.count("}") and text.count("(") == text.count(")")
    return whole and len(text) <= MAX_TEXT and any(map(str.isalnum, text))


def _read_part(part: tuple[str, ...], options: Any) -> tuple[Value, ...]:
    """The readings of one piece: of its first spelling that is mathematics, or else all as text."""
    texts: list[Value] = []
    for spelling in part:
        values = read(spelling)
        if any(not isinstance(v, Word) for v in values):
            return (*values, *texts, *_option_letters(values, options))
        texts.extend(values)
    return (*texts, *_option_letters(tuple(texts), options))


def _option_letters(values: tuple[Value, ...], options: Any) -> tuple[Value, ...]:
    """The letters of the options whose text equals one of the readings."""
    if not options:
        return ()
    pairs = (
        options.items()
        if isinstance(options, Mapping)
        else zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options, strict=False)
    )
    comparison = Comparison(Budget(0.3))
    found = []
    for letter, text in pairs:
        for other in read(str(text)):
            try:
                if any(
                    comparison.match(other, value)
                    for value in values
                    if not isinstance(value, Choice)
                ):
                    found.append(Choice(str(letter).upper()))
                    break
            except NoValue:
                continue
    return tuple(found) if len(found) == 1 else ()


def _match(
    comparison: Comparison,
    golds: tuple[Value, ...],
    answers: list[tuple[Value, ...]],
    extraction: Extraction,
) -> str:
    """The rule by which the answer, in one piece or several, matches one of the gold's readings."""
    if len(answers) == 1:
        rule = _any_match(comparison, golds, answers[0])
    elif _single(golds):
        rules = [_any_match(comparison, golds, answer) for answer in answers]
        rule = rules[0] if all(rules) else ""
    else:
        rule = _any_match(comparison, golds, answers[-1])
        together = Many(_flatten(answers))
        rule = rule or next((r for gold in golds if (r := comparison.match(gold, together))), "")
    if rule and any(_contradicts(comparison, golds, text) for text in extraction.later):
        return ""
    return rule


def _flatten(answers: list[tuple[Value, ...]]) -> tuple[Value, ...]:
    items: list[Value] = []
    for values in answers:
        first = values[0]
        items.extend(first.items if isinstance(first, Many) else [first])
    return tuple(items)


def _single(golds: tuple[Value, ...]) -> bool:
    return not isinstance(golds[0], Many) and not hasattr(golds[0], "brackets")


def _any_match(comparison: Comparison, golds: tuple[Value, ...], answers: tuple[Value, ...]) -> str:
    for gold in golds:
        for answer in answers:
            rule = comparison.match(gold, answer)
            if rule:
                return rule
    return ""


def _contradicts(comparison: Comparison, golds: tuple[Value, ...], text: str) -> bool:
    """Whether an answer stated after the one that counts is a different value."""
    values = read(text)
    if not isinstance(values[0], Quantity | Choice | Many) or len(text) > 80:
        return False
    return not _any_match(comparison, golds, values)


def _describe(values: tuple[Value, ...]) -> str:
    return " | ".join(map(show, values[:4]))
