"""LoRA adapters (arXiv 2106.09685) through peft: add, switch off, merge, export."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .llama import Llama
from .quantize import dequantized_weight

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_REFUSED = ("lm_head", "embed_tokens")


def add_lora(
    model: Llama,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    target_modules: Sequence[str] = LINEAR_NAMES,
    seed: int | None = None,
) -> Any:
    """The model wrapped by peft, with only the adapters trainable; they start as no change at all.

    Call the result as the model. Raises ValueError on a target that is not a layer of the model,
    and on the embedding or head, whose weights are read directly and would miss the adapter.
    """
    from peft import LoraConfig, get_peft_model

    layers = model.model.layers.named_modules()
    linear = {name.rsplit(".", 1)[-1] for name, m in layers if isinstance(m, nn.Linear)}
    for name in target_modules:
        if name.rsplit(".", 1)[-1] in _REFUSED:
            raise ValueError(
                f"model.lora.target_modules: {name!r} cannot have an adapter: log-probs are "
                f"computed straight from its weights; choose from {', '.join(LINEAR_NAMES)}"
            )
        if name not in linear:
            raise ValueError(
                f"model.lora.target_modules: no layer {name!r}; choose from "
                f"{', '.join(n for n in LINEAR_NAMES if n in linear)}"
            )
    if not target_modules:
        raise ValueError("model.lora.target_modules: is empty; name at least one layer")
    if rank < 1:
        raise ValueError(f"model.lora.rank = {rank}: must be at least 1")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(target_modules),
    )
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return get_peft_model(model, config)


def has_lora(model: nn.Module) -> bool:
    """Whether the model is wrapped by peft."""
    return hasattr(model, "get_base_model")


def base_model(model: Any) -> Llama:
    """The Llama itself, be it wrapped by peft or not."""
    return model.get_base_model() if has_lora(model) else model


def adapters_off(model: Any) -> AbstractContextManager[Any]:
    """A block in which the model is the frozen base: the reference policy, at no memory."""
    return model.disable_adapter() if has_lora(model) else nullcontext()


def load_lora(model: Any, folder: str | Path) -> None:
    """Put adapters that peft's `save_pretrained` wrote back into a wrapped model, bit for bit.

    Raises ValueError where the folder holds no adapters or those of other layers or another rank.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    file = Path(folder) / "adapter_model.safetensors"
    if not file.is_file():
        raise ValueError(f"{folder}: no adapter_model.safetensors; not saved from a LoRA run")
    state, own = load_file(file), get_peft_model_state_dict(model)
    if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in own.items()}:
        raise ValueError(f"{file}: adapters of other layers or another rank than model.lora says")
    set_peft_model_state_dict(model, state)


def merge_lora(model: Any) -> Llama:
    """A plain, trainable Llama with the adapters added into its weights; `model` stays as it is.

    Weights without an adapter are shared with `model`.
    """
    with torch.device("meta"):
        merged = Llama(base_model(model).config)
    merged.load_state_dict(merged_state(model), assign=True)
    return merged


@torch.no_grad()
def merged_state(model: Any) -> dict[str, Tensor]:
    """A plain Llama's state dict with the adapters added in; the model is left as it is.

    Quantised weights come back in the type they are computed in.
    """
    plain = base_model(model)
    state: dict[str, Tensor] = {}
    linear: list[str] = []
    for name, module in plain.named_modules():
        base = getattr(module, "base_layer", module)
        if not isinstance(base, nn.Linear) or name.startswith(tuple(linear)):
            continue
        linear.append(f"{name}.")
        weight = dequantized_weight(base)
        for adapter in getattr(module, "active_adapters", ()):
            delta = module.get_delta_weight(adapter)  # type: ignore[operator]
            weight = (weight.to(delta.dtype) + delta).to(weight.dtype)
        state[f"{name}.weight"] = weight
        if base.bias is not None:
            state[f"{name}.bias"] = base.bias
    skip = tuple(linear)
    rest = {k: v for k, v in plain.state_dict().items() if not k.startswith(skip)}
    return {**rest, **state}
