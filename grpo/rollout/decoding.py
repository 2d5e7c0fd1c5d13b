"""Continuous batching: one queue of completions, decoded side by side, one token a step.

A completion that ends frees its place; the next of the queue takes it. A prompt is computed when
the first of its completions enters, and its keys and values are kept until the last has ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.kv_cache import GroupCache, PromptCache
from .engine import Prompt, Sampling
from .fast_linear import fast_linear
from .sampling import draw, row_key, uniforms

# Prompt tokens per forward pass: bounds the activations of a prefill.
_PREFILL_TOKENS = 16384
# Moving rows costs about as much as a few steps of attention: it waits until this share of the
# places is free.
_FREE_SHARE = 0.125
# Columns of history and noise made at a time.
_BLOCK = 64
# Tokens, beyond one for each byte of a stop string, whose text is searched for it.
_STOP_MARGIN = 4


@dataclass
class Completion:
    """One completion of the queue: number `number` of prompt `prompt` (position in the call)."""

    prompt: int
    number: int
    key: int  # of its noise
    budget: int  # most tokens it may have
    start: int = 0  # the timeline's column of its first token
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Decoding:
    """One call of generate.

    At column c of the timeline every live row holds a token that is not yet in the KV cache; a step
    feeds it and draws the token of column c + 1.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        eos_token_ids: Sequence[int],
        max_batch_size: int,
        bf16: bool,
        text_of: Callable[[list[list[int]]], list[str]],
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.sampling = sampling
        self.max_batch_size = max_batch_size
        self.text_of = text_of
        self.window: int | None = model.config.sliding_window
        self.logits = fast_linear(model.head_weight, bf16=bf16)
        self.device = model.head_weight.device
        self.eos_E = torch.tensor(list(eos_token_ids), dtype=torch.int64, device=self.device)
        self.queue = _queue(prompts, sampling, context=model.config.max_position_embeddings)
        self.waiting = len(prompts) * sampling.num_generations
        self.finished: list[Completion] = []
        self.rows: list[Completion] = []
        self.live_prompts: list[int] = []
        self.prompt_hidden: dict[int, Tensor] = {}  # final hidden_D of a live prompt's last token
        self.cache = GroupCache(window=self.window, device=self.device)
        self.tokens_BC = torch.zeros(0, 1, dtype=torch.int64, device=self.device)
        self.logprobs_BC = torch.zeros(0, 1, device=self.device)

    def run(self) -> list[Completion]:
        """Decode the whole queue; completions come back in the order they ended."""
        self._admit([])
        while self.rows:
            ended = self._mark_ended()
            places = self.max_batch_size if self.waiting else len(self.rows)
            free = places - len(self.rows) + ended
            if ended == len(self.rows) or free >= max(1.0, _FREE_SHARE * places):
                self._admit(self._release())
            else:
                self._step()
        return self.finished

    def _step(self) -> None:
        c = self.cache.column
        self.cache.begin_step()
        hidden_B1D = self.model(
            self.tokens_BC[:, c : c + 1], positions_BT=self.offset_B1 + c, cache=self.cache
        )
        self.cache.end_step()
        if c + 1 == self.tokens_BC.shape[1]:
            self.tokens_BC = F.pad(self.tokens_BC, (0, _BLOCK))
            self.logprobs_BC = F.pad(self.logprobs_BC, (0, _BLOCK))
        token_B, logprob_B = self._draw(self.logits(hidden_B1D[:, 0]), self._noise(c + 1))
        self.tokens_BC[:, c + 1] = token_B
        self.logprobs_BC[:, c + 1] = logprob_B

    def _draw(self, logits_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
        s = self.sampling
        return draw(
            logits_BV,
            uniform_B,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
        )

    def _noise(self, column: int) -> Tensor:
        first = column - column % _BLOCK
        if self.noise_first != first:
            self.noise_first = first
            column_C1 = torch.arange(first, first + _BLOCK, device=self.device)[:, None]
            self.noise_CB = uniforms(self.key_B, column_C1 - self.start_B)
        return self.noise_CB[column - first]

    def _mark_ended(self) -> int:
        """Close the rows whose newest token ends them; the number of all closed rows."""
        after = self.cache.column + 1
        hit_B = (self.tokens_BC[:, after - 1 : after] == self.eos_E).any(-1)
        self.end_B = torch.where(hit_B, self.end_B.clamp(max=after), self.end_B)
        if self.sampling.stop:
            self._mark_stopped(after)
        return int((self.end_B <= after).sum())

    def _mark_stopped(self, after: int) -> None:
        """Close the rows whose text now holds a stop string: a short tail first, then the whole."""
        stop = self.sampling.stop
        tail = max(len(s.encode()) for s in stop) + _STOP_MARGIN
        live = [b for b, end in enumerate(self.end_B.tolist()) if end > after]
        for first in (max(0, after - tail), 0):
            tokens = self.tokens_BC[live, first:after].tolist()
            skip = [max(0, self.rows[b].start - first) for b in live]
            texts = self.text_of([ids[n:] for ids, n in zip(tokens, skip, strict=True)])
            live = [b for b, text in zip(live, texts, strict=True) if any(s in text for s in stop)]
            if not live:
                return
        self.end_B[live] = after

    def _release(self) -> list[int]:
        """Hand over the closed rows' tokens; the indices of the rows that stay."""
        after = self.cache.column + 1
        ends = self.end_B.tolist()
        closed = [b for b, end in enumerate(ends) if end <= after]
        tokens, logprobs = (x[closed].tolist() for x in (self.tokens_BC, self.logprobs_BC))
        for b, row_tokens, row_logprobs in zip(closed, tokens, logprobs, strict=True):
            row = self.rows[b]
            row.token_ids = row_tokens[row.start : ends[b]]
            row.logprobs = row_logprobs[row.start : ends[b]]
            if not math.isfinite(sum(row.logprobs)):
                raise FloatingPointError(
                    f"logits of prompt {self.prompts[row.prompt].index} are not finite: the "
                    "weights have diverged; go back to a checkpoint and lower learning_rate"
                )
            self.finished.append(row)
        return [b for b, end in enumerate(ends) if end > after]

    def _admit(self, kept: list[int]) -> None:
        """Move the `kept` rows together, fill up from the queue, and drop what no row needs."""
        new = list(islice(self.queue, self.max_batch_size - len(kept)))
        self.waiting -= len(new)
        self.rows = [self.rows[b] for b in kept] + new
        if not self.rows:
            return
        c = self.cache.column
        shift = min((self.rows[i].start for i in range(len(kept))), default=c)
        for row in new:
            row.start = c
        for row in self.rows:
            row.start -= shift
        self._set_prompts()
        place = {prompt: i for i, prompt in enumerate(self.live_prompts)}
        self.cache.set_rows(
            kept,
            starts=[row.start for row in self.rows],
            prompts=[place[row.prompt] for row in self.rows],
            shift=shift,
        )
        self._move_history(kept, shift)
        self._set_row_tensors()
        if new:
            self._first_tokens(new)

    def _set_prompts(self) -> None:
        """Compute prompts that enter, forget those without a live row."""
        wanted = list(dict.fromkeys(row.prompt for row in self.rows))
        needed = set(wanted)
        kept = [i for i, prompt in enumerate(self.live_prompts) if prompt in needed]
        caches = self._prefill([p for p in wanted if p not in self.prompt_hidden])
        self.cache.set_prompts(kept, caches)
        self.live_prompts = wanted
        self.prompt_hidden = {p: self.prompt_hidden[p] for p in wanted}

    def _prefill(self, prompts: Sequence[int]) -> list[PromptCache]:
        """One forward pass per `_PREFILL_TOKENS` of packed prompts."""
        caches = []
        for part in _chunks(prompts, [len(p.token_ids) for p in self.prompts]):
            rows = [self.prompts[p].token_ids for p in part]
            lengths = [len(row) for row in rows]
            cache = PromptCache(
                lengths, window=self.window, device=self.device, kernels=self.model.kernels
            )
            ids_1T = torch.tensor([t for row in rows for t in row], device=self.device)[None]
            positions_1T = torch.cat([torch.arange(n) for n in lengths])[None].to(self.device)
            hidden_1TD = self.model(ids_1T, positions_BT=positions_1T, cache=cache)
            last_P = torch.tensor(lengths, device=self.device).cumsum(0) - 1
            self.prompt_hidden.update(zip(part, hidden_1TD[0, last_P], strict=True))
            caches.append(cache)
        return caches

    def _move_history(self, kept: list[int], shift: int) -> None:
        width = self.cache.column + 1
        for name in ("tokens_BC", "logprobs_BC"):
            old_BC = getattr(self, name)
            new_BC = old_BC.new_zeros(len(self.rows), width + _BLOCK)
            new_BC[: len(kept), :width] = old_BC[kept, shift : shift + width]
            setattr(self, name, new_BC)

    def _set_row_tensors(self) -> None:
        columns = [(row.key, row.start, row.budget) for row in self.rows]
        self.key_B, self.start_B, budget_B = torch.tensor(columns, device=self.device).unbind(1)
        length_B = [len(self.prompts[row.prompt].token_ids) for row in self.rows]
        self.offset_B1 = torch.tensor(length_B, device=self.device)[:, None] - self.start_B[:, None]
        self.end_B = self.start_B + budget_B
        self.noise_first = -1

    def _first_tokens(self, new: list[Completion]) -> None:
        """Draw the first token of the rows that entered, from their prompts' hidden states."""
        c, B = self.cache.column, len(new)
        place = {p: i for i, p in enumerate(dict.fromkeys(row.prompt for row in new))}
        logits_PV = self.logits(torch.stack([self.prompt_hidden[p] for p in place]))
        index_B = torch.tensor([place[row.prompt] for row in new], device=self.device)
        token_B, logprob_B = self._draw(logits_PV[index_B], self._noise(c)[-B:])
        self.tokens_BC[-B:, c] = token_B
        self.logprobs_BC[-B:, c] = logprob_B


def _queue(prompts: Sequence[Prompt], sampling: Sampling, *, context: int) -> Iterator[Completion]:
    for p, prompt in enumerate(prompts):
        budget = min(sampling.max_completion_length, context - len(prompt.token_ids))
        for number in range(sampling.num_generations):
            yield Completion(p, number, row_key(sampling.seed, prompt.index, number), budget)


def _chunks(prompts: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Runs of prompts of up to `_PREFILL_TOKENS` tokens, or of one longer prompt."""
    part: list[int] = []
    total = 0
    for p in prompts:
        if part and total + lengths[p] > _PREFILL_TOKENS:
            yield part
            part, total = [], 0
        part.append(p)
        total += lengths[p]
    if part:
        yield part
