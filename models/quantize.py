"""Frozen weights in 4 or 8 bits through bitsandbytes: the base of QLoRA (arXiv 2305.14314)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .llama import Llama

QUANTIZATIONS = ("none", "4bit", "8bit")


def quantize_layers(model: Llama, mode: str, *, device: str | torch.device) -> Llama:
    """Replace the linear layers of all blocks by quantised, frozen ones and move to `device`.

    Embedding, norms and head keep their type, and everything is frozen: train LoRA adapters on top.
    "4bit" is NF4 with double quantisation; "8bit" is LLM.int8 (arXiv 2208.07339). Raises ValueError
    if the mode is unknown or bitsandbytes is not installed.
    """
    if mode not in QUANTIZATIONS[1:]:
        raise ValueError(f"model.quantization = {mode!r}: unknown; one of {QUANTIZATIONS}")
    bitsandbytes = _bitsandbytes(mode)
    model.requires_grad_(False)
    for block in model.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, layer in list(parent.named_children()):  # type: ignore[union-attr]
                if isinstance(layer, nn.Linear):
                    replacement = _quantized(bitsandbytes, layer, mode)
                    setattr(parent, name, replacement.to(device))
    return model.to(device)


def dequantized_weight(layer: nn.Linear) -> Tensor:
    """The weight matrix of a linear layer, quantised or not."""
    weight, kind = layer.weight, type(layer.weight).__name__
    if kind not in ("Params4bit", "Int8Params"):
        return weight
    module: Any = layer
    if kind == "Params4bit":
        functional = _bitsandbytes("4bit").functional
        return functional.dequantize_4bit(weight.data, module.weight.quant_state)
    # Largest magnitude of each row: the first forward moves it from the weight to the state.
    scale = module.weight.SCB if module.state.SCB is None else module.state.SCB
    return (weight.data * (scale.float() / 127.0)[:, None]).to(module.compute_dtype)


def _quantized(bitsandbytes: Any, layer: nn.Linear, mode: str) -> nn.Module:
    shape = {"bias": layer.bias is not None, "device": "meta"}
    dtype = layer.weight.dtype
    weight = layer.weight.detach()
    if mode == "4bit":
        new = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, compute_dtype=dtype, quant_type="nf4", **shape
        )
        new.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        new = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, has_fp16_weights=False, threshold=6.0, **shape
        )
        new.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        new.compute_dtype = dtype
    new.bias = layer.bias
    return new


def _bitsandbytes(mode: str) -> Any:
    try:
        import bitsandbytes  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(
            f"model.quantization = {mode!r}: needs bitsandbytes, which is not installed; "
            "pip install 'thinkrl[quantization]'"
        ) from None
    return bitsandbytes
