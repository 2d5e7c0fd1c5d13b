"""A batch's rewards from several functions: weights that follow the step, limits, gates, clips.

The order for each function: call it (with a time limit), clip what it gave, set it to 0 where its
gate fails, multiply by its weight of this step, add up. `Scores.by_name` holds the rewards as they
enter the sum, before the weight.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from .call import Call
from .signature import ONE_ROW, RESERVED, RewardError, RewardFunction, is_async, reward_name

_NOT_PASSED = (*ONE_ROW.values(), *RESERVED)  # names of columns that never reach a function
MAX_LOST_BATCHES = 5  # in a row, before a function that never answers ends the run
_GRACE_S = 5.0  # for an async function to be cancelled in


@dataclass
class Scores:
    """What a batch earned; None = not scored. `total` is None where every function gave None."""

    by_name: dict[str, list[float | None]]
    total: list[float | None]
    extra: dict[str, list[Any]] = field(default_factory=dict)  # log_extra columns
    metrics: dict[str, float] = field(default_factory=dict)  # log_metric, averaged over calls


@dataclass(frozen=True)
class Rule:
    """How one reward enters the sum; the defaults change nothing.

    timeout_s: seconds a call may take (a batch, or a row where the function takes one row). What
        overruns it is unscored and counted in `rewards/<name>/timeouts`, never waited for.
    only_if: the name of another reward; where that is not above 0, this one is 0 (None where that
        is None). The function still sees every row: rewards may compare rows with each other.
    clip: lowest and highest reward.
    schedule: weight from a step on, e.g. {0: 1.0, 100: 0.5}; before the first step listed the
        reward's plain weight holds.
    """

    timeout_s: float | None = None
    only_if: str | None = None
    clip: tuple[float, float] | None = None
    schedule: Mapping[int, float] = field(default_factory=dict)

    def weight_at(self, step: int, weight: float) -> float:
        """The weight of this step, `weight` being the one without a schedule."""
        begun = [start for start in self.schedule if start <= step]
        return self.schedule[max(begun)] if begun else weight

    def apply(self, reward: float | None, gate: float | None) -> float | None:
        """A function's reward as it enters the sum; `gate` counts only where there is one."""
        if self.only_if is not None and (gate is None or gate <= 0):
            return None if gate is None else 0.0
        if self.clip is None or reward is None:
            return reward
        return min(max(reward, self.clip[0]), self.clip[1])


class RewardSuite:
    """Reward functions with weights and rules. Async functions of a batch run concurrently.

    `weights` are those of the step last scored (`trainer_state.global_step`).
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        *,
        rules: Sequence[Rule] | None = None,
    ) -> None:
        if not functions:
            raise ValueError("rewards: at least one reward function is needed")
        for function in functions:
            if not callable(function):
                raise ValueError(f"rewards: {function!r} is not callable")
        weights = [1.0] * len(functions) if weights is None else list(weights)
        rules = [Rule()] * len(functions) if rules is None else list(rules)
        for what, entries in (("weights", weights), ("rules", rules)):
            if len(entries) != len(functions):
                raise ValueError(
                    f"rewards: {len(entries)} {what} for {len(functions)} functions; give one each"
                )
        if not all(math.isfinite(weight) for weight in weights):
            raise ValueError(f"rewards: weights {weights} must be finite numbers")
        self.functions = dict(zip(_unique_names(functions), functions, strict=True))
        self.rules = dict(zip(self.functions, rules, strict=True))
        self._base_weights = dict(zip(self.functions, map(float, weights), strict=True))
        self.weights = self._weights_at(0)
        self._check_gates()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stuck: dict[str, list[threading.Thread]] = {name: [] for name in self.functions}
        self._lost_batches = dict.fromkeys(self.functions, 0)

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        trainer_state: Any = None,
    ) -> Scores:
        """Score a batch of B completions; every argument but the last holds one entry per row.

        Raises RewardError when a function raises, or returns a wrong number of values, a NaN, an
        infinity or something that is not a number; and when one loses 5 batches in a row whole, to
        its timeout or to crashes: nothing would be learned from it.
        """
        batch = {
            "prompts": list(prompts),
            "completions": list(completions),
            "completion_ids": [[] for _ in prompts] if completion_ids is None else completion_ids,
            **{key: value for key, value in (columns or {}).items() if key not in _NOT_PASSED},
        }
        for key, values in batch.items():
            if len(values) != len(batch["prompts"]):
                raise ValueError(
                    f"{key} has {len(values)} entries for {len(batch['prompts'])} prompts"
                )
        self.weights = self._weights_at(getattr(trainer_state, "global_step", None) or 0)
        calls = [
            Call(
                *(name, function, batch, trainer_state),
                timeout_s=self.rules[name].timeout_s,
                stuck=self._stuck[name],
            )
            for name, function in self.functions.items()
        ]
        self._run(calls)
        for call in calls:
            self._count_lost(call)
        return self._collect(calls)

    def close(self) -> None:
        """Stop the thread that async functions run on."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _weights_at(self, step: int) -> dict[str, float]:
        return {
            name: self.rules[name].weight_at(step, weight)
            for name, weight in self._base_weights.items()
        }

    def _check_gates(self) -> None:
        for name, rule in self.rules.items():
            gate = rule.only_if
            if gate is None:
                continue
            if gate not in self.functions or gate == name:
                others = [other for other in self.functions if other != name]
                raise ValueError(
                    f"reward {name!r}: only_if = {gate!r} is no other reward of this run; "
                    f"{'choose ' + ', '.join(others) if others else 'there is no other'}"
                )
            if self.rules[gate].only_if is not None:
                raise ValueError(
                    f"reward {name!r}: only_if = {gate!r} has a gate itself; name that one: "
                    f"{self.rules[gate].only_if}"
                )

    # -- running

    def _run(self, calls: Sequence[Call]) -> None:
        """The plain functions run here, one after another, while the async ones wait elsewhere."""
        waiting = [call for call in calls if is_async(call.function)]
        futures = [self._submit(call.gather()) for call in waiting]
        try:
            for call in calls:
                if call not in waiting:
                    call.run()
            for call, future in zip(waiting, futures, strict=True):
                call.finish(self._result(call, future))
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run on a loop of our own, kept between batches: clients that functions cache stay usable,
        and it works when the caller is itself inside a running loop."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _result(self, call: Call, future: Future[Any]) -> Any:
        """What the async call gave; an error where it blocks the loop that should cancel it."""
        if call.timeout_s is None:
            return future.result()
        try:
            return future.result(call.timeout_s + _GRACE_S)
        except TimeoutError:
            self._loop = None  # its thread is stuck; it ends with the process
            raise RewardError(
                f"reward {call.name!r} overran timeout_s = {call.timeout_s:g} and cannot be "
                "cancelled: it blocks where it should await; make it a plain function with "
                "in_worker: true"
            ) from None

    def _count_lost(self, call: Call) -> None:
        whole = bool(call.pieces) and all(piece.lost for piece in call.pieces)
        self._lost_batches[call.name] = self._lost_batches[call.name] + 1 if whole else 0
        if self._lost_batches[call.name] >= MAX_LOST_BATCHES:
            raise RewardError(
                f"reward {call.name!r} scored nothing in {MAX_LOST_BATCHES} batches in a row: each "
                f"overran timeout_s = {call.timeout_s} or crashed; raise timeout_s, or mend it"
            )

    # -- adding up

    def _collect(self, calls: Sequence[Call]) -> Scores:
        given = {call.name: call.rewards for call in calls}
        by_name = {}
        for name, rewards in given.items():
            rule = self.rules[name]
            gates = given[rule.only_if] if rule.only_if is not None else [None] * len(rewards)
            by_name[name] = list(map(rule.apply, rewards, gates))
        total: list[float | None] = []
        for row in zip(*by_name.values(), strict=True):
            parts = [
                weight * reward
                for weight, reward in zip(self.weights.values(), row, strict=True)
                if reward is not None
            ]
            total.append(sum(parts) if parts else None)
        extra = {key: values for call in calls for key, values in call.extra.items()}
        logged: dict[str, list[float]] = {}
        for call in calls:
            for key, values in call.metrics.items():
                logged.setdefault(key, []).extend(values)
        metrics = {key: sum(values) / len(values) for key, values in logged.items()}
        for call in calls:
            metrics |= self._rule_metrics(call, given)
        return Scores(by_name, total, extra, metrics)

    def _rule_metrics(
        self, call: Call, given: Mapping[str, list[float | None]]
    ) -> dict[str, float]:
        rule, metrics = self.rules[call.name], {}
        if rule.timeout_s is not None:
            metrics["timeouts"] = float(call.count_lost("timeouts"))
        if crashes := call.count_lost("crashes"):
            metrics["crashes"] = float(crashes)
        if rule.schedule:
            metrics["weight"] = self.weights[call.name]
        if rule.only_if is not None:
            gates = given[rule.only_if]
            shut = sum(gate is not None and gate <= 0 for gate in gates)
            metrics["gated"] = shut / len(gates) if gates else 0.0
        return {f"rewards/{call.name}/{key}": value for key, value in metrics.items()}


def _unique_names(functions: Sequence[RewardFunction]) -> list[str]:
    """Their names; the second of the same name becomes `name_2`."""
    names: list[str] = []
    for function in functions:
        name, count = reward_name(function), 1
        unique = name
        while unique in names:
            count += 1
            unique = f"{name}_{count}"
        names.append(unique)
    return names
