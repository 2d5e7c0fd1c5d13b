"""Layouts of a micro-batch: the same log-probs and gradients, however samples are laid out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from thinkrl.grpo.batch import Layout, Sample, collate, micro_batches, shard
from thinkrl.grpo.config import GRPOConfig
from thinkrl.grpo.policy import CausalPolicy
from thinkrl.models.adapters import base_model
from thinkrl.models.registry import load_model


def make_samples(seed: int = 0, *, groups: int = 3, size: int = 4, vocab: int = 48) -> list[Sample]:
    """Groups of ragged completions behind ragged prompts; one completion has a single token."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> list[int]:
        return torch.randint(0, vocab, (n,), generator=generator).tolist()

    samples = []
    for group in range(groups):
        prompt = tokens(3 + 2 * group)
        for i in range(size):
            length = 1 if i == 1 else 2 + (3 * i + group) % 7
            samples.append(Sample(prompt, tokens(length), group=group, advantage=0.5 * i - 1))
    return samples


def tiny_policy(**settings: Any) -> CausalPolicy:
    model = load_model("llama-tiny", vocab_size=48, seed=1)
    return CausalPolicy(model, GRPOConfig(**settings), Accelerator())


def logprobs_by_hand(policy: CausalPolicy, sample: Sample) -> torch.Tensor:
    """The sequence alone, its whole distribution, in float32."""
    ids = torch.tensor([sample.prompt_ids + sample.token_ids])
    positions = torch.arange(ids.shape[1])[None]
    hidden = policy.model(ids, positions_BT=positions)
    logprobs_TV = torch.log_softmax(base_model(policy.model).logits(hidden)[0], -1)
    at = range(len(sample.prompt_ids) - 1, ids.shape[1] - 1)
    return torch.stack([logprobs_TV[t, ids[0, t + 1]] for t in at])


@pytest.mark.parametrize("layout", ["shared_prefix", "packed", "padded"])
def test_every_layout_gives_the_log_probs_of_the_sequence_alone(layout: Layout) -> None:
    policy = tiny_policy()
    samples = make_samples()
    batch = collate(samples, layout=layout)
    logprobs_BT, entropy_BT = policy.token_logprobs(batch)
    for b, sample in enumerate(samples):
        n = len(sample.token_ids)
        expected = logprobs_by_hand(policy, sample)
        torch.testing.assert_close(logprobs_BT[b, :n], expected, atol=2e-6, rtol=0)
        assert (logprobs_BT[b, n:] == 0).all() and (entropy_BT[b, n:] == 0).all()
        assert (entropy_BT[b, :n] > 0).all()
    assert batch.mask_BT.sum() == sum(len(s.token_ids) for s in samples)


def test_layouts_and_micro_batches_change_no_gradient() -> None:
    policy = tiny_policy()
    samples = make_samples()
    weights = torch.randn(len(samples), 8, generator=torch.Generator().manual_seed(3))

    def gradient(layout: Layout, max_samples: int | None, max_tokens: int) -> torch.Tensor:
        policy.model.zero_grad()
        first = 0
        for run in micro_batches(
            samples, max_tokens=max_tokens, max_samples=max_samples, layout=layout
        ):
            batch = collate(run, layout=layout)
            logprobs_BT, entropy_BT = policy.token_logprobs(batch)
            width = logprobs_BT.shape[1]
            rows = weights[first : first + len(run), :width]
            ((logprobs_BT + 0.1 * entropy_BT) * rows * batch.mask_BT).sum().backward()
            first += len(run)
        assert first == len(samples)
        grads = [p.grad for p in policy.model.parameters() if p.grad is not None]
        return torch.cat([grad.flatten() for grad in grads])

    reference = gradient("padded", 1, 10**6).double()
    options = itertools.product(["shared_prefix", "packed", "padded"], [None, 1, 5], [20, 10**6])
    for layout, max_samples, max_tokens in options:
        other = gradient(layout, max_samples, max_tokens).double()  # type: ignore[arg-type]
        assert (other - reference).norm() <= 1e-6 * reference.norm()


@pytest.mark.parametrize("layout", ["shared_prefix", "packed", "padded"])
def test_micro_batches_keep_order_and_limits(layout: Layout) -> None:
    samples = make_samples(groups=5)
    runs = micro_batches(samples, max_tokens=30, max_samples=3, layout=layout)
    assert [s for run in runs for s in run] == samples
    for run in runs:
        assert len(run) <= 3
        assert collate(run, layout=layout).input_ids_RL.numel() <= 30 or len(run) == 1
    assert any(len(run) > 1 for run in runs)
    alone = micro_batches(samples, max_tokens=1, layout=layout)
    assert all(len(run) == 1 for run in alone)


def test_shards_partition_the_samples() -> None:
    samples = make_samples(groups=3, size=3)
    for world_size in (1, 2, 4, 12):
        parts = [shard(samples, rank=r, world_size=world_size) for r in range(world_size)]
        assert [s for part in parts for s in part] == samples
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_masked_sample_is_computed_but_does_not_train() -> None:
    samples = make_samples()
    samples[0].trains = False
    batch = collate(samples)
    assert batch.mask_BT[0].sum() == 0
    assert samples[0].num_trained == 0
    assert batch.mask_BT.sum() == sum(s.num_trained for s in samples)


def test_values_per_token_find_their_places() -> None:
    samples = make_samples()
    for sample in samples:
        sample.sampling_logprobs = [float(-i - sample.group) for i in range(len(sample.token_ids))]
    batch = collate(samples)
    values = batch.tokenwise("sampling_logprobs")
    assert values is not None
    for b, sample in enumerate(samples):
        assert values[b, : len(sample.token_ids)].tolist() == sample.sampling_logprobs
    assert batch.tokenwise("old_logprobs") is None
    assert batch.advantages().tolist() == [s.advantage for s in samples]


def test_filters_and_temperature_belong_to_the_distribution() -> None:
    samples = make_samples()
    policy = tiny_policy(temperature=0.7, top_k=5, top_p=0.9)
    batch = collate(samples)
    logprobs_BT, _ = policy.token_logprobs(batch)
    plain_BT, _ = tiny_policy(temperature=0.7).token_logprobs(batch)
    on = batch.mask_BT.bool()
    assert (logprobs_BT[on] >= plain_BT[on] - 1e-6).all()
    assert (logprobs_BT[on] > plain_BT[on] + 1e-3).any()
