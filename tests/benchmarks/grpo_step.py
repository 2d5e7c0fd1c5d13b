"""Seconds per GRPO step (rollout and update), ours and TRL's, side by side on one CPU thread.

    python tests/benchmarks/grpo_step.py [--rounds 3] [--steps 4] [--out FILE.json]

The same LLaMA (4 layers, width 256, 8 heads, 4 key-value heads, FFN 704, vocabulary 512), weights,
prompts (8 of 32 tokens), G = 8, at most 64 new tokens, AdamW, token-mean loss, no KL. The reward is
the share of even tokens: it has signal from the first step, and its curve shows that each setting
learns alike. Configurations take turns within each round, so that a noisy machine disturbs all of
them; ratios are of medians over all steps but the first of each turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from thinkrl.grpo.config import GRPOConfig
from thinkrl.grpo.tracking import RunFolder, environment
from thinkrl.grpo.trainer import GRPOTrainer
from thinkrl.models.registry import load_model, save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback

VOCABULARY, PROMPT_TOKENS, NEW_TOKENS, PROMPTS, G = 512, 32, 64, 8, 8
LEARNING_RATE = 1e-3
PHASES = ("time/rollout", "time/reward", "time/train", "time/sync")


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<pad>": 510, "<eos>": 511}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def rows(count: int) -> list[dict[str, str]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY - 2, (count, PROMPT_TOKENS), generator=generator)
    return [{"prompt": " ".join(f"w{i}" for i in row)} for row in ids.tolist()]


def even_share(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]


Steps = list[dict[str, float]]


def run_trl(checkpoint: Path, steps: int, *, bf16: bool) -> Steps:
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig as TRLConfig
    from trl.trainer.grpo_trainer import GRPOTrainer as TRLTrainer

    measured: Steps = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter(), time.process_time()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "reward" in logs:
                measured[-1]["reward"] = float(logs["reward"])

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wall, cpu = self.started
            spent = {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            measured.append(spent)

    with tempfile.TemporaryDirectory() as folder:
        trainer = TRLTrainer(
            model=str(checkpoint),
            reward_funcs=even_share,
            args=TRLConfig(
                output_dir=folder,
                per_device_train_batch_size=PROMPTS * G,
                num_generations=G,
                max_completion_length=NEW_TOKENS,
                max_steps=steps,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                beta=0.0,
                loss_type="dapo",
                bf16=bf16,
                use_cpu=True,
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=0,
                model_init_kwargs={"dtype": torch.float32},
            ),
            train_dataset=Dataset.from_list(rows(PROMPTS * steps)),
            processing_class=word_tokenizer(),
            callbacks=[Clock()],
        )
        trainer.train()
    return measured


def run_ours(checkpoint: Path, steps: int, **settings: Any) -> Steps:
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            load_model(str(checkpoint)),
            even_share,
            GRPOConfig(
                batch_size=PROMPTS * G,
                num_generations=G,
                max_completion_length=NEW_TOKENS,
                max_steps=steps,
                learning_rate=LEARNING_RATE,
                loss_type="dapo",
                epsilon_high=0.2,
                adam_beta2=0.999,
                seed=0,
                **settings,
            ),
            rows(PROMPTS * steps),
            tokenizer=word_tokenizer(),
            folder=RunFolder(folder),
        )
        spent = {"forward": 0.0, "backward": 0.0}
        trainer.policy.token_logprobs = timed(trainer.policy.token_logprobs, spent, "forward")
        trainer.accelerator.backward = timed(trainer.accelerator.backward, spent, "backward")
        cpu: list[float] = []
        trainer.train_step = timed_steps(trainer.train_step, cpu)
        trainer.train()
        text = (Path(folder) / "metrics.jsonl").read_text()
    measured = []
    for row, cpu_s in zip(map(json.loads, text.splitlines()), cpu, strict=True):
        phases = {name: row[name] for name in PHASES}
        spent_s = {"s": row["time/step"], "cpu_s": cpu_s}
        measured.append({**spent_s, "reward": row["reward"], **phases})
    # Forward and backward over all steps, the first included: shares, not seconds, are reported.
    total = sum(step["s"] for step in measured)
    rollout = sum(step["time/rollout"] for step in measured)
    shares = {name: seconds / total for name, seconds in spent.items()} | {
        "rollout": rollout / total
    }
    shares["the rest"] = 1 - sum(shares.values())
    return [
        {**step, **{f"share/{name}": share for name, share in shares.items()}} for step in measured
    ]


def timed_steps(function: Callable[[], Any], cpu: list[float]) -> Callable[[], Any]:
    def run() -> Any:
        started = time.process_time()
        result = function()
        cpu.append(time.process_time() - started)
        return result

    return run


def timed(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        spent[name] += time.perf_counter() - started
        return result

    return run


CONFIGURATIONS: dict[str, Callable[[Path, int], Steps]] = {
    "trl fp32": lambda path, steps: run_trl(path, steps, bf16=False),
    "ours fp32, padded": lambda path, steps: run_ours(path, steps, packing=False),
    "ours fp32": run_ours,
    "trl bf16": lambda path, steps: run_trl(path, steps, bf16=True),
    "ours bf16": lambda path, steps: run_ours(path, steps, bf16=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, Steps] = {name: [] for name in CONFIGURATIONS}
    last: dict[str, Steps] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model"
        save_model(load_model("llama-small", vocab_size=VOCABULARY, seed=0), checkpoint)
        word_tokenizer().save_pretrained(checkpoint)
        for turn in range(arguments.rounds):
            for name, run in CONFIGURATIONS.items():
                last[name] = run(checkpoint, arguments.steps)
                seconds[name] += last[name][1:]
                print(f"round {turn + 1}  {name}: {median(seconds[name], 's'):.3f} s", flush=True)
    report(seconds, last, arguments.out)


def median(steps: Steps, key: str) -> float:
    return statistics.median(step[key] for step in steps)


def report(seconds: dict[str, Steps], last: dict[str, Steps], out: Path | None) -> None:
    """Ratios of wall time, and of processor time, which a busy machine disturbs less."""
    lines = []
    for name, steps in seconds.items():
        curve = [round(step.get("reward", float("nan")), 3) for step in last[name]]
        row: dict[str, Any] = {"configuration": name}
        for key, label in (("s", "wall"), ("cpu_s", "cpu")):
            row[f"{label}_s_per_step"] = round(median(steps, key), 4)
            for base in ("trl fp32", "trl bf16"):
                ratio = median(seconds[base], key) / median(steps, key)
                row[f"{label}_times_{base.replace(' ', '_')}"] = round(ratio, 2)
        row["reward_curve"] = curve
        for phase in [key for key in last[name][-1] if key.startswith(("time/", "share/"))]:
            row[phase] = round(statistics.median(step[phase] for step in last[name][1:]), 4)
        lines.append(row)
        print(json.dumps(row))
    if out:
        out.write_text(json.dumps({"environment": environment(), "rows": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
