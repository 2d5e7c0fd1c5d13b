"""Linear layers made ready for many small products: weights rounded and packed once per call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Smaller weights stay in the cache, where packing saves nothing and oneDNN costs 10 us a call more.
_PACK_ELEMENTS = 1 << 15
# Rows that the packed layout is chosen for; any number works.
_PACK_ROWS = 64


@contextlib.contextmanager
def fast_linears(model: nn.Module, *, bf16: bool) -> Iterator[None]:
    """Every float32 `nn.Linear` of `model` answers from prepared weights until the block ends.

    With `bf16` it computes and answers in bfloat16, as autocast would, which rounds the weights
    again at every call. Do not change or train the weights inside.
    """
    changed = []
    try:
        for module in model.modules():
            plain = type(module).forward is nn.Linear.forward and "forward" not in vars(module)
            if isinstance(module, nn.Linear) and plain and module.weight.dtype == torch.float32:
                forward = fast_linear(module.weight, module.bias, bf16=bf16)
                module.forward = forward  # type: ignore[method-assign]
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def fast_linear(
    weight: Tensor, bias: Tensor | None = None, *, bf16: bool = False
) -> Callable[[Tensor], Tensor]:
    """x -> x @ weight^T + bias, in bfloat16 if asked and the weight is float32."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if bf16 and weight.dtype == torch.float32:
        weight, bias = weight.bfloat16(), None if bias is None else bias.bfloat16()
    dtype = weight.dtype
    if not packs(weight):
        return lambda x: F.linear(x.to(dtype), weight, bias)
    # The operators that torch.compile uses for frozen weights.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
    linear = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: linear(x.to(dtype), packed, bias, "none", [], "")


def packs(weight: Tensor) -> bool:
    """Whether a weight is worth packing here, and can be."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.numel() >= _PACK_ELEMENTS
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
