"""Drawing the next token: counter-based noise, filters, and the log-prob of what was drawn.

A row's noise depends on (seed, prompt, completion, position) only, never on the rows beside it, so
batch size, order and resuming do not change what is sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.linear_logprob import kept_tokens

# splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK_64 = (1 << 64) - 1
# 48 bits: fewer than float64 holds, so that u * total never rounds up to total.
_UNIFORM_BITS = 48
# Probabilities become integers of this many bits: their sums are exact in any order of addition.
_WEIGHT_BITS = 52


def row_key(seed: int, prompt_index: int, completion_index: int) -> int:
    """The 64-bit key, as a signed integer, of one completion's noise."""
    key = 0
    for part in (seed, prompt_index, completion_index):
        key = _mix_int((key + _GAMMA + part) & _MASK_64)
    return _signed(key)


def uniforms(key: Tensor, position: Tensor) -> Tensor:
    """Noise in [0, 1), float64, at `position` of the rows with `key` (int64, broadcast together).

    It is output number `position` of a splitmix64 generator that starts at `key`.
    """
    bits = _mix(key + (position + 1) * _signed(_GAMMA))
    return _shift(bits, 64 - _UNIFORM_BITS).double() * 2.0**-_UNIFORM_BITS


def draw(
    logits_BV: Tensor,
    uniform_B: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """token_B and logprob_B of one draw per row, by inverting the cumulative distribution.

    The distribution is that of `filtered_logprob`: softmax(logits / temperature) filtered by top-k,
    top-p and min-p, and the log-prob is of that very distribution. A token outside the set is never
    drawn. Temperature 0 takes the best token and reports its log-prob at temperature 1, unfiltered.
    """
    z_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    if temperature == 0.0:
        token_B1 = z_BV.argmax(-1, keepdim=True)
        logprob_BV = z_BV.log_softmax(-1)
    else:
        if temperature != 1.0:
            z_BV = z_BV / temperature
        if top_p < 1.0 or top_k > 0 or min_p > 0.0:
            kept_BV = kept_tokens(z_BV, top_p=top_p, top_k=top_k, min_p=min_p)
            z_BV = z_BV.masked_fill(~kept_BV, float("-inf"))
        logprob_BV = z_BV.log_softmax(-1)
        token_B1 = _invert(logprob_BV, uniform_B)
    return token_B1.squeeze(-1), logprob_BV.gather(-1, token_B1).squeeze(-1)


def _invert(logprob_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds uniform * total: never one of weight 0.

    NaN logits give some token in range, and its log-prob shows them.
    """
    weight_BV = logprob_BV.exp().mul_(2.0**_WEIGHT_BITS).long()
    cumulative_BV = weight_BV.cumsum(-1)
    target_B = (uniform_B * cumulative_BV[:, -1]).long()
    token_B1 = torch.searchsorted(cumulative_BV, target_B[:, None], right=True)
    return token_B1.clamp_(max=logprob_BV.shape[-1] - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's fills with the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK_64
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK_64
    return x ^ (x >> 31)
