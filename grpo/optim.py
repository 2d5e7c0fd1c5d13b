"""Optimizers by name, and the learning rate as a function of the step alone."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .config import OptimConfig


def make_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """AdamW in the variant that `config.optim` names.

    Raises ValueError when nothing trains, or when the variant's library is not installed.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ValueError("model: no parameter trains; unfreeze some or add LoRA")
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }
    kind = optimizer_class(config.optim)
    if config.optim == "adamw":
        return kind(trained, fused=True, **settings)
    if config.optim == "adamw_cpu_offload":
        return kind(trained, torch.optim.AdamW, **settings)
    return kind(trained, **settings)


def optimizer_class(optim: str) -> Any:
    """The class that `optim` names; ValueError when its library is not installed."""
    module, name = {
        "adamw": ("torch.optim", "AdamW"),
        "adamw_8bit": ("bitsandbytes.optim", "AdamW8bit"),
        "adamw_paged": ("bitsandbytes.optim", "PagedAdamW"),
        "adamw_cpu_offload": ("torchao.optim", "CPUOffloadOptimizer"),
    }[optim]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        package = module.split(".")[0]
        raise ValueError(
            f"optim = {optim!r}: needs the package {package}; pip install {package}, or use adamw"
        ) from None


def learning_rate(config: OptimConfig, step: int) -> float:
    """The rate of optimizer step `step`, counted from 0: warm-up, then the schedule.

    linear and cosine fall to a tenth of the peak at the last step.
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.lr_scheduler_type == "constant":
        return peak
    done = (step - config.warmup_steps) / max(config.max_steps - config.warmup_steps - 1, 1)
    linear = config.lr_scheduler_type == "linear"
    falling = 1 - done if linear else (1 + math.cos(math.pi * done)) / 2
    return peak * (0.1 + 0.9 * max(falling, 0.0))
