"""The table of objectives: one row of settings per published algorithm.

A row says how advantages are made, at which level the ratio is taken, how it is clipped, how token
losses add up, and which KL is added. `objectives.policy_loss` computes it; r, A, lp and sg (stop
gradient) below are as there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints


@dataclass(frozen=True)
class Objective:
    """A row of the preset table. `scale_rewards` and `baseline` are for `group_advantages`.

    Numbers may come as text ("3e-4"). Raises ValueError on a value of the wrong type or range.
    """

    scale_rewards: Literal["group", "batch", "none"] = "group"
    baseline: Literal["mean", "leave_one_out", "batch"] = "mean"
    importance_sampling_level: Literal["token", "sequence", "sequence_sum"] = "token"
    # ppo: min(r A, clamp(r, 1 - epsilon, 1 + epsilon_high) A); none: r A.
    # cispo: sg(min(r, epsilon_high)) A lp; reinforce: A lp; sapo, gmpo, vespo: see _clip_rule.
    clip: Literal["ppo", "cispo", "sapo", "gmpo", "vespo", "reinforce", "none"] = "ppo"
    epsilon: float = 0.2
    epsilon_high: float | None = None  # None: epsilon
    delta: float | None = None  # two-sided: r <= delta where A < 0 (INTELLECT-2, 2505.07291)
    dual_clip: float | None = None  # c > 1: the loss of A < 0 is at most -c A (1912.09729)
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    aggregation: Literal["sequence_mean", "token_mean", "constant", "sequence_sum"] = "token_mean"
    max_completion_length: int | None = None  # of "constant"; None: the width of the batch
    beta: float = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_place: Literal["loss", "reward"] = "loss"  # reward: see kl_in_reward; the loss adds none
    kl_level: Literal["sequence", "token"] = "sequence"  # of the KL in the reward
    kl_ratio_factor: bool = False  # times r: unbiased off-policy (DeepSeek-V3.2, 2512.02556)
    entropy_coef: float = 0.0
    top_entropy_quantile: float = 1.0  # train on the most uncertain share of tokens (2506.01939)
    # w = exp(old - sampled) per token or, summed, per sequence; bounded or set to 0 outside bounds.
    # truncate: TIS (fengyao.notion.site/off-policy-rl); mask: MIS, IcePop (ringtech.notion.site).
    importance_correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "none"
    importance_min: float | None = None
    importance_max: float | None = 3.0
    # Drop sequences with A < 0 and mean(sampled - lp) above it (DeepSeek-V3.2, 2512.02556).
    off_policy_mask_threshold: float | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), hint))
        at_least_0 = ("epsilon", "epsilon_high", "beta", "entropy_coef", "importance_min")
        above_0 = (
            *("sapo_temperature_pos", "sapo_temperature_neg", "vespo_lambda_pos"),
            *("vespo_lambda_neg", "max_completion_length", "top_entropy_quantile"),
        )
        wrong = {name: "must be 0 or more" for name in at_least_0 if self._get(name, 0) < 0}
        wrong |= {name: "must be above 0" for name in above_0 if self._get(name, 1) <= 0}
        if self.top_entropy_quantile > 1:
            wrong["top_entropy_quantile"] = "must be a share of the tokens, at most 1"
        if self._get("importance_max", math.inf) <= self._get("importance_min", 0):
            wrong["importance_max"] = f"must be above importance_min={self.importance_min}"
        for name in ("delta", "dual_clip"):
            if self._get(name, math.inf) <= 1:
                wrong[name] = "must be above 1, or null for off"
            elif getattr(self, name) is not None and self.clip != "ppo":
                wrong[name] = f"belongs to clip 'ppo'; this objective has {self.clip!r}"
        if (self.baseline, self.scale_rewards) == ("batch", "group"):
            wrong["scale_rewards"] = "must be 'batch' or 'none' where baseline is 'batch'"
        if self.kl_level == "token" and self.baseline != "batch":
            wrong["kl_level"] = "needs baseline 'batch': a group has no baseline per token"
        for name, reason in wrong.items():
            raise ValueError(f"{name}={getattr(self, name)!r}: {reason}")

    def _get(self, name: str, default: float) -> float:
        value = getattr(self, name)
        return default if value is None else value

    @property
    def high(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high


def _typed(name: str, value: Any, hint: Any) -> Any:
    """The value as the type of its setting."""
    options = get_args(hint) or (hint,)
    if (value is None and NoneType in options) or (bool in options and isinstance(value, bool)):
        return value
    if isinstance(options[0], str):
        if value in options:
            return value
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(options)}")
    kind = options[0]
    number = math.nan
    if isinstance(value, int | float | str) and bool not in (kind, type(value)):
        with contextlib.suppress(ValueError):
            number = float(value)
    if math.isfinite(number) and kind(number) == number:
        return kind(number)
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
    raise ValueError(f"{name}={value!r}: must be {wanted}{' or null' * (NoneType in options)}")


# Published settings, with beta = 0 throughout: a KL to the reference is asked for by beta.
PRESETS: dict[str, Objective] = {
    # DeepSeek-R1, 2501.12948 eq. 1-3, as in DeepSeekMath, 2402.03300. The paper leaves open: ddof
    # of the group's std (ours: 1), the epsilon under it (1e-4), and the clip range (0.2, as PPO).
    "grpo": Objective(aggregation="sequence_mean"),
    # Dr. GRPO, 2503.20783: no division by length or std, which favour long wrong answers.
    "dr_grpo": Objective(scale_rewards="none", aggregation="constant"),
    # DAPO, 2503.14476: token mean, clip-higher 0.2 / 0.28.
    "dapo": Objective(epsilon_high=0.28),
    # BNPO as TRL names it: a token mean with the symmetric clip.
    "bnpo": Objective(),
    # GSPO, 2507.18071, section 5.1: ratio of sequences, per-token geometric mean.
    "gspo": Objective(
        importance_sampling_level="sequence",
        epsilon=3e-4,
        epsilon_high=4e-4,
        aggregation="sequence_mean",
    ),
    # LUSPO, 2602.05261: GSPO with each sequence weighted by its length.
    "luspo": Objective(importance_sampling_level="sequence", aggregation="sequence_sum"),
    # CISPO, MiniMax-M1, 2506.13585: the ratio is a capped constant weight, no token is dropped.
    # epsilon_high is the cap itself; 5.0 is ScaleRL's, 2510.13786.
    "cispo": Objective(clip="cispo", epsilon_high=5.0),
    # GMPO, 2507.20673: geometric mean of the token ratios, log-ratios clipped at +-0.4.
    "gmpo": Objective(clip="gmpo", epsilon=0.4, aggregation="sequence_mean"),
    # SAPO, 2511.20347: a sigmoid gate instead of a clip, temperature 1.0 for A > 0, else 1.05.
    "sapo": Objective(clip="sapo", aggregation="sequence_mean"),
    # VESPO, 2602.10693: smooth weight w^k e^(lambda (1 - w)) of the whole sequence's ratio w.
    "vespo": Objective(clip="vespo"),
    # RLOO, 2402.14740: the completion is one action, leave-one-out baseline, KL in the reward.
    # REINFORCE while on policy; the PPO clip of the completion's ratio is TRL's, for reuse.
    "rloo": Objective(
        scale_rewards="none",
        baseline="leave_one_out",
        importance_sampling_level="sequence_sum",
        aggregation="sequence_mean",
        kl_estimator="k1",
        kl_place="reward",
    ),
    # REINFORCE++, 2501.03262: no group; whitened over the batch, PPO clip, KL per token in reward.
    "reinforce_pp": Objective(
        scale_rewards="batch",
        baseline="batch",
        kl_estimator="k1",
        kl_place="reward",
        kl_level="token",
    ),
}


def resolve(preset: str | Objective, **overrides: object) -> Objective:
    """The preset's row with some fields replaced; ValueError names the nearest known name."""
    if not isinstance(preset, Objective):
        if str(preset) not in PRESETS:
            raise ValueError(f"preset={preset!r}: unknown{_nearest(str(preset), PRESETS)}")
        preset = PRESETS[preset]
    fields = [field.name for field in dataclasses.fields(Objective)]
    for name in overrides:
        if name not in fields:
            raise ValueError(f"{name}: not a setting of an objective{_nearest(name, fields)}")
    return dataclasses.replace(preset, **overrides)  # type: ignore[arg-type]


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(known)}"
