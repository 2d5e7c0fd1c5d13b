"""What the trainers need of several processes: gathered objects, summed metrics, one voice."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..rewards.signature import RewardError
from .checkpoint import RunError
from .objectives import Mean, Metrics, merge_metrics

Item = TypeVar("Item")


def process_state() -> PartialState:
    """This process among those of the run; joins them on the first call.

    Without a GPU, accelerate joins several processes (gloo) only when told that they use the CPU.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=True) if several and not torch.cuda.is_available() else PartialState()


def on_first_process(make: Callable[[], Item]) -> Item:
    """What the first process makes, or the mistake it finds, on every process."""
    made: list[Any] = [None, None]
    if process_state().is_main_process:
        try:
            made[0] = make()
        except (ValueError, OSError) as error:
            made[1] = error
    value, error = broadcast_object_list(made)
    if error is not None:
        raise error
    return value


def on_every_process(work: Callable[[], Item]) -> Item:
    """What `work` gives on this process; where it fails on one, every process raises the error.

    Without this the others would wait for the failed one until the connection breaks, and the
    error of a process that is not the first would never be shown.
    """
    try:
        result, error = work(), None
    except Exception as caught:
        result, error = None, caught
    told = gather_objects([error and (_kind(error), _one_line(error))])
    if error is not None:
        raise error
    for kind, text in filter(None, told):
        raise kind(text)
    return result  # type: ignore[return-value]


def _kind(error: Exception) -> type[Exception]:
    """What the other processes raise: a class that one line of text makes whole."""
    kinds = (RewardError, ValueError)
    return next((kind for kind in kinds if isinstance(error, kind)), RunError)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | RunError) else f"{type(error).__name__}: {text}"


def gather_objects(items: Sequence[Item]) -> list[Item]:
    """The items of all processes, in rank order, on every process."""
    if not _running():
        return list(items)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def gather_interleaved(items: Sequence[Item]) -> list[Item]:
    """Items dealt out as `all[rank::world_size]`, back in their common order on every process."""
    if not _running():
        return list(items)
    world_size = dist.get_world_size()
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, list(items))
    total = sum(map(len, parts))
    return [parts[i % world_size][i // world_size] for i in range(total)]


def reduce_metrics(metrics: Metrics) -> dict[str, float]:
    """Metrics of all processes as numbers: means by weight, extremes by name (.../min, .../max)."""
    parts = gather_objects([_on_cpu(metrics)])
    return {name: float(value) for name, value in sorted(merge_metrics(parts).items())}


def _on_cpu(metrics: Metrics) -> Metrics:
    """Detached copies of plain numbers: an object is pickled to travel."""
    return {
        name: Mean(*(part.detach().double().cpu() for part in value))
        if isinstance(value, Mean)
        else value.detach().double().cpu()
        for name, value in metrics.items()
    }


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; the same answer everywhere."""
    return any(gather_objects([flag]))


def _running() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
