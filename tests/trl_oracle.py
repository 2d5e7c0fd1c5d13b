"""TRL's own loss as an oracle: plain tensors in, loss and metrics out, no model and no launcher.

`GRPOTrainer._compute_loss` (and those of GMPO and RLOO) read a handful of attributes; a bare
instance with just these, and with the model's log-probs stubbed by a tensor, runs them unchanged.
Written against TRL 1.16.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer
from trl.rewards.other_rewards import get_soft_overlong_punishment as get_soft_overlong_punishment
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer


class OneProcess:
    """The part of accelerate's Accelerator that the losses and their metrics call."""

    num_processes, process_index, sync_gradients = 1, 0, True
    device = torch.device("cpu")

    def gather(self, x: Tensor) -> Tensor:
        return x.reshape(-1) if x.dim() == 0 else x

    def reduce(self, x: Tensor, reduction: str = "sum") -> Tensor:
        return x

    def pad_across_processes(self, x: Tensor, dim: int = 0, pad_index: float = 0) -> Tensor:
        return x


ARGS = {
    "delta": None,
    "use_bias_correction_kl": False,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "steps_per_generation": 1,
}


def bare_trainer(loss_type: str, width: int, settings: dict[str, Any]) -> Any:
    """A trainer with the attributes of the losses alone; takes what it knows out of `settings`."""
    trainers = {"gmpo": GMPOTrainer, "rloo": RLOOTrainer}
    trainer: Any = object.__new__(trainers.get(loss_type, GRPOTrainer))
    trainer.args = SimpleNamespace(**{k: settings.pop(k, v) for k, v in ARGS.items()})
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator = OneProcess()
    trainer._metrics = {"train": defaultdict(list)}
    trainer.loss_type = loss_type
    trainer.beta = settings.pop("beta", 0.0)
    trainer.epsilon_low = settings.pop("epsilon", 0.2)
    trainer.epsilon_high = settings.pop("epsilon_high", trainer.epsilon_low)
    trainer.importance_sampling_level = settings.pop("importance_sampling_level", "token")
    trainer.top_entropy_quantile = settings.pop("top_entropy_quantile", 1.0)
    trainer.off_policy_mask_threshold = settings.pop("off_policy_mask_threshold", None)
    trainer.entropy_coef = settings.pop("entropy_coef", 0.0)
    trainer._entropy_bonus_enabled = trainer.entropy_coef != 0
    trainer.use_adaptive_entropy = trainer.aux_loss_enabled = False
    trainer.current_gradient_accumulation_steps = 1
    trainer.max_completion_length = settings.pop("max_completion_length", width)
    return trainer


def trl_loss(
    logprobs: Tensor,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: str,
    ref: Tensor | None = None,
    sampled: Tensor | None = None,
    weight: Tensor | None = None,
    entropy: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of one batch that is a whole optimizer step.

    `loss_type`: TRL's, or "gmpo" or "rloo". `weight`: the importance ratio of the sampler, already
    bounded or masked, as TRL computes it before the loss. `settings`: TRL's names.
    """
    trainer = bare_trainer(loss_type, mask.shape[1], settings)
    assert not settings, f"unknown to the oracle: {settings}"
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = weight is not None
    entropy = torch.zeros_like(mask) if entropy is None else entropy
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, entropy, None)
    B, T = mask.shape
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
        "old_per_token_logps": old,
        "old_logps": (old * mask).sum(1),
        "ref_per_token_logps": ref,
    }
    inputs |= {} if sampled is None else {"sampling_per_token_logps": sampled}
    inputs |= {} if weight is None else {"importance_sampling_ratio": weight}
    default = torch.get_default_dtype()
    torch.set_default_dtype(logprobs.dtype)  # else TRL rounds SAPO's temperatures to float32
    try:
        loss = trainer._compute_loss(None, inputs)
    finally:
        torch.set_default_dtype(default)
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


def tiny_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A LLaMA of 16 tokens and its tokenizer; t1 ends a text, t2 pads it."""
    torch.manual_seed(0)
    vocabulary = {f"t{i}": i for i in range(16)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="t0"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="t1", pad_token="t2", unk_token="t0"
    )
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config), tokenizer


def tiny_trainer(folder: str, *, num_generations: int, num_rewards: int = 2) -> Any:
    """A real GRPOTrainer on a tiny LLaMA that scores what it is told to have sampled.

    `trainer.score(rewards, completions, sampled)` runs its own path from rewards to advantages and
    importance ratios: rewards [rows, num_rewards] (None or NaN: unscored), completions as token
    ids, `sampled` the log-probs the sampler reports.
    """
    model, tokenizer = tiny_model()

    def read_column(name: str) -> Any:
        def reward(completions: list[Any], **columns: Any) -> list[float | None]:
            return columns[name]

        reward.__name__ = name
        return reward

    names = [f"reward_{i}" for i in range(num_rewards)]
    trainer: Any = GRPOTrainer(
        model,
        [read_column(name) for name in names],
        args=GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to=[],
            num_generations=num_generations,
            per_device_train_batch_size=num_generations,
            # a cycle of several steps, so that the log-probs before the first are returned
            steps_per_generation=2,
            scale_rewards="group",
            reward_weights=[1.0] * num_rewards,
        ),
        train_dataset=Dataset.from_list([{"prompt": "t3"}] * num_generations),
        processing_class=tokenizer,
    )

    def score(
        rewards: list[list[float | None]], completions: list[list[int]], sampled: Any = None
    ) -> dict[str, Any]:
        texts = ["t3"] * len(completions)
        trainer._generate = lambda prompts: (
            *([[3]] * len(prompts), completions, None, texts, sampled, {}, None, None),
        )
        rows = [{"prompt": "t3", **dict(zip(names, row, strict=True))} for row in rewards]
        return trainer._generate_and_score_completions(rows)

    trainer.score = score
    return trainer
