"""What every training stage shares: optimizer step, checkpoints, resume, interruption, logging."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, broadcast_object_list
from torch import Tensor, nn

from ..models.adapters import base_model, has_lora, load_lora, merged_state
from ..models.checkpoint import load_checkpoint, write_checkpoint
from ..rewards.signature import RewardError
from . import checkpoint as ckpt
from .batch import MicroBatch, Sample, collate, micro_batches, shard
from .checkpoint import Checkpoints, RunError
from .config import OptimConfig
from .distributed import any_process, gather_objects, process_state, reduce_metrics
from .objectives import Mean, Metrics, merge_metrics
from .optim import learning_rate, make_optimizer
from .policy import CausalPolicy
from .terminal import RunDisplay
from .tracking import RunFolder

_SAME_SIGNAL_S = 1.0  # a terminal and a launcher may both pass on one Ctrl-C

LossOf = Callable[[MicroBatch], tuple[Tensor, Metrics]]


class Interrupted(Exception):
    """The user stopped the run; it was saved, and the message says how to go on."""


class Stage:
    """Base of the trainers: `train` runs steps from where the run folder stands to `max_steps`."""

    name = "stage"

    def __init__(
        self,
        model: nn.Module,
        config: OptimConfig,
        *,
        tokenizer: Any,
        folder: RunFolder,
        display: RunDisplay | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.folder = folder
        process_state()
        check_trackers(config.report_to)
        self.accelerator = Accelerator(
            log_with=list(config.report_to) or None, project_dir=str(folder.path)
        )
        self.is_main = self.accelerator.is_main_process
        self.display = display or RunDisplay(self.name, config.max_steps, quiet=True)
        self.model = model.to(self.accelerator.device)
        self.policy = CausalPolicy(self.model, config, self.accelerator)
        self.optimizer = make_optimizer(config, self.model.parameters())
        self.checkpoints = Checkpoints(folder.path / "checkpoints", keep=config.save_total_limit)
        self.seed = config.seed or 0
        self.step = 0
        self.num_tokens = 0
        self.best: float | None = None
        self.seconds: dict[str, float] = {}
        self._stop_asked: float | None = None

    # -- the loop -------------------------------------------------------------------------------

    def train(self, *, resume: bool = False) -> dict[str, float]:
        """Train to `max_steps`, export `final/`, and return the last metrics.

        With `resume`, go on from the newest checkpoint of the run folder; without one, start over.
        Raises RunError when the run cannot go on, Interrupted when the user stopped it.
        """
        self._start(resume)
        metrics: dict[str, float] = {}
        with self._interruptible(), self._explained():
            if self.step == 0:
                self.evaluate()
            while self.step < self.config.max_steps:
                started = time.perf_counter()
                metrics = self.train_step()
                self._log(metrics, seconds=time.perf_counter() - started)
                self._after_step()
        self.accelerator.wait_for_everyone()
        if self.is_main:
            ckpt.write_folder(self.folder.path / "final", self._export)
        if self.config.report_to:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()
        return metrics

    def train_step(self) -> dict[str, float]:
        """One optimizer step; returns its metrics. Counters are the caller's."""
        raise AssertionError("a trainer defines its step")

    def evaluate(self) -> float | None:
        """Score the held-out rows and log them; returns what `best` goes by, None without rows."""
        return None

    # -- the optimizer step ---------------------------------------------------------------------

    def optimize(self, samples: Sequence[Sample], loss_of: LossOf) -> dict[str, float]:
        """One optimizer step over the samples of all processes; returns reduced metrics.

        `loss_of` must divide by global counts: the gradient is the sum over all micro-batches.
        """
        runs, idle = self.my_runs(samples)
        world_size = self.accelerator.num_processes
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts: list[Metrics] = []
        for i, run in enumerate(runs):
            batch = self.collate(run)
            last = i == len(runs) - 1
            accumulate = contextlib.nullcontext() if last else self._no_sync()
            with accumulate:
                loss, metrics = loss_of(batch)
                self.accelerator.backward(loss * world_size)  # wrappers average over processes
            if i < len(runs) - idle:
                parts.append({**metrics, "loss": Mean(loss.detach(), torch.ones(()))})
        merged = merge_metrics(parts)
        if "loss" in merged:  # a sum over micro-batches and processes, not a mean
            first = torch.tensor(float(self.is_main))
            merged["loss"] = Mean(merged["loss"].total, first)  # type: ignore[union-attr]
        grad_norm = self._clip()
        reduced = reduce_metrics(merged)
        if not math.isfinite(grad_norm) or not math.isfinite(reduced.get("loss", 0.0)):
            self._save_bad_batch(samples, reduced, grad_norm)
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return {**reduced, "grad_norm": grad_norm, "lr": rate}

    def my_runs(self, samples: Sequence[Sample]) -> tuple[list[list[Sample]], int]:
        """This process's micro-batches, and how many at the end only keep in step with others.

        Every process passes through the model equally often, or collectives would wait for ever.
        """
        world_size = self.accelerator.num_processes
        shares = [shard(samples, rank=rank, world_size=world_size) for rank in range(world_size)]
        everyone = [self._runs(share) for share in shares]
        mine = everyone[self.accelerator.process_index]
        idle = max(map(len, everyone)) - len(mine)
        return mine + [[_blank(samples[0])]] * idle, idle

    def collate(self, run: Sequence[Sample]) -> MicroBatch:
        """The tensors of a micro-batch, on this process's device."""
        return collate(
            run,
            layout=self.policy.layout,
            window=self.policy.window,
            device=self.accelerator.device,
        )

    def _runs(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        return micro_batches(
            samples,
            max_tokens=self.config.micro_batch_tokens,
            max_samples=self.config.micro_batch_size,
            layout=self.policy.layout,
        )

    def _no_sync(self) -> contextlib.AbstractContextManager[Any]:
        return self.accelerator.no_sync(self.policy.module)

    def _clip(self) -> float:
        limit = self.config.max_grad_norm or math.inf
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return float(self.accelerator.clip_grad_norm_(trained, limit))  # type: ignore[arg-type]

    def _save_bad_batch(
        self, samples: Sequence[Sample], metrics: dict[str, float], grad_norm: float
    ) -> None:
        """Keep what broke the run, before it reaches the weights."""
        path = self.folder.path / f"bad_batch_step_{self.step + 1:06d}.pt"
        if self.is_main:
            rows = [dataclasses.asdict(sample) for sample in samples]
            torch.save({"step": self.step + 1, "samples": rows, "metrics": metrics}, path)
        raise RunError(
            f"step {self.step + 1}: loss {metrics.get('loss')}, gradient norm {grad_norm}: not "
            f"finite; the weights are unharmed and the batch is in {path}; a lower learning_rate, "
            "a smaller max_grad_norm or dtype float32 are the usual remedies"
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what a user can mend into one line."""
        try:
            yield
        except FloatingPointError as error:
            raise RunError(f"step {self.step + 1}: {error}") from error
        except RewardError as error:
            if self.step == 0:  # a mistake in the recipe or the function, not a run that failed
                raise
            raise RunError(f"step {self.step + 1}: {error}") from error
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            raise RunError(
                f"step {self.step + 1}: out of memory; lower micro_batch_tokens (now "
                f"{self.config.micro_batch_tokens}) or rollout.max_batch_size, or set "
                "model.gradient_checkpointing=true"
            ) from error

    # -- logging --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds spent inside to `time/<phase>` of the step being logged."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent

    def _log(self, metrics: dict[str, float], *, seconds: float) -> None:
        tokens = metrics.pop("step_tokens", 0.0)
        self.step += 1
        self.num_tokens += int(tokens)
        timings = {f"time/{phase}": spent for phase, spent in self.seconds.items()}
        self.seconds.clear()
        metrics |= timings | {
            "time/step": seconds,
            "num_tokens": self.num_tokens,
            "tokens_per_s": tokens / max(seconds, 1e-9),
        }
        self.log_row(metrics)
        if self.is_main:
            self.display.update(self.step, metrics)

    def log_row(self, metrics: dict[str, float]) -> None:
        """One object in metrics.jsonl and in the trackers."""
        if self.is_main:
            self.folder.log_metrics({"step": self.step, "stage": self.name, **metrics})
        if self.config.report_to:
            self.accelerator.log(metrics, step=self.step)

    # -- saving and resuming --------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The trainer's own counters (JSON) and tensors; `load_state` takes them back."""
        return {}, {}

    def load_state(self, counters: dict[str, Any], folder: Path) -> None:
        """Put back what `state` returned."""

    def _start(self, resume: bool) -> None:
        if self.config.report_to:
            settings = {k: v for k, v in dataclasses.asdict(self.config).items() if _is_plain(v)}
            self.accelerator.init_trackers("thinkrl", config=settings)
        latest = self.checkpoints.latest() if resume else None
        latest = broadcast_object_list([latest])[0]
        if latest is not None:
            self._restore(latest)
        elif not resume and self.checkpoints.latest() is not None:
            raise ValueError(
                f"run_dir = {self.folder.path}: holds checkpoints of an earlier run; go on with it "
                "by train(resume=True), or give another folder"
            )
        if self.is_main:
            self.folder.truncate_after(self.step if latest is not None else -1)
        self.accelerator.wait_for_everyone()

    def _after_step(self) -> None:
        config, done = self.config, self.step == self.config.max_steps
        score = None
        if done or (config.eval_steps and self.step % config.eval_steps == 0):
            score = self.evaluate()
        stop = any_process(self._stop_asked is not None)
        due = bool(config.save_steps) and self.step % config.save_steps == 0
        if done or stop or due or self._is_best(score):
            self.save(score)
        if stop and not done:
            raise Interrupted(f"stopped after step {self.step} of {config.max_steps}, saved")

    def _is_best(self, score: float | None) -> bool:
        if score is None or math.isnan(score):
            return False
        return self.best is None or score > self.best

    def save(self, score: float | None = None) -> None:
        """A checkpoint of this step; `score` decides whether it is the best so far."""
        counters, tensors = self.state()
        best = self._is_best(score)
        self.best = score if best else self.best
        counters |= {"step": self.step, "num_tokens": self.num_tokens, "best": self.best}
        rng = gather_objects([ckpt.rng_state()])
        if self.is_main:
            tensors |= {"optimizer": self.optimizer.state_dict(), "rng": rng}

            def write(path: Path) -> None:
                self._write_weights(path)
                ckpt.write_state(path, counters, tensors)

            self.checkpoints.save(self.step, write, best=best)
        self.accelerator.wait_for_everyone()

    def _write_weights(self, path: Path) -> None:
        if has_lora(self.model):
            self.model.save_pretrained(str(path))  # type: ignore[operator]
            self.tokenizer.save_pretrained(str(path))
        else:
            plain = base_model(self.model)
            write_checkpoint(plain.state_dict(), plain.config, path, tokenizer=self.tokenizer)

    def _restore(self, path: Path) -> None:
        counters = ckpt.read_state(path)
        if has_lora(self.model):
            load_lora(self.model, path)
        else:
            plain = base_model(self.model)
            plain.load_state_dict(load_checkpoint(path, dtype=plain.head_weight.dtype).state_dict())
        self.optimizer.load_state_dict(ckpt.read_tensors(path, "optimizer"))
        rng = ckpt.read_tensors(path, "rng")
        if self.accelerator.process_index < len(rng):
            ckpt.set_rng_state(rng[self.accelerator.process_index])
        self.step, self.num_tokens = counters["step"], counters["num_tokens"]
        self.best = counters["best"]
        self.load_state(counters, path)

    def _export(self, path: Path) -> None:
        """`final/`: plain weights that any engine loads; LoRA adapters beside them."""
        config = self.policy.model_config
        write_checkpoint(merged_state(self.model), config, path, tokenizer=self.tokenizer)
        if has_lora(self.model):
            self.model.save_pretrained(str(path / "adapter"))  # type: ignore[operator]

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the run after the current step; the second at once."""

        def ask(signum: int, frame: Any) -> None:
            if self._stop_asked is None:
                self._stop_asked = time.monotonic()
                text = f"finishing step {self.step + 1}, then saving; again to stop at once"
                self.display.note(text)
            elif time.monotonic() - self._stop_asked > _SAME_SIGNAL_S:
                raise KeyboardInterrupt

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker that accelerate does not know, or that is not installed."""
    installed = [str(one) for one in get_available_trackers()]
    for name in names:
        if name not in LoggerType.list():
            known = ", ".join(one for one in LoggerType.list() if one != "all")
            raise ValueError(f"report_to = {name!r}: no such tracker; choose from {known}")
        if name not in (*installed, "all"):
            raise ValueError(f"report_to = {name!r}: its library is not installed; pip install it")


def _blank(sample: Sample) -> Sample:
    """A sample that trains nothing, with log-probs whatever process holds those of the others."""
    zeros = torch.zeros(len(sample.token_ids))
    return dataclasses.replace(sample, trains=False, old_logprobs=zeros, ref_logprobs=zeros)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)
