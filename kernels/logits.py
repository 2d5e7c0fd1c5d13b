"""A block of logits: its products, its log-probs and entropies, its gradient. In PyTorch.

`logits_triton.py` has the same three functions for a GPU. Letters: C tokens of one chunk, V
vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def logits(hidden_CD: Tensor, weight_VD: Tensor, *, temperature: float) -> Tensor:
    """hidden @ weight^T / temperature in float32 or wider."""
    z_CV = hidden_CD @ weight_VD.T
    z_CV = z_CV.to(torch.promote_types(z_CV.dtype, torch.float32))
    return z_CV if temperature == 1.0 else z_CV.div_(temperature)


def fold(z_CV: Tensor, target_C: Tensor, *, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """logprob_C of the target, entropy_C in nats, and lse_C."""
    top_C = z_CV.amax(-1, keepdim=True)
    e_CV = (z_CV - top_C).exp_()
    sum_C = e_CV.sum(-1)
    lse_C = top_C.squeeze(-1) + sum_C.log()
    logprob_C = z_CV.gather(-1, target_C[:, None]).squeeze(-1) - lse_C
    # H = lse - E[z], with z taken relative to the maximum so that nothing cancels.
    mean_C = e_CV.mul_(z_CV - top_C).sum(-1) / sum_C
    return logprob_C, sum_C.log() - mean_C, lse_C


def gradient(
    z_CV: Tensor,
    target_C: Tensor,
    lse_C: Tensor,
    entropy_C: Tensor,
    *,
    grad_logprob_C: Tensor,
    grad_entropy_C: Tensor | None,
    temperature: float,
    dtype: torch.dtype,
    overwrite: bool,
) -> Tensor:
    """Gradient of the undivided logits, in `dtype`; `overwrite` allows to lose z."""
    up_C = grad_logprob_C / temperature
    logp_CV = z_CV.sub_(lse_C[:, None]) if overwrite else z_CV - lse_C[:, None]
    dz_CV = logp_CV.exp()
    if grad_entropy_C is None:
        dz_CV.mul_(-up_C[:, None])
    else:  # dH/dz = -p (log p + H)
        down_C = grad_entropy_C / -temperature
        slope_CV = logp_CV.add_(entropy_C[:, None]).mul_(down_C[:, None])
        dz_CV.mul_(slope_CV.sub_(up_C[:, None]))
    dz_CV.scatter_add_(-1, target_C[:, None], up_C[:, None])
    return dz_CV.to(dtype)
