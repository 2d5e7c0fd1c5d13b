"""What every rollout engine takes, returns and promises; and the factory that picks one by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from ..config import RolloutConfig


@dataclass(frozen=True)
class Prompt:
    """One dataset row, ready to be sampled from.

    `index` is the row's position in its dataset: it seeds the sampling noise, so it must be the
    same for the same row whatever batch, process or resume it arrives in.
    """

    index: int
    token_ids: list[int]
    text: str
    messages: list[dict[str, str]] | None = None  # set when the row is conversational
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. `top_k = 0`, `top_p = 1`, `min_p = 0` switch a filter off.

    The noise of a completion comes from (seed, prompt index, number in its group): the same three
    draw the same completion again.
    """

    num_generations: int
    max_completion_length: int
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class Rollout:
    """One sampled completion.

    `token_ids` is all that was sampled and ends with the end-of-sequence token, or with the token
    that completed a stop string, when `finish_reason` is "stop". `text` leaves end-of-sequence and
    padding out, keeps `<think>` tags, and ends before the stop string. `logprobs` are natural logs
    of the probability of each token under the distribution that was sampled (after temperature and
    filters; under greedy decoding, that of temperature 1). `trace` holds what a policy needs to
    replay the sampling: patch boundaries, expert routes, unmasking order.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str  # "stop" | "length"
    text: str
    policy_version: int = 0
    trace: dict[str, Any] = field(default_factory=dict)


@dataclass
class Group:
    """A prompt and its completions."""

    prompt: Prompt
    rollouts: list[Rollout]


class RolloutEngine(Protocol):
    """Samples completions. Engines are synchronous; one call serves one batch of prompts."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        """One group per prompt, in order, each with `sampling.num_generations` rollouts."""
        ...

    def sync(self, policy: Any, *, version: int) -> None:
        """Make the engine sample from `policy` as it is now."""
        ...

    def close(self) -> None: ...


def make_engine(
    config: RolloutConfig,
    model: nn.Module,
    tokenizer: Any,
    *,
    eos_token_ids: Sequence[int],
    bf16: bool = False,
) -> RolloutEngine:
    """The engine that `config.engine` names; `bf16` samples as the policy trains under autocast.

    Raises ValueError for a name that no engine has.
    """
    if config.engine != "torch":
        raise ValueError(f"rollout.engine = {config.engine!r}: unknown; use torch")
    from .torch_engine import TorchEngine  # it imports the protocol from here

    return TorchEngine(
        model,
        tokenizer,
        eos_token_ids=eos_token_ids,
        max_batch_size=config.max_batch_size,
        bf16=bf16,
    )
