"""Log-prob of a token and entropy of its distribution, straight from hidden states.

The logits of a chunk of tokens exist one at a time, forward and backward, so memory does not grow
with tokens x vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import logits
from .backend import resolve_backend

TokenLoss = Callable[[Tensor, Tensor, slice], Tensor]

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
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """logprobs_N and entropy_N (nats) of softmax(hidden @ weight^T / temperature) at the targets.

    Both carry gradients to hidden and weight and are float32 (float64 if hidden is). The matrix
    products run in hidden's dtype, under autocast in the autocast dtype; softmax and sums do not.
    The logits are computed `chunk_tokens` rows at a time and again in the backward (4 products
    instead of 3), but for a small problem, which keeps them. `backend` as in `backend.py`; float64
    is torch's under "auto". Raises ValueError on a shape, temperature or chunk that cannot be.
    """
    plan = _plan(hidden_ND, weight_VD, target_N, temperature, chunk_tokens, backend)
    return _LinearLogprob.apply(hidden_ND, weight_VD, target_N, plan)


def linear_token_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    token_loss: TokenLoss,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of a loss that each token has on its own, with 3 matrix products instead of 4.

    `token_loss(logprobs_C, entropy_C, rows)` gives the losses_C of one chunk, the tokens of slice
    `rows`; loss c must depend on token c alone, as in GRPO with token-level ratios (not GSPO). The
    gradient is then known in the forward, where the logits are: they are never computed again.
    Returns the loss, which carries gradients to hidden and weight only, and logprobs_N and
    entropy_N, which carry none. Otherwise as `linear_logprob`.
    """
    plan = _plan(hidden_ND, weight_VD, target_N, temperature, chunk_tokens, backend)
    return _LinearTokenLoss.apply(hidden_ND, weight_VD, target_N, token_loss, plan)


@dataclass(frozen=True)
class _Plan:
    """How one call computes: rows per chunk, dtype of the products, and the three operations."""

    temperature: float
    chunk_tokens: int
    dtype: torch.dtype
    ops: Any  # the module logits.py or logits_triton.py

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def chunks(self, num_tokens: int) -> Iterator[slice]:
        for start in range(0, num_tokens, self.chunk_tokens):
            yield slice(start, min(start + self.chunk_tokens, num_tokens))


def _plan(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    temperature: float,
    chunk_tokens: int | None,
    backend: str | None,
) -> _Plan:
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be positive; greedy has no log-prob")
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens}: must be at least 1")
    N, D = hidden_ND.shape
    V = weight_VD.shape[0]
    if weight_VD.shape != (V, D) or target_N.shape != (N,):
        shapes = [tuple(x.shape) for x in (hidden_ND, weight_VD, target_N)]
        raise ValueError(f"hidden, weight, target of shapes {shapes}: need [N,D], [V,D], [N]")
    device, dtype = hidden_ND.device.type, hidden_ND.dtype
    if chunk_tokens is None:
        elements = _CHUNK_ELEMENTS.get(device, _CHUNK_ELEMENTS_DEFAULT)
        chunk_tokens = max(_MIN_CHUNK_TOKENS, elements // V)
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    ops = _operations(backend, hidden_ND.device, dtype)
    return _Plan(temperature, chunk_tokens, dtype, ops)


def _operations(backend: str | None, device: torch.device, dtype: torch.dtype) -> Any:
    if resolve_backend(backend or "auto", device=device) == "torch":
        return logits
    if dtype == torch.float64:
        if backend == "triton":
            raise ValueError("hidden in float64: backend 'triton' takes float32 and less")
        return logits
    from . import logits_triton  # only here: triton is not on every platform

    return logits_triton


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor]:
        N, V = hidden_ND.shape[0], weight_VD.shape[0]
        logprobs_N, entropy_N, lse_N = _vectors(3, hidden_ND, plan)
        keep = N * V <= _KEEP_ELEMENTS and any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(plan.dtype)
            for c in plan.chunks(N):
                hidden_CD = hidden_ND[c].to(plan.dtype)
                z_CV = plan.ops.logits(hidden_CD, weight, temperature=plan.temperature)
                if keep:
                    kept.append(z_CV)
                logprobs_N[c], entropy_N[c], lse_N[c] = plan.ops.fold(
                    z_CV, target_N[c], temperature=plan.temperature
                )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_ND, weight_VD, target_N, lse_N, entropy_N, *kept)
        ctx.plan = plan
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable  # the saved lse and entropy carry no graph
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, target_N, lse_N, entropy_N, *kept = ctx.saved_tensors
        plan: _Plan = ctx.plan
        grad_logprobs_N, grad_entropy_N = grads
        if grad_logprobs_N is None:
            grad_logprobs_N = torch.zeros_like(lse_N)
        total = _Gradients(hidden_ND, weight_VD, plan, ctx.needs_input_grad)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(plan.dtype)
            for i, c in enumerate(plan.chunks(hidden_ND.shape[0])):
                hidden_CD = hidden_ND[c].to(plan.dtype)
                if kept:
                    z_CV = kept[i]
                else:
                    z_CV = plan.ops.logits(hidden_CD, weight, temperature=plan.temperature)
                dz_CV = plan.ops.gradient(
                    z_CV,
                    target_N[c],
                    lse_N[c],
                    entropy_N[c],
                    grad_logprob_C=grad_logprobs_N[c],
                    grad_entropy_C=None if grad_entropy_N is None else grad_entropy_N[c],
                    temperature=plan.temperature,
                    dtype=plan.dtype,
                    overwrite=not kept,
                )
                total.add(c, dz_CV, hidden_CD, weight)
        return *total.finish(), None, None


class _LinearTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        token_loss: TokenLoss,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:
        N = hidden_ND.shape[0]
        logprobs_N, entropy_N = _vectors(2, hidden_ND, plan)
        loss = torch.zeros((), dtype=plan.wide, device=hidden_ND.device)
        trains = any(ctx.needs_input_grad)
        total = _Gradients(hidden_ND, weight_VD, plan, ctx.needs_input_grad)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(plan.dtype)
            for c in plan.chunks(N):
                hidden_CD = hidden_ND[c].to(plan.dtype)
                z_CV = plan.ops.logits(hidden_CD, weight, temperature=plan.temperature)
                logprob_C, entropy_C, lse_C = plan.ops.fold(
                    z_CV, target_N[c], temperature=plan.temperature
                )
                logprobs_N[c], entropy_N[c] = logprob_C, entropy_C
                chunk_loss, up_C, down_C = _differentiate(token_loss, logprob_C, entropy_C, c)
                loss += chunk_loss
                if not trains:
                    continue
                dz_CV = plan.ops.gradient(
                    z_CV,
                    target_N[c],
                    lse_C,
                    entropy_C,
                    grad_logprob_C=up_C,
                    grad_entropy_C=down_C,
                    temperature=plan.temperature,
                    dtype=plan.dtype,
                    overwrite=True,
                )
                total.add(c, dz_CV, hidden_CD, weight)
        ctx.mark_non_differentiable(logprobs_N, entropy_N)
        ctx.grads = total.finish()
        return loss, logprobs_N, entropy_N

    @staticmethod
    @once_differentiable  # the gradient was formed without a graph
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("linear_token_loss: a second backward; its gradient is kept once")
        grads, ctx.grads = ctx.grads, None
        grads = [None if g is None else g.mul_(grad.to(g.dtype)) for g in grads]
        return *grads, None, None, None


def _differentiate(
    token_loss: TokenLoss, logprob_C: Tensor, entropy_C: Tensor, rows: slice
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The chunk's loss and its gradients by log-prob and by entropy (None: does not depend)."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (logprob_C, entropy_C)]
        losses_C = token_loss(leaves[0], leaves[1], rows)
        if losses_C.shape != logprob_C.shape:
            raise ValueError(
                f"token_loss: {tuple(losses_C.shape)} for {tuple(logprob_C.shape)} tokens; "
                "give one loss per token"
            )
        loss = losses_C.sum()
    up_C = down_C = None
    if loss.requires_grad:
        up_C, down_C = torch.autograd.grad(loss, leaves, allow_unused=True)
    return loss.detach(), torch.zeros_like(logprob_C) if up_C is None else up_C, down_C


class _Gradients:
    """Gradients of hidden and weight, chunk by chunk. The weight's adds up in float32 or wider:
    sums in bfloat16 would drift."""

    def __init__(
        self, hidden_ND: Tensor, weight_VD: Tensor, plan: _Plan, needed: Sequence[bool]
    ) -> None:
        self.hidden_ND = torch.empty_like(hidden_ND) if needed[0] else None
        self.weight_VD = None
        if needed[1]:
            self.weight_VD = weight_VD.new_zeros(weight_VD.shape, dtype=plan.wide)
        self.weight_dtype = weight_VD.dtype

    def add(self, rows: slice, dz_CV: Tensor, hidden_CD: Tensor, weight_VD: Tensor) -> None:
        if self.hidden_ND is not None:
            self.hidden_ND[rows] = dz_CV @ weight_VD
        if self.weight_VD is not None:
            _add_product(self.weight_VD, dz_CV.T, hidden_CD)

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        if self.weight_VD is not None:
            self.weight_VD = self.weight_VD.to(self.weight_dtype)
        return self.hidden_ND, self.weight_VD


def _vectors(count: int, hidden_ND: Tensor, plan: _Plan) -> list[Tensor]:
    shape, device = hidden_ND.shape[:1], hidden_ND.device
    return [torch.empty(shape, dtype=plan.wide, device=device) for _ in range(count)]


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:  # low-precision factors, float32 sum, and no second matrix of this size
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
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
