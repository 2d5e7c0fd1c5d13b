"""FlashAttention-2 (arXiv 2307.08691) in Triton over the interval masks of `masks.py`.

Forward in `flash_forward.py`, backward in `flash_backward.py`. Query heads share their key-value
head where it lies, without repetition; tiles that a mask hides are never visited. Nothing grows
with queries x keys but the lists of tiles, which the mask holds for all layers and both passes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .configurations import MAX_HEAD_DIM, Tile
from .flash_backward import flash_backward
from .flash_forward import flash_forward
from .masks import Mask

_DTYPES = {torch.float32, torch.float16, torch.bfloat16}
_LOAD_BYTES = 16


class Tiles(NamedTuple):
    """Tile sizes of the three kernels; None takes the table's."""

    forward: Tile | None = None
    grad_query: Tile | None = None
    grad_key_value: Tile | None = None


def flash_attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    mask: Mask,
    scale: float | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v over the visible keys -> out_BTHD in q's dtype.

    The mask is over T queries and S keys and shared by the B rows. Under autocast, float32 inputs
    are computed in the autocast dtype. Raises ValueError on what the kernels do not take.
    """
    dtype, device = q_BTHD.dtype, q_BTHD.device.type
    scale = q_BTHD.shape[-1] ** -0.5 if scale is None else scale
    problem = unsupported(q_BTHD, k_BSKD, v_BSKD, scale=scale)
    if problem is not None:
        raise ValueError(problem)
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        q_BTHD, k_BSKD, v_BSKD = (x.to(low) for x in (q_BTHD, k_BSKD, v_BSKD))
    q, k, v = (_aligned(x) for x in (q_BTHD, k_BSKD, v_BSKD))
    return _FlashAttention.apply(q, k, v, mask, scale, tiles or Tiles()).to(dtype)


def unsupported(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *, scale: float | None = None
) -> str | None:
    """One line on what the kernels cannot take of these inputs, or None."""
    D, dtypes = q_BTHD.shape[-1], {x.dtype for x in (q_BTHD, k_BSKD, v_BSKD)}
    if len(dtypes) > 1 or not dtypes <= _DTYPES:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))
        return f"q, k, v in {names}: backend 'triton' takes one of float32, float16, bfloat16"
    if v_BSKD.shape[-1] != D or D > MAX_HEAD_DIM:
        widths = f"head width {D}, values {v_BSKD.shape[-1]}"
        return f"{widths}: backend 'triton' takes equal ones of at most {MAX_HEAD_DIM}"
    if scale is not None and scale <= 0:
        return f"scale={scale}: backend 'triton' takes a positive one"
    return None


def _aligned(x_BTHD: Tensor) -> Tensor:
    """Unit stride along D, and rows on 16 bytes where a copy can give them: other rows are loaded
    element by element."""
    size = x_BTHD.element_size()
    starts = [x_BTHD.storage_offset() * size, *(s * size for s in x_BTHD.stride()[:3])]
    crooked = any(n % _LOAD_BYTES for n in starts) and x_BTHD.shape[-1] * size % _LOAD_BYTES == 0
    if crooked or x_BTHD.stride(-1) != 1:
        return x_BTHD.clone(memory_format=torch.contiguous_format)
    return x_BTHD


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, tiles: Tiles
    ) -> Tensor:
        out_BTHD, lse_BHT = flash_forward(q, k, v, mask=mask, scale=scale, tile=tiles.forward)
        ctx.save_for_backward(q, k, v, out_BTHD, lse_BHT)
        ctx.mask, ctx.scale, ctx.tiles = mask, scale, tiles
        return out_BTHD

    @staticmethod
    @once_differentiable  # the saved lse carries no graph
    def backward(ctx: Any, grad_BTHD: Tensor) -> tuple[Tensor | None, ...]:
        grads = flash_backward(
            grad_BTHD,
            *ctx.saved_tensors,
            mask=ctx.mask,
            scale=ctx.scale,
            query_tile=ctx.tiles.grad_query,
            key_tile=ctx.tiles.grad_key_value,
        )
        return *grads, None, None, None
