"""Rows to prompts: sources, columns, templates, limits, order, and demonstrations for SFT.

Every mistake in data is a ValueError of one line that names the source, the row (from 1) and the
column. No prompt is ever cut: one over the limit is dropped and counted.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import DataConfig, SFTConfig
from .rollout.engine import Prompt
from .sources import describe_kind, read_rows
from .tasks import TASKS, Row, make_task
from .templates import PromptTemplate, Rendered

# Columns that other datasets use for ours; only to say which one was probably meant.
_USUAL_NAMES = {
    "prompt": ("question", "problem", "instruction", "query", "input", "messages"),
    "completion": ("response", "output", "solution", "answer", "messages"),
    "answer": ("solution", "gold", "target", "final_answer", "Answer", "label"),
}
_TOKENIZER_BATCH = 1000


@dataclass(frozen=True)
class PromptSet:
    """Prompts that fit, in the order of their source; `dropped` were longer than `max_tokens`."""

    prompts: list[Prompt]
    dropped: int
    source: str
    max_tokens: int | None = None

    def describe(self) -> str:
        """One line for the header of a run."""
        return _describe(self.source, len(self.prompts), "prompts", self.dropped, self.max_tokens)


@dataclass(frozen=True)
class SFTSet:
    """Demonstrations as (prompt ids, completion ids); completions end with the EOS token."""

    rows: list[tuple[list[int], list[int]]]
    dropped: int
    source: str
    max_tokens: int | None = None

    def describe(self) -> str:
        """One line for the header of a run."""
        return _describe(self.source, len(self.rows), "rows", self.dropped, self.max_tokens)


def load_prompts(
    config: DataConfig, *, split: str, tokenizer: Any, context_length: int | None = None
) -> PromptSet:
    """The prompts of `split` ("train" or "eval") as the `data` section of a recipe describes them.

    `context_length` is the number of tokens that the model has room for in a prompt; prompts over
    it or over `config.max_prompt_length` are dropped and counted.
    """
    train = split == "train"
    place = config.train if train else config.eval
    if place is None:
        raise ValueError(f"data.{split} is not set: name a task, a file or a hub dataset")
    limit = config.limit if train else config.eval_limit
    if limit is not None and limit < 1:
        raise ValueError(f"data.{'limit' if train else 'eval_limit'} = {limit}: must be at least 1")
    if place in TASKS:
        named = config.train_split if train else config.eval_split
        rows = make_task(place, config.task).rows(named or split, limit=limit)
    else:
        hub_split = (config.train_split or "train") if train else (config.eval_split or "test")
        rows = read_rows(place, split=hub_split, limit=limit)
    return as_prompts(
        rows,
        tokenizer=tokenizer,
        template=config.template,
        columns=config.columns,
        system_prompt=config.system_prompt,
        max_prompt_length=config.max_prompt_length,
        context_length=context_length,
        source=place,
    )


def as_prompts(
    rows: Iterable[Row],
    *,
    tokenizer: Any,
    template: str = "none",
    columns: dict[str, str] | None = None,
    system_prompt: str | None = None,
    max_prompt_length: int | None = None,
    context_length: int | None = None,
    source: str = "train_dataset",
) -> PromptSet:
    """Prompts from rows in memory: a list of dicts or a `datasets.Dataset`.

    A prompt is text or a list of messages. Raises ValueError for an empty dataset, a missing
    column, a prompt of another type, and when no prompt fits.
    """
    renderer = PromptTemplate(template, tokenizer=tokenizer, system_prompt=system_prompt)
    mapped = list(_map_columns(rows, columns or {}, source))
    if not mapped:
        raise ValueError(f"{source}: no rows; training needs at least one prompt")
    rendered = [_render(renderer, row, number, source) for number, row in enumerate(mapped, 1)]
    limits = [limit for limit in (max_prompt_length, context_length) if limit is not None]
    longest = min(limits) if limits else None
    prompts: list[Prompt] = []
    for index, (one, token_ids) in enumerate(
        zip(rendered, _encode_prompts(rendered, tokenizer, source), strict=True)
    ):
        if not token_ids:
            raise ValueError(f"{source} row {index + 1}: the prompt is empty (no tokens)")
        if longest is None or len(token_ids) <= longest:
            columns_of_row = {key: value for key, value in mapped[index].items() if key != "prompt"}
            if one.messages is not None:  # rewards get messages, but must know the text
                columns_of_row["prompt_text"] = one.text
            prompts.append(Prompt(index, token_ids, one.text, one.messages, columns_of_row))
    if not prompts:
        raise ValueError(
            f"{source}: all {len(mapped)} prompts are longer than {longest} tokens; raise "
            "data.max_prompt_length, or take a model with a longer context"
        )
    return PromptSet(prompts, len(mapped) - len(prompts), source, longest)


def load_sft_rows(
    sft: SFTConfig, data: DataConfig, *, tokenizer: Any, context_length: int | None = None
) -> SFTSet:
    """Demonstrations of the `sft` section, which falls back on the `data` section.

    A row has `prompt` and `completion`, or `messages` that end with the assistant's. Prompts go
    through `data.template`, so that both stages see the same text. Rows longer than
    `sft.max_length` or `context_length` tokens are dropped and counted.
    """
    place = sft.train if sft.train is not None else data.train
    if place is None:
        raise ValueError("sft.train is not set, and neither is data.train: name a task or a file")
    if place in TASKS:
        rows: list[Row] = make_task(place, {**data.task, **sft.task}).demonstrations()
    else:
        rows = read_rows(place, split=data.train_split or "train")
    return as_sft_rows(
        rows,
        tokenizer=tokenizer,
        template=data.template,
        columns=sft.columns or data.columns,
        system_prompt=data.system_prompt,
        max_length=sft.max_length,
        context_length=context_length,
        source=place,
    )


def as_sft_rows(
    rows: Iterable[Row],
    *,
    tokenizer: Any,
    template: str = "none",
    columns: dict[str, str] | None = None,
    system_prompt: str | None = None,
    max_length: int | None = None,
    context_length: int | None = None,
    source: str = "train_dataset",
) -> SFTSet:
    """Demonstrations from rows in memory; see `load_sft_rows`."""
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        raise ValueError("the tokenizer has no EOS token; a completion could not be seen to end")
    renderer = PromptTemplate(template, tokenizer=tokenizer, system_prompt=system_prompt)
    rendered: list[Rendered] = []
    completions: list[str] = []
    for number, row in enumerate(_map_columns(rows, columns or {}, source), 1):
        row = _split_messages(row, number, source)
        prompt = _render(renderer, row, number, source)
        rendered.append(prompt)
        completions.append(_completion(row, prompt.text, number, source))
    if not rendered:
        raise ValueError(f"{source}: no rows; training needs at least one")
    limits = [limit for limit in (max_length, context_length) if limit is not None]
    longest = min(limits) if limits else None
    pairs = [
        (prompt_ids, [*completion_ids, eos])
        for prompt_ids, completion_ids in zip(
            _encode_prompts(rendered, tokenizer, source),
            _encode(completions, tokenizer, source),
            strict=True,
        )
    ]
    for number, (prompt_ids, _) in enumerate(pairs, 1):
        if not prompt_ids:
            raise ValueError(f"{source} row {number}: the prompt is empty (no tokens)")
    kept = [(p, c) for p, c in pairs if longest is None or len(p) + len(c) <= longest]
    if not kept:
        raise ValueError(
            f"{source}: all {len(pairs)} rows are longer than {longest} tokens; raise "
            "sft.max_length"
        )
    return SFTSet(kept, len(pairs) - len(kept), source, longest)


def count_overlap(train: PromptSet, held_out: PromptSet) -> int:
    """How many train prompts also stand in the eval split: a leak worth a warning."""
    texts = {" ".join(prompt.text.split()) for prompt in held_out.prompts}
    return sum(" ".join(prompt.text.split()) in texts for prompt in train.prompts)


class PromptOrder:
    """The order in which n prompts are visited, epoch after epoch.

    `position` (prompts taken so far) is its whole state: set it, and the order goes on from there.
    The order of epoch e depends on (seed, e) alone.
    """

    def __init__(self, n: int, *, seed: int, shuffle: bool = True) -> None:
        if n < 1:
            raise ValueError(f"an order over {n} prompts: there must be at least one")
        self.n = n
        self.seed = seed
        self.shuffle = shuffle
        self.position = 0
        self._epoch: int | None = None
        self._order: list[int] = []

    def take(self, k: int) -> list[int]:
        """The indices of the next k prompts."""
        taken = [self._index(position) for position in range(self.position, self.position + k)]
        self.position += k
        return taken

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.n)
        if not self.shuffle:
            return offset
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed & 0xFFFF_FFFF_FFFF_FFFF, epoch])
            self._order, self._epoch = rng.permutation(self.n).tolist(), epoch
        return self._order[offset]


# Rows


def _map_columns(rows: Iterable[Row], columns: dict[str, str], source: str) -> Iterator[Row]:
    """Rows with our names beside theirs. Raises ValueError where a mapped column is missing."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{source} row {number}: must be a dict, is {describe_kind(row)}")
        for ours, theirs in columns.items():
            if theirs not in row:
                close = difflib.get_close_matches(theirs, list(row), n=1, cutoff=0.5)
                hint = f"did you mean {close[0]}? " if close else ""
                raise ValueError(
                    f"{source} row {number}: no column {theirs!r} (data.columns.{ours}); "
                    f"{hint}columns: {', '.join(map(str, row))}"
                )
        yield {**row, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _need_column(row: Row, name: str, number: int, source: str) -> Any:
    if name in row:
        return row[name]
    usual = [theirs for theirs in _USUAL_NAMES.get(name, ()) if theirs in row]
    close = usual or difflib.get_close_matches(name, list(row), n=1, cutoff=0.5)
    nearest = f"; did you mean data.columns: {{{name}: {close[0]}}}?" if close else ""
    raise ValueError(
        f"{source} row {number}: no column {name!r}{nearest} (columns: {', '.join(map(str, row))})"
    )


def _render(renderer: PromptTemplate, row: Row, number: int, source: str) -> Rendered:
    if renderer.is_chat or "prompt" in renderer.variables or isinstance(row.get("prompt"), list):
        prompt = _need_column(row, "prompt", number, source)
        if isinstance(prompt, list):
            _check_messages(prompt, "prompt", number, source)
        elif not isinstance(prompt, str):
            raise ValueError(
                f"{source} row {number}: column 'prompt' is {describe_kind(prompt)}, must be text "
                "or a list of messages"
            )
    try:
        return renderer.render(row)
    except ValueError as error:
        raise ValueError(f"{source} row {number}: {error}") from None


def _check_messages(messages: Any, column: str, number: int, source: str) -> None:
    good = (
        isinstance(messages, list)
        and len(messages) > 0
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        )
    )
    if not good:
        raise ValueError(
            f"{source} row {number}: column {column!r} must be a list of messages, each with the "
            "texts role and content"
        )


def _split_messages(row: Row, number: int, source: str) -> Row:
    """A row of `messages` as prompt (all but the last) and completion (the assistant's last)."""
    if "completion" in row or "messages" not in row:
        return row
    messages = row["messages"]
    _check_messages(messages, "messages", number, source)
    if messages[-1]["role"] != "assistant" or len(messages) < 2:
        raise ValueError(
            f"{source} row {number}: column 'messages' must end with an assistant message after "
            "at least one other"
        )
    if len(messages) == 2 and messages[0]["role"] == "user":  # any template can hold this one
        return {**row, "prompt": messages[0]["content"], "completion": messages[1]["content"]}
    return {**row, "prompt": messages[:-1], "completion": messages[-1]["content"]}


def _completion(row: Row, prompt: str, number: int, source: str) -> str:
    completion = _need_column(row, "completion", number, source)
    if isinstance(completion, list):
        _check_messages(completion, "completion", number, source)
        completion = completion[-1]["content"]
    if not isinstance(completion, str):
        raise ValueError(
            f"{source} row {number}: column 'completion' is {describe_kind(completion)}, must be "
            "text"
        )
    if prompt.rstrip().endswith("<think>"):  # the prompt has opened the thinking already
        completion = completion.lstrip().removeprefix("<think>")
    return completion


# Tokens


def _encode_prompts(
    rendered: Sequence[Rendered], tokenizer: Any, source: str
) -> Iterator[list[int]]:
    """Token ids of prompts; text gets the tokenizer's BOS, a chat template wrote its own."""
    eos = getattr(tokenizer, "eos_token_id", None)
    bos = getattr(tokenizer, "bos_token_id", None)
    for special, run in itertools.groupby(rendered, key=lambda one: one.special_tokens):
        for ids in _encode([one.text for one in run], tokenizer, source, special_tokens=special):
            # some tokenizers close every text with EOS, which would end the answer before it began
            closed = special and len(ids) > 1 and ids[-1] == eos and eos != bos
            yield ids[:-1] if closed else ids


def _encode(
    texts: Sequence[str], tokenizer: Any, source: str, *, special_tokens: bool = False
) -> Iterator[list[int]]:
    for start in range(0, len(texts), _TOKENIZER_BATCH):
        batch = list(texts[start : start + _TOKENIZER_BATCH])
        try:
            yield from tokenizer(batch, add_special_tokens=special_tokens)["input_ids"]
        except Exception as error:  # tokenizers raise bare Exception, for an unknown character say
            text = _refused(batch, tokenizer)
            raise ValueError(f"{source}: the tokenizer cannot encode {text}: {error}") from error


def _refused(texts: Sequence[str], tokenizer: Any) -> str:
    """The first text that makes the tokenizer raise, shortened."""
    for text in texts:
        try:
            tokenizer(text, add_special_tokens=False)
        except Exception:
            return repr(text if len(text) <= 60 else text[:57] + "...")
    return "a batch of texts"


def _describe(source: str, count: int, noun: str, dropped: int, longest: int | None) -> str:
    lost = f" ({dropped:,} over {longest:,} tokens dropped)" if dropped and longest else ""
    return f"{source}: {count:,} {noun}{lost}"
