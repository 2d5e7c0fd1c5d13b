"""Small random models of transformers, one per family and option, and ours with their weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from thinkrl.models.hf_config import parse_config
from thinkrl.models.llama import Llama
from torch import Tensor
from transformers import PreTrainedModel

VOCAB = 64
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# The original length is short, so that test sequences reach the stretched frequencies.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE, "head_dim": 16, "rms_norm_eps": 1e-5}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 4, "num_key_value_heads": 1}),
}


def reference(case: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model of transformers whose every parameter is random: fresh ones have biases of 0."""
    family, options = CASES[case]
    config = getattr(transformers, f"{family}Config")(**{**_SIZES, **options, **overrides})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre, spread = (1.0, 0.3) if "norm" in name else (0.0, 0.15)
            parameter.normal_(centre, spread, generator=generator)
    return model


def ours(model: PreTrainedModel) -> Llama:
    """Our model with the same configuration and weights."""
    config = parse_config({**model.config.to_dict(), "architectures": [type(model).__name__]})
    copy = Llama(config)
    state = model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    copy.load_state_dict(state)
    return copy.eval()


def tokens(*shape: int, seed: int = 0) -> Tensor:
    """Random token ids."""
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))
