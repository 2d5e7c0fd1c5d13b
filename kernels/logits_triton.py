"""`logits.py` in Triton: one pass over a block of logits for its statistics, one for its gradient.

The products stay with cuBLAS. The logits stay in the dtype of the product; everything inside the
kernels is float32. Programs are numbered along one axis, which has no limit of 65535.
"""

# A constexpr parameter takes a plain value, and a launch its options: no type says so.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of a row that a program reads at once: enough bytes in flight, and few registers.
_FOLD_BLOCK = 4096
_GRADIENT_BLOCK = 2048
_WARPS = 8


@triton.jit
def fold_kernel(
    Z, TARGET, LOGPROB, ENTROPY, LSE, inverse_temperature, row_stride, V, BLOCK: tl.constexpr
):
    """One row: maximum, sum of exp(z - maximum) and of (z - maximum) exp(z - maximum), online."""
    row = tl.program_id(0).to(tl.int64)
    z_row = Z + row * row_stride
    column = tl.arange(0, BLOCK)
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    moment = tl.zeros([], tl.float32)
    for start in range(0, V, BLOCK):
        inside = start + column < V
        z = tl.load(z_row + start + column, mask=inside, other=float("-inf")).to(tl.float32)
        z = z * inverse_temperature
        new_top = tl.maximum(top, tl.max(z, 0))
        below = tl.where(inside, z - new_top, 0.0)
        weight = tl.where(inside, tl.exp(below), 0.0)
        # Nothing is behind the first block: its maximum of -inf must not enter a product.
        fall = tl.where(start == 0, 0.0, top - new_top)
        shrink = tl.exp(fall)
        moment = shrink * (moment + total * fall) + tl.sum(weight * below, 0)
        total = total * shrink + tl.sum(weight, 0)
        top = new_top
    lse = top + tl.log(total)
    target = tl.load(TARGET + row)
    z_target = tl.load(z_row + target).to(tl.float32) * inverse_temperature
    tl.store(LOGPROB + row, z_target - lse)
    tl.store(ENTROPY + row, tl.log(total) - moment / total)
    tl.store(LSE + row, lse)


@triton.jit
def gradient_kernel(
    Z, DZ, TARGET, LSE, ENTROPY, UP, DOWN, inverse_temperature, z_stride, dz_stride, V, blocks,
    HAS_DOWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dz = up (1[target] - p) - down p (log p + H), both over the temperature; DZ may be Z."""
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    column = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = column < V
    z = tl.load(Z + row * z_stride + column, mask=inside, other=0.0).to(tl.float32)
    logp = z * inverse_temperature - tl.load(LSE + row)
    up = tl.load(UP + row)
    slope = tl.zeros([BLOCK], tl.float32) + up
    if HAS_DOWN:
        slope += tl.load(DOWN + row) * (logp + tl.load(ENTROPY + row))
    dz = tl.where(column == tl.load(TARGET + row), up, 0.0) - tl.exp(logp) * slope
    dz = dz * inverse_temperature
    tl.store(DZ + row * dz_stride + column, dz.to(DZ.dtype.element_ty), mask=inside)


def logits(hidden_CD: Tensor, weight_VD: Tensor, *, temperature: float) -> Tensor:
    """hidden @ weight^T in the dtype of the inputs; `fold` and `gradient` divide."""
    return hidden_CD @ weight_VD.T


def fold(z_CV: Tensor, target_C: Tensor, *, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """logprob_C of the target, entropy_C in nats, and lse_C; float32."""
    C, V = z_CV.shape
    out = torch.empty(3, C, dtype=torch.float32, device=z_CV.device)
    with torch.cuda.device_of(z_CV):
        fold_kernel[(C,)](
            z_CV, target_C, out[0], out[1], out[2], 1.0 / temperature, z_CV.stride(0), V,
            BLOCK=_FOLD_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
    return out[0], out[1], out[2]


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
    """Gradient of the undivided logits, in `dtype`; `overwrite` writes it over z."""
    C, V = z_CV.shape
    dz_CV = z_CV if overwrite and z_CV.dtype == dtype else torch.empty_like(z_CV, dtype=dtype)
    blocks = triton.cdiv(V, _GRADIENT_BLOCK)
    down_C = grad_logprob_C if grad_entropy_C is None else grad_entropy_C
    with torch.cuda.device_of(z_CV):
        gradient_kernel[(C * blocks,)](
            z_CV, dz_CV, target_C, lse_C, entropy_C, grad_logprob_C.contiguous(),
            down_C.contiguous(), 1.0 / temperature, z_CV.stride(0), dz_CV.stride(0), V, blocks,
            HAS_DOWN=grad_entropy_C is not None, BLOCK=_GRADIENT_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
    return dz_CV
