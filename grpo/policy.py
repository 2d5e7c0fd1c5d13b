"""The policy: log-probs of completions under a model that trains, and under its reference."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..kernels.linear_logprob import filtered_logprob, linear_logprob
from ..models.adapters import adapters_off, base_model, has_lora
from .batch import Layout, MicroBatch
from .config import GRPOConfig, OptimConfig


class Policy(Protocol):
    """What the trainer sees of a model family."""

    def token_logprobs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """logprobs_BT and entropy_BT (nats) of the completions, 0 on padding; differentiable."""
        ...


class TokenLogprobs(nn.Module):
    """A causal model with its head, from packed tokens to a log-prob per completion token.

    One module, so that whatever wraps it (DDP, FSDP) sees every parameter used in one forward.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.filters = {"top_p": top_p, "top_k": top_k, "min_p": min_p}
        self.filtered = top_p < 1.0 or top_k > 0 or min_p > 0.0
        self.bf16 = bf16

    def forward(
        self, input_ids_RL: Tensor, positions_RL: Tensor, mask: Any, at_N: Tensor, target_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """logprobs_N, entropy_N of the distribution that is sampled: temperature and filters."""
        with torch.autocast(input_ids_RL.device.type, torch.bfloat16, enabled=self.bf16):
            hidden_RLD = self.model(input_ids_RL, positions_BT=positions_RL, mask=mask)
            # embedding: its backward adds up repeated positions deterministically.
            hidden_ND = nn.functional.embedding(at_N, hidden_RLD.flatten(0, 1))
            base = base_model(self.model)
            weight_VD = base.head_weight
            if not self.filtered:
                return linear_logprob(
                    hidden_ND,
                    weight_VD,
                    target_N,
                    temperature=self.temperature,
                    backend=base.kernels,
                )
            logits_NV = hidden_ND @ weight_VD.T
        return filtered_logprob(logits_NV, target_N, temperature=self.temperature, **self.filters)


class CausalPolicy:
    """An autoregressive model under training, wrapped for its processes, and its reference."""

    def __init__(self, model: nn.Module, config: OptimConfig, accelerator: Accelerator) -> None:
        self.model = model
        self.layout: Layout = _layout(model, config)
        self.model_config = base_model(model).config
        self.window: int | None = self.model_config.sliding_window
        module = TokenLogprobs(model, **_sampling(config), bf16=config.bf16)
        self.module: nn.Module = accelerator.prepare_model(module)
        self.reference: nn.Module | None = None

    def token_logprobs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """logprobs_BT and entropy_BT (nats) of the completions, 0 on padding; differentiable."""
        return _token_logprobs(self.module, batch)

    def keep_reference(self) -> None:
        """Freeze a copy of the policy as it is now; under LoRA the base model serves as one."""
        if has_lora(self.model):
            return
        module = self._plain_module()
        if self.reference is None:
            self.reference = copy.deepcopy(module).requires_grad_(False).eval()
        else:
            self.reference.load_state_dict(module.state_dict())

    @torch.no_grad()
    def reference_logprobs(self, batch: MicroBatch) -> Tensor:
        """logprobs_BT under the reference."""
        if self.reference is not None:
            return _token_logprobs(self.reference, batch)[0]
        with adapters_off(self.model):
            return _token_logprobs(self._plain_module(), batch)[0]

    def _plain_module(self) -> nn.Module:
        return self.module.module if hasattr(self.module, "module") else self.module  # type: ignore[return-value]


def _token_logprobs(module: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    logprobs_N, entropy_N = module(
        batch.input_ids_RL, batch.positions_RL, batch.mask, batch.at_N, batch.target_N
    )
    return batch.scatter(logprobs_N), batch.scatter(entropy_N)


def _layout(model: nn.Module, config: OptimConfig) -> Layout:
    if not config.packing:
        return "padded"
    windowed = base_model(model).config.sliding_window is not None
    return "shared_prefix" if getattr(config, "shared_prefix", False) and not windowed else "packed"


def _sampling(config: OptimConfig) -> dict[str, Any]:
    """The part of the sampling that shapes the distribution; none for supervised training."""
    if not isinstance(config, GRPOConfig):
        return {}
    return {name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "min_p")}
