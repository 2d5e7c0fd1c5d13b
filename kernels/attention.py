"""Attention with the masks of `masks.py`: one door to the Triton kernels and to PyTorch's SDPA."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .backend import resolve_backend
from .masks import Bucket, Mask, RowPlan, causal

# Below this many keys, SDPA's bfloat16 backward on a CPU is slower than its float32 one.
_CPU_FLOAT32_KEYS = 256


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    mask: Mask | Tensor | Literal["causal"],
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v over the visible keys -> out_BTHD in q's dtype.

    The packed form has three axes (q_THD, k_SKD, v_SKD). H must be a multiple of K (grouped-query
    attention, arXiv 2305.13245). `mask`: a `Mask` over T queries and S keys, shared by the B rows,
    or over B*T and B*S laid end to end; or a bool tensor that broadcasts to [B, 1, T, S], True =
    visible; or "causal", the queries being the last T of S positions. A query that sees no key
    gives 0. `scale` defaults to 1/sqrt(D). `backend` is "auto" (None), "triton" or "torch", see
    `backend.py`; what the Triton kernels do not take (a bool tensor, float64, a head width over
    256) "auto" gives to torch and "triton" refuses. Raises ValueError on shapes that do not fit.
    """
    if q_BTHD.dim() == 3:
        q, k, v = (x.unsqueeze(0) for x in (q_BTHD, k_BSKD, v_BSKD))
        return attention(q, k, v, mask=mask, scale=scale, backend=backend).squeeze(0)
    _check_shapes(q_BTHD, k_BSKD, v_BSKD)
    if isinstance(mask, str) and mask != "causal":
        raise ValueError(f"mask={mask!r}: unknown; give a Mask, a bool tensor or 'causal'")
    if resolve_backend(backend or "auto", device=q_BTHD.device) == "triton":
        problem = _not_for_triton(q_BTHD, k_BSKD, v_BSKD, mask, scale)
        if problem is None:
            return _flash(q_BTHD, k_BSKD, v_BSKD, mask=mask, scale=scale)
        if backend == "triton":
            raise ValueError(problem)
    if isinstance(mask, Tensor):
        return _sdpa(q_BTHD, k_BSKD, v_BSKD, visible=mask, scale=scale)
    if isinstance(mask, Mask):
        return _masked(q_BTHD, k_BSKD, v_BSKD, mask=mask.to(q_BTHD.device), scale=scale)
    num_queries, num_keys = q_BTHD.shape[1], k_BSKD.shape[1]
    if num_queries == 1 or num_queries == num_keys:
        return _sdpa(q_BTHD, k_BSKD, v_BSKD, is_causal=num_queries > 1, scale=scale)
    visible = causal(num_queries, num_keys).dense().to(q_BTHD.device)
    return _sdpa(q_BTHD, k_BSKD, v_BSKD, visible=visible, scale=scale)


def _check_shapes(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> None:
    B, _, H, D = q_BTHD.shape
    S, K = k_BSKD.shape[1:3]
    if k_BSKD.shape != (B, S, K, D) or v_BSKD.shape[:3] != (B, S, K) or H % K:
        shapes = [tuple(x.shape) for x in (q_BTHD, k_BSKD, v_BSKD)]
        raise ValueError(f"q, k, v of shapes {shapes}: need [B,T,H,D], [B,S,K,D], H multiple of K")


def _over_one_row(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    """Whether the mask is over the rows laid end to end. Raises ValueError if it does not fit."""
    B, T, S = q.shape[0], q.shape[1], k.shape[1]
    size = mask.num_queries, mask.num_keys
    if size == (T, S):
        return False
    if size != (B * T, B * S):
        raise ValueError(
            f"mask of {size[0]} queries x {size[1]} keys: the tensors have {T} x {S} in {B} rows"
        )
    return True


def _not_for_triton(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask | Tensor | str, scale: float | None
) -> str | None:
    from .flash_attention import unsupported

    if isinstance(mask, Tensor):
        return "mask is a bool tensor: backend 'triton' takes a Mask or 'causal'"
    return unsupported(q, k, v, scale=scale)


def _flash(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scale: float | None) -> Tensor:
    from .flash_attention import flash_attention  # only here: triton is not on every platform

    if isinstance(mask, str):
        mask = _causal(q.shape[1], k.shape[1], q.device)
    if _over_one_row(q, k, v, mask):
        rows = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
        return _flash(*rows, mask=mask, scale=scale).view(q.shape)
    return flash_attention(q, k, v, mask=mask.to(q.device), scale=scale)


@lru_cache(maxsize=16)
def _causal(num_queries: int, num_keys: int, device: torch.device) -> Mask:
    """One object for all layers and steps, so that its lists of tiles are built once."""
    return causal(num_queries, num_keys).to(device)


def _masked(q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scale: float | None) -> Tensor:
    B, T = q.shape[:2]
    if _over_one_row(q, k, v, mask):
        q, k, v = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
        return _masked(q, k, v, mask=mask, scale=scale).reshape(B, T, *q.shape[2:3], -1)
    if mask.pattern is not None:
        return _sdpa(q, k, v, is_causal=mask.pattern == "causal", scale=scale)
    if B == 1 and mask.rows is not None:
        return _by_rows(q[0], k[0], v[0], plan=mask.rows, scale=scale).unsqueeze(0)
    return _sdpa(q, k, v, visible=mask.dense(), scale=scale)


def _by_rows(
    q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor, *, plan: RowPlan, scale: float | None
) -> Tensor:
    outputs = [_bucket(q_THD, k_SKD, v_SKD, bucket=b, scale=scale) for b in plan.buckets]
    if plan.uncovered:
        outputs.append(q_THD.new_zeros(1, q_THD.shape[1], v_SKD.shape[2]))
    out_NHD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return out_NHD if plan.output_index_N is None else _gather(out_NHD, plan.output_index_N)


def _bucket(
    q_THD: Tensor, k_SKD: Tensor, v_SKD: Tensor, *, bucket: Bucket, scale: float | None
) -> Tensor:
    q_index, k_index = bucket.q_index_RT, bucket.k_index_RS
    q_RTHD = _rows(q_THD, q_index, identity=bucket.identity_queries)
    k_RSKD = _rows(k_SKD, k_index, identity=bucket.identity_keys)
    v_RSKD = _rows(v_SKD, k_index, identity=bucket.identity_keys)
    visible = None if bucket.visible_RTS is None else bucket.visible_RTS[:, None]
    out_RTHD = _sdpa(
        q_RTHD, k_RSKD, v_RSKD, visible=visible, is_causal=bucket.is_causal, scale=scale
    )
    return out_RTHD.flatten(0, 1)


def _rows(x_NHD: Tensor, index_RT: Tensor, *, identity: bool) -> Tensor:
    if identity:
        return x_NHD.reshape(*index_RT.shape, *x_NHD.shape[1:])
    return _gather(x_NHD, index_RT)


def _gather(x_NHD: Tensor, index: Tensor) -> Tensor:
    # embedding: its backward is deterministic and about twice as fast as index_select's.
    return F.embedding(index, x_NHD.flatten(1)).unflatten(-1, x_NHD.shape[1:])


def _sdpa(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    visible: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    dtype = q_BTHD.dtype
    q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    grouped = q.shape[1] != k.shape[1]
    low_precision = dtype in (torch.bfloat16, torch.float16) or (
        dtype == torch.float32 and torch.is_autocast_enabled(q.device.type)
    )
    if low_precision and q.device.type == "cpu" and k.shape[2] <= _CPU_FLOAT32_KEYS:
        with torch.autocast("cpu", enabled=False):
            q, k, v = q.float(), k.float(), v.float()
            out = _blind_safe_sdpa(q, k, v, visible, is_causal, scale, grouped)
    else:
        out = _blind_safe_sdpa(q, k, v, visible, is_causal, scale, grouped)
    return out.transpose(1, 2).to(dtype)


def _blind_safe_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    is_causal: bool,
    scale: float | None,
    grouped: bool,
) -> Tensor:
    if visible is None or q.device.type == "cpu":  # on CPU, SDPA gives 0 to a row of False
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=is_causal, scale=scale, enable_gqa=grouped
        )
    seeing = visible.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible | ~seeing, scale=scale, enable_gqa=grouped
    )
    return torch.where(seeing, out, 0.0)
