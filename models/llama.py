"""The dense decoder of LLaMA 3 (arXiv 2407.21783), and what Qwen2, Qwen3 and Mistral change in it.

Read it top to bottom: configuration, rotary positions, norm, attention, feed-forward, block, model.
Parameters carry Hugging Face's names, so a checkpoint is read and written without renaming.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.attention import attention
from ..kernels.masks import Mask, sliding_window

AttentionMask = Mask | Tensor | Literal["causal"]


@dataclass(frozen=True)
class RopeScaling:
    """LLaMA 3.1's stretching of the slow rotary frequencies to a longer context."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and options; names are those of a Hugging Face `config.json`.

    `qkv_bias` is Qwen2, `qk_norm` is Qwen3, `sliding_window` is Mistral. The token ids are what the
    checkpoint declares (a model may have several end tokens); the model itself does not read them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    initializer_range: float = 0.02
    architecture: str = "LlamaForCausalLM"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads = {self.num_key_value_heads}: must divide "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim}: must be even for rotary positions")
        own = {"qkv_bias": "Qwen2", "qk_norm": "Qwen3", "sliding_window": "Mistral"}
        for option, family in own.items():
            value = getattr(self, option)
            if value and self.architecture != f"{family}ForCausalLM":
                raise ValueError(
                    f"{option} = {value}: a checkpoint of {self.architecture} cannot say so; "
                    f"set architecture to {family}ForCausalLM"
                )


class KVCache(Protocol):
    """Keys and values of earlier tokens; attends for the layer and stores what it is given."""

    def attend(self, layer: int, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> Tensor:
        """Store k and v, and return attention of q over all that each row may see: out_BTHD."""
        ...


def rotary_frequencies(config: LlamaConfig) -> Tensor:
    """Radians per position of each pair of dimensions, float32 [head_dim / 2].

    With `rope_scaling`, wavelengths over original / low_freq_factor are stretched by `factor`,
    those under original / high_freq_factor kept, and those between interpolated.
    """
    exponent = torch.arange(0, config.head_dim, 2, device="cpu").float() / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    turns = scaling.original_max_position_embeddings / (2 * math.pi / frequency)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - keep) * frequency / scaling.factor + keep * frequency


def rotary_tables(positions_BT: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Rotary:
    """cos and signed sin of every position, [B, T, 1, head_dim]; angles are float32."""
    angle = positions_BT[..., None, None].float() * frequencies
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


Rotary = tuple[Tensor, Tensor]


def rotate(x_BTHD: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864) in the half-split layout of Hugging Face.

    Pair i is dimensions (i, i + head_dim / 2); with the sign in `sin`, swapping halves is a roll.
    Products are rounded before the sum, as there: in bfloat16 the results are the same bits.
    """
    cos, sin = rotary
    return x_BTHD * cos + x_BTHD.roll(x_BTHD.shape[-1] // 2, -1) * sin


class RMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467): float32 inside, rounded to x's dtype before the
    weight, as in Hugging Face; in bfloat16 the order matters."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.size = (size,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype == torch.float32:
            return F.rms_norm(x, self.size, self.weight, self.eps)
        normed = F.rms_norm(x.float(), self.size, None, self.eps)
        return self.weight * normed.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245)."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.kernels = "auto"  # see Llama.use_kernels
        width = config.hidden_size
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, q_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, kv_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, kv_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q_width, width, bias=False)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, mask: AttentionMask, cache: KVCache | None
    ) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHD = self.q_proj(x_BTD).view(heads)
        k_BTKD = self.k_proj(x_BTD).view(heads)
        v_BTKD = self.v_proj(x_BTD).view(heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        q_BTHD = rotate(q_BTHD, rotary).to(v_BTKD.dtype)
        k_BTKD = rotate(k_BTKD, rotary).to(v_BTKD.dtype)
        if cache is None:
            out_BTHD = attention(q_BTHD, k_BTKD, v_BTKD, mask=mask, backend=self.kernels)
        else:
            out_BTHD = cache.attend(self.layer, q_BTHD, k_BTKD, v_BTKD)
        return self.o_proj(out_BTHD.flatten(2))


class MLP(nn.Module):
    """SwiGLU feed-forward (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, mask: AttentionMask, cache: KVCache | None
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, mask, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.frequencies = rotary_frequencies(config)  # not a buffer: .to(bfloat16) must not round

    def forward(
        self,
        input_ids_BT: Tensor,
        positions_BT: Tensor,
        mask: AttentionMask,
        cache: KVCache | None,
        recompute: bool,
    ) -> Tensor:
        x_BTD = self.embed_tokens(input_ids_BT)
        if self.frequencies.device != positions_BT.device:
            self.frequencies = self.frequencies.to(positions_BT.device)
        rotary = rotary_tables(positions_BT, self.frequencies, x_BTD.dtype)
        for block in self.layers:
            if recompute:
                x_BTD = checkpoint(block, x_BTD, rotary, mask, cache, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, rotary, mask, cache)
        return self.norm(x_BTD)


class Llama(nn.Module):
    """Decoder and language-model head.

    A tied head is no module of its own: `head_weight` is the embedding, so nothing can untie it.
    `gradient_checkpointing` recomputes each block in the backward.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.kernels = "auto"
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw matrices from N(0, initializer_range^2), set biases to 0 and norms to 1."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)

    def use_kernels(self, name: str) -> None:
        """Choose the attention kernels by name: "auto", "triton" or "torch"."""
        self.kernels = name
        for module in self.modules():
            if isinstance(module, Attention):
                module.kernels = name

    @property
    def head_weight(self) -> Tensor:
        """weight_VD of the language-model head, tied or not."""
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> logits [..., V], in float32 or wider."""
        logits = F.linear(hidden, self.head_weight)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(
        self,
        input_ids_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        mask: AttentionMask = "causal",
        cache: KVCache | None = None,
    ) -> Tensor:
        """hidden_BTD after the final norm.

        `positions_BT` defaults to 0..T-1 and broadcasts over rows. `mask` is what
        `kernels.attention` takes; "causal" includes the model's sliding window, an explicit mask is
        taken as it is. With a cache the mask is the cache's affair. Packed documents: one row,
        positions that restart, and `masks.packed_causal` or `masks.shared_prefix`.
        """
        T = input_ids_BT.shape[1]
        if positions_BT is None:
            positions_BT = torch.arange(T, device=input_ids_BT.device)[None]
        window = self.config.sliding_window
        if isinstance(mask, str) and window is not None and cache is None and window < T:
            mask = sliding_window(T, window)
        if isinstance(mask, Mask):
            mask = mask.to(input_ids_BT.device)  # once, not per layer: the copy loses its plan
        recompute = self.gradient_checkpointing and cache is None and torch.is_grad_enabled()
        return self.model(input_ids_BT, positions_BT, mask, cache, recompute)

    def num_parameters(self, *, trainable_only: bool = False) -> int:
        """Number of weights; a tied head counts once."""
        weights: Any = self.parameters()
        return sum(p.numel() for p in weights if p.requires_grad or not trainable_only)
