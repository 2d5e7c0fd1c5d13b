"""`config.json` of Hugging Face, read in both spellings and written in both.

transformers 5 writes `rope_parameters` and `dtype`; files on the Hub have `rope_theta`,
`rope_scaling` and `torch_dtype`. What the model does not implement is refused by name: a setting
that is ignored would give a model that is almost right.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .llama import LlamaConfig, RopeScaling

# model_type, what the family adds to LLaMA, and the values its config classes leave out.
_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768}
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama", **_DEFAULTS, "max_position_embeddings": 2048},
    "Qwen2ForCausalLM": {"model_type": "qwen2", "qkv_bias": True, **_DEFAULTS},
    "Qwen3ForCausalLM": {"model_type": "qwen3", "qk_norm": True, **_DEFAULTS, "head_dim": 128},
    "MistralForCausalLM": {
        "model_type": "mistral",
        **_DEFAULTS,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
}
# Settings that would change the computation, and the only value that we compute.
_REQUIRED_VALUES: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
_LLAMA3_KEYS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


def read_config(folder: str | Path) -> LlamaConfig:
    """The configuration of a checkpoint folder; end tokens of `generation_config.json` come first.

    Raises ValueError where the file is missing, is not JSON, lacks a size, or asks for something
    that the model does not implement.
    """
    path = Path(folder) / "config.json"
    raw = read_json(path)
    try:
        config = parse_config(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    generation_path = path.with_name("generation_config.json")
    if not generation_path.is_file():
        return config
    ends = _id_list(read_json(generation_path).get("eos_token_id"))
    both = tuple(dict.fromkeys((*ends, *config.eos_token_ids)))
    return replace(config, eos_token_ids=both)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ValueError naming the file if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; a checkpoint folder must have one") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def parse_config(raw: dict[str, Any]) -> LlamaConfig:
    """The contents of a config.json as a LlamaConfig; ValueError on what is not implemented."""
    architecture = _architecture(raw)
    family = FAMILIES[architecture]
    _check_supported(raw)
    values = {**family, **{k: v for k, v in raw.items() if v is not None}}
    heads = _size(values, "num_attention_heads")
    theta, scaling = _rope(raw)
    return LlamaConfig(
        architecture=architecture,
        vocab_size=_size(values, "vocab_size"),
        hidden_size=_size(values, "hidden_size"),
        intermediate_size=_size(values, "intermediate_size"),
        num_hidden_layers=_size(values, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=values.get("num_key_value_heads", heads),
        head_dim=values.get("head_dim", _size(values, "hidden_size") // heads),
        max_position_embeddings=_size(values, "max_position_embeddings"),
        rms_norm_eps=float(values["rms_norm_eps"]),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
        qkv_bias=family.get("qkv_bias", False),
        qk_norm=family.get("qk_norm", False),
        sliding_window=_window(architecture, raw),
        initializer_range=float(values.get("initializer_range", 0.02)),
        bos_token_id=values.get("bos_token_id"),
        eos_token_ids=_id_list(raw.get("eos_token_id")),
        pad_token_id=values.get("pad_token_id"),
    )


def config_to_json(config: LlamaConfig, *, dtype: torch.dtype) -> dict[str, Any]:
    """A config.json that transformers 4 and 5, and engines that read either, understand."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {"rope_type": "llama3", **asdict(config.rope_scaling)}
    name = str(dtype).removeprefix("torch.")
    family = FAMILIES[config.architecture]["model_type"]
    ends = list(config.eos_token_ids)
    raw: dict[str, Any] = {
        "architectures": [config.architecture],
        "model_type": family,
        **{k: v for k, v in asdict(config).items() if k in _SAME_NAME},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling else None,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
        "dtype": name,
        "torch_dtype": name,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "use_cache": True,
    }
    if family != "mistral":
        raw |= {"attention_bias": False} if family != "qwen2" else {}
        raw |= {"mlp_bias": False} if family == "llama" else {"use_sliding_window": False}
    else:
        raw["sliding_window"] = config.sliding_window
    return raw


_SAME_NAME = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
    "bos_token_id",
    "pad_token_id",
}


def _architecture(raw: dict[str, Any]) -> str:
    by_type = {family["model_type"]: name for name, family in FAMILIES.items()}
    kind = raw.get("model_type")
    names = raw.get("architectures") or [by_type.get(str(kind))]
    if names[0] in FAMILIES:
        return str(names[0])
    found = names[0] or f"of model_type {kind!r}"
    raise ValueError(f"architecture {found} is not supported; one of {', '.join(FAMILIES)}")


def _check_supported(raw: dict[str, Any]) -> None:
    for key, wanted in _REQUIRED_VALUES.items():
        value = raw.get(key)
        if value is not None and value != wanted:
            raise ValueError(f"{key} = {value!r} is not implemented; only {wanted!r} is")
    for kind in raw.get("layer_types") or ():
        if kind != "full_attention":
            raise ValueError(f"layer_types has {kind!r}; only 'full_attention' is implemented")


def _size(values: dict[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key} = {value!r}: a model needs a positive whole number")
    return value


def _rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    spec = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    theta = spec.get("rope_theta", raw.get("rope_theta", 10_000.0))
    kind = spec.get("rope_type", spec.get("type", "default"))
    if not isinstance(theta, int | float):
        raise ValueError(f"rope_theta = {theta!r}: expected a number")
    if spec.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("rope_parameters.partial_rotary_factor: only 1.0 is implemented")
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise ValueError(f"rope_type = {kind!r} is not implemented; only 'default' and 'llama3'")
    missing = [key for key in _LLAMA3_KEYS if key not in spec]
    if missing:
        raise ValueError(f"rope_parameters: llama3 needs {', '.join(missing)}")
    return float(theta), RopeScaling(**{key: spec[key] for key in _LLAMA3_KEYS})


def _window(architecture: str, raw: dict[str, Any]) -> int | None:
    if architecture != "MistralForCausalLM":
        return None  # Qwen's files carry a window that use_sliding_window = false switches off
    return raw.get("sliding_window", FAMILIES[architecture]["sliding_window"])


def _id_list(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
