"""The shipped recipes for two steps on real rows, with tiny random checkpoints of each family."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from thinkrl.grpo.cli import main
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

SIZES = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
SMALLER = [
    "trainer.batch_size=8",
    "trainer.num_generations=4",
    "trainer.max_completion_length=12",
    "trainer.max_steps=2",
    "trainer.learning_rate=1e-3",
    "trainer.warmup_steps=0",
    "cpu_threads=1",
]
CASES = {
    "gsm8k_r1_zero": ("llama", ["data.train={data}/gsm8k/train.jsonl"]),
    "gsm8k_r1_zero ": (
        "qwen2",
        [
            "data.train={data}/gsm8k/train.jsonl",
            "data.eval={data}/gsm8k/test.jsonl",
            "data.eval_limit=3",
        ],
    ),
    "math_dapo": (
        "qwen3",
        [
            "data.train={data}/math/train.jsonl",
            "trainer.steps_per_generation=2",
            "trainer.soft_overlong_cache=4",
            "trainer.max_sampling_rounds=1",
        ],
    ),
    "countdown_r1_zero": (
        "mistral",
        ["data.train={data}/countdown/generated_train.jsonl", "data.eval_limit=2"],
    ),
}


@pytest.fixture(scope="module")
def tokenizer(data_dir: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 500 tokens, trained on GSM8K; like real ones smaller than the model's."""
    trained = ByteLevelBPETokenizer()
    lines = (data_dir / "gsm8k" / "train.jsonl").read_text().splitlines()[:200]
    trained.train_from_iterator(lines, vocab_size=500, special_tokens=["<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<eos>")


def write_checkpoint(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random checkpoint as transformers writes it."""
    torch.manual_seed(0)
    config: PretrainedConfig = AutoConfig.for_model(family, **SIZES, eos_token_id=0, head_dim=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("recipe", CASES)
def test_two_steps_on_real_rows(
    recipe: str, tmp_path: Path, data_dir: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    family, settings = CASES[recipe]
    checkpoint = write_checkpoint(tmp_path / family, family, tokenizer)
    run = tmp_path / "run"
    settings = [setting.format(data=data_dir) for setting in settings]
    code = main(
        ["train", recipe.strip(), f"model.path={checkpoint}", f"run_dir={run}", *SMALLER, *settings]
    )
    assert code == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    rollouts = pq.read_table(run / "rollouts" / "step_000001.parquet").to_pylist()
    assert all(row["prompt"] and row["completion_ids"] for row in rollouts)
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(run / "final" / "model.safetensors")
    assert before.keys() == after.keys()
    reloaded = AutoModelForCausalLM.from_pretrained(run / "final")
    assert type(reloaded).__name__.lower() == f"{family}forcausallm"
