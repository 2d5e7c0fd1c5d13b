"""What every rollout engine takes, returns and promises; and the factory that picks one by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


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
    """How completions are drawn. `top_k = 0`, `top_p = 1`, `min_p = 0` switch a filter off."""

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

    `token_ids` ends with the end-of-sequence token when `finish_reason` is "stop" by that token.
    `logprobs` are natural logs of the probability of each token under the distribution that was
    sampled (after temperature and filters). `trace` holds what a policy needs to replay the
    sampling: patch boundaries, expert routes, unmasking order.
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
