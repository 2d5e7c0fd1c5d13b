"""Samples, and their layout as tensors: packed, with a group's prompt once, or padded.

A sample is a prompt and one completion. A micro-batch holds the samples of one forward pass. The
last completion token predicts nothing that trains, so it is no input: a sample of p prompt and c
completion tokens takes p + c - 1 positions, or c - 1 behind a prompt that its group shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from ..kernels import masks

Layout = Literal["shared_prefix", "packed", "padded"]


@dataclass
class Sample:
    """One completion with what training needs to know of it.

    `group` tells completions of one prompt from others. `sampling_logprobs` are the sampler's;
    `old_logprobs` those of the policy the step started from, `ref_logprobs` the reference's, each
    one float32 per completion token. `trains` is False for a completion that is masked out.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    group: int = 0
    advantage: float = 0.0
    trains: bool = True
    sampling_logprobs: list[float] | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    token_advantages: Tensor | None = None
    trace: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)  # texts and rewards, for the run folder

    @property
    def num_trained(self) -> int:
        """Completion tokens that enter the loss."""
        return len(self.token_ids) if self.trains else 0


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward pass over B samples of up to T completion tokens.

    `at_N` is the position, in the flattened input, whose hidden state predicts completion token n;
    `place_N` is that token's place in a flattened [B, T].
    """

    samples: list[Sample]
    input_ids_RL: Tensor  # R rows of L tokens: 1 row when packed
    positions_RL: Tensor
    mask: masks.Mask | Literal["causal"]
    at_N: Tensor
    target_N: Tensor
    place_N: Tensor
    mask_BT: Tensor

    @property
    def device(self) -> torch.device:
        return self.at_N.device

    def scatter(self, values_N: Tensor) -> Tensor:
        """Values per completion token as [B, T], 0 on padding; differentiable."""
        flat = values_N.new_zeros(self.mask_BT.numel()).index_put((self.place_N,), values_N)
        return flat.view(self.mask_BT.shape)

    def tokenwise(self, name: str) -> Tensor | None:
        """A per-token attribute of the samples as [B, T] float32, None where no sample has it."""
        values = [getattr(sample, name) for sample in self.samples]
        if all(value is None for value in values):
            return None
        assert all(value is not None for value in values), f"{name}: missing on some samples"
        flat = torch.cat([torch.as_tensor(value, dtype=torch.float32) for value in values])
        return self.scatter(flat.to(self.device))

    def advantages(self) -> Tensor:
        """Advantages [B], or [B, T] where they differ between the tokens of a completion."""
        per_token = self.tokenwise("token_advantages")
        if per_token is not None:
            return per_token
        return torch.tensor([sample.advantage for sample in self.samples], device=self.device)


def collate(
    samples: Sequence[Sample],
    *,
    layout: Layout = "shared_prefix",
    window: int | None = None,
    device: torch.device | str = "cpu",
) -> MicroBatch:
    """Lay samples out for one forward pass; neighbours of one group share its prompt.

    `window` is the model's sliding window in tokens. It cannot be combined with a shared prefix
    (the positions of a group overlap); the layout is then "packed".
    """
    assert samples and all(s.prompt_ids and s.token_ids for s in samples)
    if layout == "shared_prefix" and window is not None:
        layout = "packed"
    if layout == "shared_prefix":
        rows, positions, mask, at = _shared_layout(samples)
    elif layout == "packed":
        rows, positions, mask, at = _packed_layout(samples, window)
    else:
        rows, positions, mask, at = _padded_layout(samples)
    width = max(len(sample.token_ids) for sample in samples)
    place, trained = [], torch.zeros(len(samples), width)
    for b, sample in enumerate(samples):
        place.extend(range(b * width, b * width + len(sample.token_ids)))
        trained[b, : sample.num_trained] = 1.0
    targets = [token for sample in samples for token in sample.token_ids]
    return MicroBatch(
        samples=list(samples),
        input_ids_RL=torch.tensor(rows).to(device),
        positions_RL=torch.tensor(positions).to(device),
        mask=mask if isinstance(mask, str) else mask.to(device),
        at_N=torch.tensor(at).to(device),
        target_N=torch.tensor(targets).to(device),
        place_N=torch.tensor(place).to(device),
        mask_BT=trained.to(device),
    )


def micro_batches(
    samples: Sequence[Sample],
    *,
    max_tokens: int,
    max_samples: int | None = None,
    layout: Layout = "shared_prefix",
) -> list[list[Sample]]:
    """Cut samples, in order, into runs of at most so many samples and input tokens.

    A sample longer than `max_tokens` has a run of its own. A padded run counts its padding.
    """
    runs: list[list[Sample]] = []
    used = widest = 0
    for sample in samples:
        cost = len(sample.prompt_ids) + len(sample.token_ids) - 1
        widest = max(widest, cost)
        if runs and layout == "shared_prefix" and runs[-1][-1].group == sample.group:
            cost = len(sample.token_ids) - 1
        total = used + cost if layout != "padded" else widest * (len(runs[-1]) + 1 if runs else 1)
        full = runs and max_samples is not None and len(runs[-1]) >= max_samples
        if not runs or full or total > max_tokens:
            runs.append([sample])
            used = widest = len(sample.prompt_ids) + len(sample.token_ids) - 1
        else:
            runs[-1].append(sample)
            used = total
    return runs


def shard(samples: Sequence[Sample], *, rank: int, world_size: int) -> list[Sample]:
    """The run of samples that one process trains on; all runs together are all samples."""
    start, stop = (len(samples) * r // world_size for r in (rank, rank + 1))
    return list(samples[start:stop])


_Rows = list[list[int]]


def _groups(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    return (list(run) for _, run in groupby(samples, key=lambda sample: sample.group))


def _shared_layout(samples: Sequence[Sample]) -> tuple[_Rows, _Rows, masks.Mask, list[int]]:
    tokens: list[int] = []
    positions: list[int] = []
    at: list[int] = []
    shapes = []
    for group in _groups(samples):
        prompt = group[0].prompt_ids
        tokens += prompt
        positions += range(len(prompt))
        last_of_prompt = len(tokens) - 1
        for sample in group:
            inputs = sample.token_ids[:-1]
            at += [last_of_prompt, *range(len(tokens), len(tokens) + len(inputs))]
            tokens += inputs
            positions += range(len(prompt), len(prompt) + len(inputs))
        shapes.append((len(prompt), [len(sample.token_ids) - 1 for sample in group]))
    return [tokens], [positions], masks.shared_prefix(shapes), at


def _packed_layout(
    samples: Sequence[Sample], window: int | None
) -> tuple[_Rows, _Rows, masks.Mask, list[int]]:
    tokens: list[int] = []
    positions: list[int] = []
    at: list[int] = []
    lengths = []
    for sample in samples:
        inputs = sample.prompt_ids + sample.token_ids[:-1]
        at += range(len(tokens) + len(sample.prompt_ids) - 1, len(tokens) + len(inputs))
        tokens += inputs
        positions += range(len(inputs))
        lengths.append(len(inputs))
    return [tokens], [positions], masks.packed_causal(lengths, window=window), at


def _padded_layout(
    samples: Sequence[Sample],
) -> tuple[_Rows, _Rows, Literal["causal"], list[int]]:
    """Rows padded on the right: no real token sees the padding behind it."""
    rows = [sample.prompt_ids + sample.token_ids[:-1] for sample in samples]
    width = max(map(len, rows))
    at = [
        r * width + position
        for r, (row, sample) in enumerate(zip(rows, samples, strict=True))
        for position in range(len(sample.prompt_ids) - 1, len(row))
    ]
    padded = [row + [0] * (width - len(row)) for row in rows]
    return padded, [list(range(width))] * len(rows), "causal", at
