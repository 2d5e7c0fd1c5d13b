"""Advantages: by hand, against numpy, and exactly zero where there is nothing to learn."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from thinkrl.grpo.advantages import (
    Baseline,
    Scale,
    drop_truncated,
    gdpo_advantages,
    group_advantages,
    soft_overlong_penalty,
    whiten,
)
from torch import Tensor

NAN = math.nan


def close(got: Tensor, expected: object, tolerance: float = 1e-6) -> None:
    assert got.dtype == torch.float32
    expected = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 1], [3, 0, 0, 0]])
    # Deviations from the means 0.5 and 0.75; std with ddof 1: sqrt(1/3) and sqrt(9/4) = 1.5.
    centred = torch.tensor([[0.5, -0.5, -0.5, 0.5], [2.25, -0.75, -0.75, -0.75]])
    std = torch.tensor([[math.sqrt(1 / 3)], [1.5]])
    close(group_advantages(rewards), centred / (std + 1e-4))
    close(group_advantages(rewards, epsilon=0.0), centred / std)
    close(group_advantages(rewards, scale="none"), centred)
    # All eight: mean 0.625, sum of squares 11 - 8 * 0.625^2 = 7.875.
    close(group_advantages(rewards, scale="batch"), centred / (math.sqrt(7.875 / 7) + 1e-4))
    whitened = (rewards - 0.625) / (math.sqrt(7.875 / 7) + 1e-4)
    close(group_advantages(rewards, scale="batch", baseline="batch"), whitened)
    close(group_advantages(rewards, scale="none", baseline="batch"), rewards - 0.625)
    # Each against the mean of the three others.
    others = torch.tensor([[2 / 3, -2 / 3, -2 / 3, 2 / 3], [3.0, -1, -1, -1]])
    close(group_advantages(rewards, scale="none", baseline="leave_one_out"), others)


def test_an_unscored_completion_is_left_out() -> None:
    rewards = torch.tensor([[1.0, NAN, 0.0, NAN], [NAN, NAN, 5.0, NAN], [NAN] * 4, [0, 0, 0, 4]])
    centred = torch.tensor([[0.5, 0, -0.5, 0], [0] * 4, [0] * 4, [-1, -1, -1, 3]])
    std = torch.tensor([[math.sqrt(0.5)], [1], [1], [2]])
    close(group_advantages(rewards), centred / (std + 1e-4))
    close(group_advantages(rewards, scale="none"), centred)
    left_out = torch.tensor([[1.0, 0, -1, 0], [0] * 4, [0] * 4, [-4 / 3] * 3 + [4]])
    close(group_advantages(rewards, scale="none", baseline="leave_one_out"), left_out)
    same = group_advantages(torch.tensor([[1.0, 0.0]]))
    close(group_advantages(rewards)[0, [0, 2]], same[0])


def numpy_advantages(rewards: np.ndarray, *, scale: str, baseline: str) -> np.ndarray:
    n = (~np.isnan(rewards)).sum(1, keepdims=True)
    if baseline == "batch":
        centred = rewards - np.nanmean(rewards)
    elif baseline == "mean":
        centred = rewards - np.nanmean(rewards, 1, keepdims=True)
    else:
        centred = rewards - (np.nansum(rewards, 1, keepdims=True) - rewards) / (n - 1)
    if scale == "group":
        centred = centred / (np.nanstd(rewards, 1, ddof=1, keepdims=True) + 1e-4)
    elif scale == "batch":
        centred = centred / (np.nanstd(rewards, ddof=1) + 1e-4)
    return np.nan_to_num(centred)


@pytest.mark.parametrize(
    ("scale", "baseline"),
    [
        *((scale, baseline) for scale in get_args(Scale) for baseline in ("mean", "leave_one_out")),
        ("batch", "batch"),
        ("none", "batch"),
    ],
)
def test_group_advantages_equal_numpy(scale: Scale, baseline: Baseline) -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 1000.0):
        rewards = (rng.normal(size=(20, 6)) + shift).astype(np.float32)
        rewards[rng.random(rewards.shape) < 0.1] = NAN
        expected = numpy_advantages(rewards.astype(np.float64), scale=scale, baseline=baseline)
        got = group_advantages(torch.tensor(rewards), scale=scale, baseline=baseline)
        close(got, expected, 1e-5)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.7, 1e-8, -123.456, 1e6])
@pytest.mark.parametrize("G", [2, 3, 7, 8, 16, 33])
def test_an_all_equal_group_is_exactly_zero(reward: float, G: int) -> None:
    """In float32, the mean of 0.1 over and over is not 0.1: the noise must not become signal."""
    rewards = torch.full((1, G), reward)
    varied = torch.cat([rewards, torch.randn(1, G)])
    for scale in get_args(Scale):
        for baseline in ("mean", "leave_one_out"):
            got = group_advantages(varied, scale=scale, baseline=baseline, epsilon=0.0)
            assert not got[0].any() and got[1].any()
    assert not group_advantages(rewards, scale="batch", baseline="batch").any()
    assert not whiten(rewards).any()
    with_gap = torch.cat([rewards, torch.full((1, 1), NAN)], 1)
    assert not group_advantages(with_gap).any()
    # A sum of equal rewards that is rounded differently in float64 is still equal in float32.
    noisy = rewards.double() * (1 + 1e-12 * torch.arange(G))
    assert not group_advantages(noisy).any()


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "none"])
def test_groups_are_independent(scale: Scale, baseline: Baseline) -> None:
    """Any split of the groups over processes, and any order, gives the same bits."""
    torch.manual_seed(0)
    rewards = torch.randn(12, 5)
    rewards[rewards > 1.5] = NAN
    kwargs: Any = {"scale": scale, "baseline": baseline}
    whole = group_advantages(rewards, **kwargs)
    parts = [group_advantages(part, **kwargs) for part in rewards.split([1, 4, 7])]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(12)
    assert torch.equal(group_advantages(rewards[order], **kwargs), whole[order])
    order = torch.randperm(5)
    close(group_advantages(rewards[:, order], **kwargs), whole[:, order], 1e-6)


def test_shift_and_scale_of_rewards() -> None:
    torch.manual_seed(0)
    rewards = torch.randn(4, 8)
    close(group_advantages(rewards + 4.0), group_advantages(rewards), 1e-5)
    scaled = group_advantages(rewards * 8.0, epsilon=0.0)
    close(scaled, group_advantages(rewards, epsilon=0.0), 1e-6)
    assert group_advantages(rewards).sum(1).abs().max() < 1e-5


def test_whiten() -> None:
    values = torch.tensor([[1.0, 2, 3], [4, NAN, 100]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    std = math.sqrt(5 / 3)  # of 1, 2, 3, 4
    expected = torch.tensor([[-1.5, -0.5, 0.5], [1.5, 0, 0]]) / (std + 1e-4)
    close(whiten(values, mask=mask), expected)
    flat = whiten(torch.tensor([1.0, 2, 3, 4]))
    close(flat, expected[[0, 0, 0, 1], [0, 1, 2, 0]])
    assert not whiten(values, mask=torch.zeros(2, 3)).any()


def test_gdpo_by_hand() -> None:
    # A rare reward (one in four) beside one of a hundred times its size.
    rewards = torch.tensor([[[1.0, 0], [0, 0], [0, 100], [0, 100]]])
    z0 = torch.tensor([0.75, -0.25, -0.25, -0.25]) / (0.5 + 1e-4)
    z1 = torch.tensor([-50.0, -50, 50, 50]) / (math.sqrt(10000 / 3) + 1e-4)
    close(gdpo_advantages(rewards, batch_normalize=False)[0], z0 + z1)
    weighted = gdpo_advantages(rewards, torch.tensor([2.0, 0.5]), batch_normalize=False)
    total = 2 * z0 + 0.5 * z1
    close(weighted[0], total)
    whitened = (total - total.mean()) / (total.std() + 1e-4)
    close(gdpo_advantages(rewards, torch.tensor([2.0, 0.5]))[0], whitened)
    # One summed reward would hide the first: 1 in 100.
    assert group_advantages(rewards.sum(-1))[0, 0] < group_advantages(rewards.sum(-1))[0, 2]


def test_gdpo_with_unscored_rewards() -> None:
    rewards = torch.tensor([[[1.0, NAN], [0, 3], [NAN, NAN], [NAN, 1]]])
    half = 0.5 / (math.sqrt(0.5) + 1e-4)
    one = 1.0 / (math.sqrt(2.0) + 1e-4)
    expected = [[half, one - half, 0, -one]]
    close(gdpo_advantages(rewards, batch_normalize=False), expected)
    assert gdpo_advantages(rewards)[0, 2] == 0.0
    equal = torch.full((2, 4, 3), 0.1)
    assert not gdpo_advantages(equal).any()


def test_length_rules_by_hand() -> None:
    lengths = torch.tensor([0, 80, 85, 90, 100, 101])
    got = soft_overlong_penalty(lengths, max_completion_length=100, cache=20)
    close(got, [0, 0, -0.25, -0.5, -1, -1])
    mask = torch.tensor([[1.0, 1], [1, 0]])
    assert drop_truncated(mask, torch.tensor([True, False])).tolist() == [[0, 0], [1, 0]]


def test_mistakes_get_one_clear_line() -> None:
    rewards = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="scale='groups': must be one of group, batch, none"):
        group_advantages(rewards, scale="groups")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="baseline='none': must be one of mean, leave_one_out"):
        group_advantages(rewards, baseline="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale='group': a baseline of the batch needs"):
        group_advantages(rewards, baseline="batch")
    with pytest.raises(ValueError, match="epsilon=-1: must not be negative"):
        group_advantages(rewards, epsilon=-1)
    with pytest.raises(ValueError, match=r"rewards of shape \(4,\): need \[P, G\]"):
        group_advantages(torch.zeros(4))
    with pytest.raises(ValueError, match="an infinite value"):
        group_advantages(torch.tensor([[1.0, math.inf]]))
    with pytest.raises(ValueError, match="need one per reward function"):
        gdpo_advantages(torch.zeros(1, 2, 3), torch.ones(2))
    with pytest.raises(ValueError, match=r"cache=0: must be in 1\.\.10 tokens"):
        soft_overlong_penalty(torch.tensor([1]), max_completion_length=10, cache=0)
