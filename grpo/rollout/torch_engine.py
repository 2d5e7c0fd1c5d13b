"""The engine that samples in process, from the policy's own weights, on any device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .decoding import Completion, Decoding
from .engine import Group, Prompt, Rollout, Sampling
from .fast_linear import fast_linears

# Tokens that reasoning and answers are found by: text keeps them, special or not.
_VISIBLE_TOKENS = ("<think>", "</think>", "<answer>", "</answer>")


class TorchEngine:
    """Samples from `model` as it is at the time of the call, up to `max_batch_size` rows at once.

    `model` is ours or wrapped by PEFT. With `bf16` it computes as the policy does in training under
    autocast (attention and norms in float32), its weights rounded once per call.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        eos_token_ids: Sequence[int],
        max_batch_size: int = 256,
        bf16: bool = False,
    ) -> None:
        if max_batch_size < 1:
            raise ValueError(f"rollout.max_batch_size = {max_batch_size}: must be at least 1")
        self.model = model
        self.tokenizer = tokenizer
        self.eos_token_ids = list(eos_token_ids)
        self.max_batch_size = max_batch_size
        self.bf16 = bf16
        self.version = 0
        self._hidden_ids = _special_ids(tokenizer) | set(self.eos_token_ids)

    def sync(self, policy: Any, *, version: int) -> None:
        """Sample from `policy` (a module, or an object with one as `.model`) from now on."""
        self.model = policy if isinstance(policy, nn.Module) else policy.model
        self.version = version

    def close(self) -> None:
        """Nothing to release: the weights are the policy's."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        """One group per prompt, in order, each with `sampling.num_generations` rollouts.

        Raises ValueError for a prompt that is empty or fills the context and for settings out of
        range, FloatingPointError where the weights give no distribution (NaN, inf).
        """
        model = plain_model(self.model)
        check_request(prompts, sampling, context=model.config.max_position_embeddings)
        with _sampling_mode(model, bf16=self.bf16):
            decoding = Decoding(
                model,
                prompts,
                sampling,
                eos_token_ids=self.eos_token_ids,
                max_batch_size=self.max_batch_size,
                bf16=self.bf16,
                text_of=self.text_of,
            )
            completions = decoding.run()
        return self._groups(prompts, completions, sampling.stop)

    def text_of(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Decoded text without end-of-sequence, padding and other special tokens; tags stay."""
        if not sequences:  # tokenizers read an empty list as one empty text
            return []
        shown = [[t for t in ids if t not in self._hidden_ids] for ids in sequences]
        return self.tokenizer.batch_decode(
            shown, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _groups(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], stop: Sequence[str]
    ) -> list[Group]:
        groups = [Group(prompt, []) for prompt in prompts]
        completions = sorted(completions, key=lambda c: (c.prompt, c.number))
        texts = self.text_of([c.token_ids for c in completions])
        for completion, text in zip(completions, texts, strict=True):
            cut = min((at for s in stop if (at := text.find(s)) >= 0), default=None)
            ended = cut is not None or completion.token_ids[-1] in self.eos_token_ids
            rollout = Rollout(
                token_ids=completion.token_ids,
                logprobs=completion.logprobs,
                finish_reason="stop" if ended else "length",
                text=text[:cut],
                policy_version=self.version,
            )
            groups[completion.prompt].rollouts.append(rollout)
        return groups


def plain_model(model: nn.Module) -> Any:
    """The model below DDP and PEFT wrappers; an adapter's layers stay in it."""
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def check_request(prompts: Sequence[Prompt], sampling: Sampling, *, context: int) -> None:
    """Raise ValueError for what cannot be sampled: field, value, remedy."""
    bounds = {
        "num_generations": (sampling.num_generations >= 1, "at least 1"),
        "max_completion_length": (sampling.max_completion_length >= 1, "at least 1"),
        "temperature": (sampling.temperature >= 0, "0 (greedy) or more"),
        "top_p": (0 < sampling.top_p <= 1, "in (0, 1]"),
        "top_k": (sampling.top_k >= 0, "0 (off) or more"),
        "min_p": (0 <= sampling.min_p <= 1, "in [0, 1]"),
        "stop": (all(sampling.stop), "strings that are not empty"),
    }
    for name, (holds, wanted) in bounds.items():
        if not holds:
            raise ValueError(f"{name} = {getattr(sampling, name)!r}: must be {wanted}")
    for prompt in prompts:
        if not 0 < len(prompt.token_ids) < context:
            raise ValueError(
                f"prompt {prompt.index} has {len(prompt.token_ids)} tokens: the model's context of "
                f"{context} needs 1 to {context - 1}; drop it with data.max_prompt_length"
            )


def _special_ids(tokenizer: Any) -> set[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = added | set(tokenizer.all_special_ids)
    return {i for i in ids if tokenizer.convert_ids_to_tokens(i) not in _VISIBLE_TOKENS}


@contextlib.contextmanager
def _sampling_mode(model: nn.Module, *, bf16: bool) -> Iterator[None]:
    """Evaluation mode, prepared linear layers and, with `bf16`, autocast."""
    training = [module for module in model.modules() if module.training]
    device_type = next(model.parameters()).device.type
    with contextlib.ExitStack() as stack:
        model.eval()
        stack.callback(lambda: [setattr(module, "training", True) for module in training])
        stack.enter_context(fast_linears(model, bf16=bf16))
        if bf16:  # for what is no linear layer
            stack.enter_context(torch.autocast(device_type, torch.bfloat16))
        stack.enter_context(torch.inference_mode())
        yield
