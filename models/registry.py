"""Presets by name, and `load_model` / `save_model`, which every stage goes through."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch

from ..kernels.backend import resolve_backend
from .adapters import base_model, merged_state
from .checkpoint import MAX_SHARD_BYTES, load_checkpoint, save_checkpoint
from .hub import find_folder
from .llama import Llama, LlamaConfig, RopeScaling
from .quantize import quantize_layers

# Sizes: llama-models/models/sku_list.py and the Hub's config.json of each model.
_LLAMA_3_2 = {
    "vocab_size": 128_256,
    "head_dim": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rope_scaling": RopeScaling(factor=32.0),
    "tie_word_embeddings": True,
}
_LLAMA_3 = {
    "vocab_size": 128_256,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
_LLAMA_3_1 = {
    **_LLAMA_3,
    "max_position_embeddings": 131_072,
    "rope_scaling": RopeScaling(factor=8.0),
}
_SMALL = {
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
}


def _sizes(layers: int, hidden: int, ffn: int, heads: int, **rest: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        **rest,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "llama-tiny": _sizes(2, 64, 176, 2, num_key_value_heads=2, head_dim=32, **_SMALL),
    "llama-small": _sizes(4, 256, 704, 8, num_key_value_heads=4, head_dim=32, **_SMALL),
    "llama-3.2-1b": _sizes(16, 2048, 8192, 32, **_LLAMA_3_2),
    "llama-3.2-3b": _sizes(28, 3072, 8192, 24, **{**_LLAMA_3_2, "head_dim": 128}),
    "llama-3-8b": _sizes(32, 4096, 14_336, 32, **_LLAMA_3),
    "llama-3-70b": _sizes(80, 8192, 28_672, 64, **_LLAMA_3),
    "llama-3.1-8b": _sizes(32, 4096, 14_336, 32, **_LLAMA_3_1),
    "llama-3.1-70b": _sizes(80, 8192, 28_672, 64, **_LLAMA_3_1),
    "llama-3.1-405b": _sizes(126, 16_384, 53_248, 128, **_LLAMA_3_1),
}


def preset_config(
    name: str, *, overrides: dict[str, Any] | None = None, vocab_size: int | None = None
) -> LlamaConfig:
    """The configuration of a preset with some sizes changed; ValueError on an unknown key."""
    sizes = dict(PRESETS[name])
    fields = {f.name for f in dataclasses.fields(LlamaConfig)}
    for key, value in (overrides or {}).items():
        if key not in fields:
            raise ValueError(f"model.overrides.{key} = {value!r}: unknown; one of {sorted(fields)}")
        sizes[key] = value
    if vocab_size is not None:
        sizes["vocab_size"] = vocab_size
    return LlamaConfig(**sizes)


def build_model(
    config: LlamaConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int | None = None,
) -> Llama:
    """A freshly initialised model; with a seed, torch's global generator is not touched."""
    with torch.device("meta"):
        model = Llama(config)
    model.to_empty(device="cpu")  # drawn on the CPU: the same weights on every device
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    return model.to(device=device, dtype=dtype)


def load_model(
    path_or_preset: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device = "cpu",
    kernels: str = "auto",
    overrides: dict[str, Any] | None = None,
    vocab_size: int | None = None,
    seed: int | None = None,
    quantization: str = "none",
) -> Llama:
    """A model by preset name (fresh weights), checkpoint folder, or Hugging Face id.

    `overrides` and `seed` are for presets; `vocab_size` sets a preset's and is the least that a
    checkpoint must have. `quantization` ("4bit", "8bit") freezes the model: add LoRA adapters.
    Raises ValueError with one line on anything that does not exist or fit.
    """
    name = str(path_or_preset)
    dtype = _dtype(dtype)
    resolve_kernels(kernels, device=device)
    first_device = device if quantization == "none" else "cpu"
    if name in PRESETS:
        config = preset_config(name, overrides=overrides, vocab_size=vocab_size)
        model = build_model(config, dtype=dtype, device=first_device, seed=seed)
    else:
        if overrides:
            raise ValueError(
                f"model.overrides: {sorted(overrides)} cannot change the checkpoint {name!r}; "
                f"they are for presets: {', '.join(PRESETS)}"
            )
        folder = find_folder(path_or_preset, hint=_preset_hint(name))
        model = load_checkpoint(folder, dtype=dtype, device=first_device)
        _check_vocabulary(name, model.config, vocab_size)
    model.use_kernels(kernels)
    return model if quantization == "none" else quantize_layers(model, quantization, device=device)


def save_model(
    model: Any, path: str | Path, tokenizer: Any = None, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write a checkpoint that `load_model` and Hugging Face read; LoRA adapters are merged in.

    The folder appears whole or not at all. Raises OSError with one line if it cannot be written.
    """
    save_checkpoint(
        merged_state(model),
        base_model(model).config,
        path,
        tokenizer=tokenizer,
        max_shard_bytes=max_shard_bytes,
    )


def resolve_kernels(name: str, *, device: str | torch.device = "cpu") -> str:
    """The backend that a name means on a device; ValueError on one that is not available there."""
    try:
        return resolve_backend(name, device=device)
    except ValueError as error:
        raise ValueError(f"model.kernels: {error}") from None


def _preset_hint(name: str) -> str:
    close = difflib.get_close_matches(name, PRESETS, n=1)
    return f"; did you mean {close[0]!r}?" if close else f" or preset ({', '.join(PRESETS)})"


def _check_vocabulary(name: str, config: LlamaConfig, needed: int | None) -> None:
    if needed is not None and needed > config.vocab_size:
        raise ValueError(
            f"model.path = {name!r}: its vocabulary of {config.vocab_size} is smaller than the "
            f"tokenizer's {needed}; use the checkpoint's own tokenizer"
        )


def _dtype(name: str | torch.dtype) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    if name not in ("float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"model.dtype = {name!r}: unknown; use float32 or bfloat16")
    return getattr(torch, name)
