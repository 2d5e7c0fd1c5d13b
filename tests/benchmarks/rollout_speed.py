"""Seconds per rollout: the torch engine and transformers' generate, side by side in one run.

    python tests/benchmarks/rollout_speed.py [--shape step|quickstart] [--rounds 7] [--threads 1]

Both sample the same number of tokens from the same random weights, with no end-of-sequence token so
that no row ends early. Runs are interleaved; the table gives medians and ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from thinkrl.grpo.rollout.engine import Prompt, Sampling
from thinkrl.grpo.rollout.torch_engine import TorchEngine
from thinkrl.models.llama import Llama, LlamaConfig
from thinkrl.models.tokenizer import char_tokenizer


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    prompts: int
    prompt_tokens: int
    generations: int
    new_tokens: int


SHAPES = {
    "step": Shape(4, 256, 8, 4, 704, 512, 8, 32, 8, 64),
    "quickstart": Shape(2, 64, 2, 2, 176, 48, 32, 15, 8, 16),
}


def make_model(shape: Shape) -> Llama:
    """Our model with random weights."""
    return Llama(
        LlamaConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.width,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.width // shape.heads,
            rope_theta=10_000.0,
        )
    )


def as_transformers(model: Llama) -> transformers.LlamaForCausalLM:
    """The same weights in transformers' own class."""
    c = model.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        rms_norm_eps=c.rms_norm_eps,
        max_position_embeddings=c.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


def contenders(shape: Shape) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the first is the measure of the others."""
    torch.manual_seed(0)
    model = make_model(shape)
    ids_PT = torch.randint(4, shape.vocab, (shape.prompts, shape.prompt_tokens))
    prompts = [Prompt(i, ids, "") for i, ids in enumerate(ids_PT.tolist())]
    sampling = Sampling(shape.generations, shape.new_tokens)
    tokenizer = char_tokenizer("".join(chr(0x4E00 + i) for i in range(shape.vocab - 4)))
    engines = {
        f"thinkrl {name}": TorchEngine(model, tokenizer, eos_token_ids=[], bf16=name == "bf16")
        for name in ("fp32", "bf16")
    }

    def generate(theirs: transformers.LlamaForCausalLM) -> object:
        ids_BT = ids_PT.repeat_interleave(shape.generations, 0)  # TRL prefills each copy too
        return theirs.generate(  # type: ignore[operator]
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=True,
            max_new_tokens=shape.new_tokens,
            min_new_tokens=shape.new_tokens,
            pad_token_id=0,
            top_k=0,
        )

    theirs, rounded = as_transformers(model), as_transformers(model)
    rounded.bfloat16()
    runs: dict[str, Callable[[], object]] = {
        "transformers fp32": lambda: generate(theirs),
        "transformers bf16": lambda: generate(rounded),
    }
    return runs | {name: lambda e=e: e.generate(prompts, sampling) for name, e in engines.items()}


def main() -> None:
    """Measure and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--shape", choices=SHAPES, default="step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = SHAPES[args.shape]
    runs = contenders(shape)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(args.rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base = next(iter(medians.values()))
    tokens = shape.prompts * shape.generations * shape.new_tokens
    for name, median in medians.items():
        print(f"{name:20} {median:8.4f} s {tokens / median:10.0f} tokens/s {base / median:6.2f}x")
    print(
        json.dumps(
            {
                "shape": args.shape,
                "threads": args.threads,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "seconds": medians,
            }
        )
    )


if __name__ == "__main__":
    main()
