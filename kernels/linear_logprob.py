"""Log-prob of a token and entropy of its distribution, straight from hidden states.

The logits of a chunk of tokens exist one at a time, forward and backward, so memory does not grow
with tokens x vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of a float32 logits block. CPU: it should stay in the cache between passes; elsewhere it
# should fill the device (64 Mi elements are 256 MiB).
_CHUNK_ELEMENTS = {"cpu": 1 << 20}
_CHUNK_ELEMENTS_DEFAULT = 1 << 26
_MIN_CHUNK_TOKENS = 128
# A problem up to this size keeps its logits for the backward instead of computing them again.
_KEEP_ELEMENTS = 1 << 24


def linear_logprob(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """logprobs_N and entropy_N (nats) of softmax(hidden @ weight^T / temperature) at the targets.

    Both carry gradients to hidden and weight and are float32 (float64 if hidden is). The matrix
    products run in hidden's dtype, under autocast in the autocast dtype; softmax and sums do not.
    The logits are computed `chunk_tokens` rows at a time and again in the backward (4 products
    instead of 3), but for a small problem, which keeps them. Raises ValueError on a shape,
    temperature or chunk that cannot be.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive; greedy has no log-prob")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens}: must be at least 1")
    N, D = hidden_ND.shape
    V = weight_VD.shape[0]
    if weight_VD.shape != (V, D) or target_N.shape != (N,):
        shapes = [tuple(x.shape) for x in (hidden_ND, weight_VD, target_N)]
        raise ValueError(f"hidden, weight, target of shapes {shapes}: need [N,D], [V,D], [N]")
    if chunk_tokens is None:
        elements = _CHUNK_ELEMENTS.get(hidden_ND.device.type, _CHUNK_ELEMENTS_DEFAULT)
        chunk_tokens = max(_MIN_CHUNK_TOKENS, elements // V)
    device = hidden_ND.device.type
    dtype = hidden_ND.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return _LinearLogprob.apply(hidden_ND, weight_VD, target_N, temperature, chunk_tokens, dtype)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        temperature: float,
        chunk_tokens: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        N, V = hidden_ND.shape[0], weight_VD.shape[0]
        wide = torch.promote_types(dtype, torch.float32)
        logprobs_N, entropy_N, lse_N = (
            torch.empty(N, dtype=wide, device=hidden_ND.device) for _ in range(3)
        )
        keep = N * V <= _KEEP_ELEMENTS and any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            for start in range(0, N, chunk_tokens):
                c = slice(start, start + chunk_tokens)
                z_CV = _logits(hidden_ND[c].to(dtype), weight, temperature)
                if keep:
                    kept.append(z_CV)
                top_C = z_CV.amax(-1, keepdim=True)
                e_CV = (z_CV - top_C).exp_()
                sum_C = e_CV.sum(-1)
                lse_N[c] = top_C.squeeze(-1) + sum_C.log()
                target_C = z_CV.gather(-1, target_N[c, None]).squeeze(-1)
                logprobs_N[c] = target_C - lse_N[c]
                # H = lse - E[z], with z taken relative to the maximum so that nothing cancels.
                mean_C = e_CV.mul_(z_CV - top_C).sum(-1) / sum_C
                entropy_N[c] = sum_C.log() - mean_C
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_ND, weight_VD, target_N, lse_N, entropy_N, *kept)
        ctx.settings = temperature, chunk_tokens, dtype
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable  # the saved lse and entropy carry no graph
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, target_N, lse_N, entropy_N, *kept = ctx.saved_tensors
        temperature, chunk_tokens, dtype = ctx.settings
        grad_logprobs_N, grad_entropy_N = grads
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        wide = lse_N.dtype
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = (
            torch.zeros(weight_VD.shape, dtype=wide, device=weight_VD.device)
            if needs_weight
            else None
        )
        if grad_logprobs_N is None:
            grad_logprobs_N = torch.zeros_like(lse_N)
        up_N = grad_logprobs_N / temperature
        down_N = None if grad_entropy_N is None else grad_entropy_N / -temperature
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            for i, start in enumerate(range(0, hidden_ND.shape[0], chunk_tokens)):
                c = slice(start, start + chunk_tokens)
                hidden_CD = hidden_ND[c].to(dtype)
                z_CV = kept[i] if kept else _logits(hidden_CD, weight, temperature)
                logp_CV = z_CV - lse_N[c, None]
                dz_CV = logp_CV.exp()
                if down_N is None:
                    dz_CV.mul_(-up_N[c, None])
                else:  # dH/dz = -p (log p + H)
                    slope_CV = logp_CV.add_(entropy_N[c, None]).mul_(down_N[c, None])
                    dz_CV.mul_(slope_CV.sub_(up_N[c, None]))
                dz_CV.scatter_add_(-1, target_N[c, None], up_N[c, None])
                dz_CV = dz_CV.to(dtype)
                if grad_hidden_ND is not None:
                    grad_hidden_ND[c] = dz_CV @ weight
                if grad_weight_VD is not None:  # chunks add up in float32: bf16 sums would drift
                    _add_product(grad_weight_VD, dz_CV.T, hidden_CD)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None, None, None


def _logits(hidden_CD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    z_CV = hidden_CD @ weight_VD.T
    z_CV = z_CV.to(torch.promote_types(z_CV.dtype, torch.float32))
    return z_CV if temperature == 1.0 else z_CV.div_(temperature)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total += a @ b


def filtered_logprob(
    logits_NV: Tensor,
    target_N: Tensor,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """logprobs_N and entropy_N (nats) under the distribution that a sampler draws from.

    That is softmax(logits / temperature) filtered by top-k, top-p and min-p (see `kept_tokens`) and
    renormalised. The target always stays in the set: a rounding difference with the sampler must
    not give a sampled token probability 0. Differentiable in the logits; the set is not.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive; greedy has no log-prob")
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    z_NV = logits_NV.to(wide) / temperature
    if (top_p, top_k, min_p) != (1.0, 0, 0.0):
        kept_NV = kept_tokens(z_NV.detach(), top_p=top_p, top_k=top_k, min_p=min_p)
        kept_NV.scatter_(-1, target_N[:, None], True)
        z_NV = z_NV.masked_fill(~kept_NV, float("-inf"))
    logp_NV = torch.log_softmax(z_NV, dim=-1)
    # p log p -> 0 for a token outside the set; -inf would turn its gradient into NaN.
    finite_NV = logp_NV.masked_fill(logp_NV == float("-inf"), 0.0)
    entropy_N = -(logp_NV.exp() * finite_NV).sum(-1)
    return logp_NV.gather(-1, target_N[:, None]).squeeze(-1), entropy_N


def kept_tokens(
    logits_NV: Tensor, *, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> Tensor:
    """bool[N, V]: the tokens that survive top-k, then top-p, then min-p, each on what is left.

    Order and ties as in Hugging Face's warpers: top-k keeps ties with the k-th, top-p the smallest
    set of mass >= top_p, min-p what has at least min_p times the best probability. The best token
    always stays. `logits_NV` already carry the temperature. Off: top_p 1, top_k 0, min_p 0.
    """
    if not 0.0 < top_p <= 1.0 or top_k < 0 or not 0.0 <= min_p <= 1.0:
        raise ValueError(
            f"top_p={top_p}, top_k={top_k}, min_p={min_p}: need 0 < top_p <= 1, top_k >= 0 and "
            "0 <= min_p <= 1"
        )
    V = logits_NV.shape[-1]
    z_NV = logits_NV
    if 0 < top_k < V:
        kth_N = z_NV.topk(top_k, dim=-1).values[:, -1:]
        z_NV = z_NV.masked_fill(z_NV < kth_N, float("-inf"))
    if top_p < 1.0:
        ascending_NV, order_NV = z_NV.sort(dim=-1)
        dropped_NV = ascending_NV.softmax(-1).cumsum(-1) <= 1.0 - top_p
        dropped_NV[:, -1] = False
        dropped_NV = dropped_NV.scatter(-1, order_NV, dropped_NV)
        z_NV = z_NV.masked_fill(dropped_NV, float("-inf"))
    if min_p > 0.0:
        p_NV = z_NV.softmax(-1)
        z_NV = z_NV.masked_fill(p_NV < min_p * p_NV.amax(-1, keepdim=True), float("-inf"))
    return z_NV > float("-inf")
