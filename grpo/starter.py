"""`thinkrl init`: a recipe and a reward function to start from, which run as they are."""

from __future__ import annotations

from pathlib import Path

from .schema import ConfigError

RECIPE = """\
# Question: does a reward of our own teach a small model to think?
# Hardware: two CPU cores.
# Time: about a minute.
# Expected: sampled accuracy from about 40 % to over 90 %.
#
#   thinkrl train my_recipe.yaml
#   thinkrl train my_recipe.yaml trainer.max_steps=20 seed=1
#   thinkrl train --explain trainer
question: does a reward of our own teach a small model to think?
stages: [sft, grpo]          # each starts from the model of the one before
cpu_threads: 1

model:
  path: llama-tiny           # a preset; or a checkpoint folder, or a hub id like Qwen/Qwen2.5-0.5B
  tokenizer: char            # for the built-in tasks; leave it out for a checkpoint's own

data:
  train: walk                # a built-in task; or rows.jsonl, rows.parquet, or a hub dataset
  eval: walk
  task: {moves: 8}
  eval_limit: 128
  # For rows of your own, say what their columns are called and how they become a prompt:
  # columns: {prompt: question, answer: answer}
  # template: r1_zero_think

rewards:                     # weighted and summed
  - name: my_reward.py:right_answer
  - name: my_reward.py:has_thought
    weight: 0.1

sft:                         # a warm start; leave the stage out where the model can already answer
  task: {p_think: 0.25}
  max_steps: 200
  batch_size: 128
  learning_rate: 4e-3
  lr_scheduler_type: linear
  warmup_steps: 40

trainer:                     # GRPO
  max_steps: 40
  batch_size: 128            # completions per optimizer step
  num_generations: 8         # of them, completions of one prompt
  max_completion_length: 16
  learning_rate: 5e-4
  loss_type: dapo
"""

REWARD = '''\
"""Reward functions: called with a batch, they return one number per completion.

The arguments are those of TRL: `prompts`, `completions`, `completion_ids`, and every column of the
dataset by its name. Take what you need, and the rest as `**columns`. None means: not scored.
"""


def right_answer(completions, answer, **columns):
    """1 for a completion whose text after </think> is the column `answer`, else 0."""
    return [
        float(completion.rpartition("</think>")[2].strip() == gold)
        for completion, gold in zip(completions, answer)
    ]


def has_thought(completions, **columns):
    """1 for a completion that wrote something between <think> and </think>."""
    return [
        float(len(completion.partition("</think>")[0].removeprefix("<think>")) > 0)
        for completion in completions
    ]
'''


def write_starter(folder: Path) -> list[str]:
    """Write both files and return the lines to show; ConfigError where one is there already."""
    files = {folder / "my_recipe.yaml": RECIPE, folder / "my_reward.py": REWARD}
    taken = [str(path) for path in files if path.exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)}: there already; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{folder}: is a file, not a folder") from None
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    written = [f"wrote {path}" for path in files]
    return [*written, f"now: thinkrl train {folder / 'my_recipe.yaml'}"]
