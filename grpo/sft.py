"""Supervised fine-tuning on completions: the prompt is read, the completion is learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .batch import MicroBatch, Sample
from .config import SFTConfig
from .data import PromptOrder
from .objectives import Mean, Metrics
from .stage import Stage
from .terminal import RunDisplay
from .tracking import RunFolder


class SFTTrainer(Stage):
    """Minimises the mean negative log-likelihood of completion tokens over each optimizer step.

    `rows` are (prompt token ids, completion token ids) pairs; the completion ends with the
    end-of-sequence token where the model is to learn to stop. Raises ValueError without rows.
    """

    name = "sft"

    def __init__(
        self,
        model: nn.Module,
        config: SFTConfig,
        rows: Sequence[tuple[list[int], list[int]]],
        tokenizer: Any,
        *,
        folder: RunFolder,
        display: RunDisplay | None = None,
    ) -> None:
        if not rows:
            raise ValueError("sft.train: no row to train on")
        super().__init__(model, config, tokenizer=tokenizer, folder=folder, display=display)
        self.config: SFTConfig = config
        self.rows = rows
        self.order = PromptOrder(len(rows), seed=self.seed, shuffle=True)

    def train_step(self) -> dict[str, float]:
        """One optimizer step on the next `batch_size` rows."""
        samples = [
            Sample(*self.rows[row], group=i)
            for i, row in enumerate(self.order.take(self.config.batch_size))
        ]
        tokens = sum(len(s.prompt_ids) + len(s.token_ids) for s in samples)
        trained = sum(s.num_trained for s in samples)

        def loss_of(batch: MicroBatch) -> tuple[Tensor, Metrics]:
            logprobs_BT, entropy_BT = self.policy.token_logprobs(batch)
            loss = -(logprobs_BT * batch.mask_BT).sum() / trained
            count = batch.mask_BT.sum()
            entropy = (entropy_BT.detach() * batch.mask_BT).sum()
            return loss, {"entropy": Mean(entropy, count)}

        with self.timed("train"):
            metrics = self.optimize(samples, loss_of)
        lengths = torch.tensor([len(s.token_ids) for s in samples], dtype=torch.float32)
        return {
            **metrics,
            "completions/mean_length": float(lengths.mean()),
            "step_tokens": float(tokens),
        }

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where the order of rows stands."""
        return {"position": self.order.position}, {}

    def load_state(self, counters: dict[str, Any], folder: Path) -> None:
        """Put back what `state` returned."""
        self.order.position = counters["position"]
