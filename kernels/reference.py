"""Dense specifications of the kernels: read these first, test everything else against them."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_reference(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    mask_dense: Tensor,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention written out, in the dtype of its inputs.

    `mask_dense` is bool and broadcasts to [B, H, T, S], True = visible. Returns out_BTHD and
    lse_BHT, the natural log of the sum of exp(scale * q.k) over visible keys. A query that sees no
    key gives out 0 and, as the kernels do for a safe backward, lse = +inf.
    """
    H, D = q_BTHD.shape[2:]
    repeats = H // k_BSKD.shape[2]
    k_BSHD = k_BSKD.repeat_interleave(repeats, dim=2)
    v_BSHD = v_BSKD.repeat_interleave(repeats, dim=2)
    scores_BHTS = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BSHD)
    scores_BHTS = scores_BHTS * (D**-0.5 if scale is None else scale)
    visible = mask_dense.expand(scores_BHTS.shape)
    blind = ~visible.any(-1, keepdim=True)
    scores_BHTS = scores_BHTS.masked_fill(~visible & ~blind, float("-inf"))
    lse_BHT = torch.logsumexp(scores_BHTS, dim=-1)
    weights_BHTS = (scores_BHTS - lse_BHT[..., None]).exp().masked_fill(blind, 0.0)
    out_BTHD = torch.einsum("bhts,bshd->bthd", weights_BHTS, v_BSHD)
    return out_BTHD, lse_BHT.masked_fill(blind.squeeze(-1), float("inf"))


def linear_logprob_reference(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy (nats) of softmax(hidden @ weight^T / temperature)."""
    logprobs_NV = torch.log_softmax(hidden_ND @ weight_VD.T / temperature, dim=-1)
    target_logprobs_N = logprobs_NV.gather(-1, target_N[:, None]).squeeze(-1)
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return target_logprobs_N, entropy_N
