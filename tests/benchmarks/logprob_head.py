"""Time and peak memory of the log-prob head: ours, TRL's chunked one, and plain log_softmax.

    python tests/benchmarks/logprob_head.py [--tokens 8192 --width 4096 --vocab 151936] [--output F]

Forward and backward to hidden states and weight; medians. On a GPU: bfloat16, wall time, and the
allocator's peak; on a CPU: float32, processor time of one thread, and growth of the process at its
peak. Memory is beyond hidden, weight and their gradients. Each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date

import torch
from thinkrl.kernels.linear_logprob import linear_logprob, linear_token_loss
from torch import Tensor

TRL_CHUNK = 32768  # vocabulary columns, as its trainer asks for
Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def backend_for(hidden: Tensor) -> str:
    return "triton" if hidden.is_cuda else "torch"


def token_loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    loss, _, _ = linear_token_loss(
        hidden, weight, target, lambda logp, _entropy, _rows: -logp, backend=backend_for(hidden)
    )
    return loss


def logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    logprobs, _ = linear_logprob(hidden, weight, target, backend=backend_for(hidden))
    return -logprobs.sum()


def trl(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    out = ChunkedLogProbFunction.apply(hidden, weight, None, target, 1.0, TRL_CHUNK, None, 1.0, ())
    return -out[0].sum()


def plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    logp = (hidden @ weight.T).float().log_softmax(-1)
    return -logp.gather(1, target[:, None]).sum()


STEPS: dict[str, Step] = {"token_loss": token_loss, "logprob": logprob, "trl": trl, "plain": plain}


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, *, tokens: int, width: int, vocab: int, device: str, rounds: int) -> dict:
    """{"ms", "peak_mib"} of one implementation."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hidden = torch.randn(tokens, width, dtype=dtype, device=device).requires_grad_()
    weight = (torch.randn(vocab, width, dtype=dtype, device=device) / width**0.5).requires_grad_()
    target = torch.randint(vocab, (tokens,), device=device)
    hidden.grad, weight.grad = torch.ones_like(hidden), torch.ones_like(weight)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = peak(device)
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds = []
    for _ in range(rounds):
        hidden.grad = weight.grad = None
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        STEPS[name](hidden, weight, target).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return {
        "ms": 1e3 * statistics.median(seconds[1:] or seconds),
        "peak_mib": (peak(device) - before) / 2**20,
    }


def about(device: str) -> dict[str, str]:
    """Date, machine, versions and commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    name = torch.cuda.get_device_name() if device == "cuda" else platform.platform()
    versions = {n: importlib.metadata.version(n) for n in ("torch", "trl")}
    return {"date": date.today().isoformat(), "device": name, "commit": commit, **versions}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", choices=tuple(STEPS))
    parser.add_argument("--output")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device", file=sys.stderr)
        return 2
    shape = {"tokens": args.tokens, "width": args.width, "vocab": args.vocab}
    if args.only:
        torch.set_num_threads(1)
        result = measure(args.only, **shape, device=args.device, rounds=args.rounds)
        print(json.dumps(result))
        return 0
    found = {}
    for name in STEPS:
        command = [sys.executable, __file__, "--only", name, "--device", args.device]
        command += ["--rounds", str(args.rounds)]
        command += [part for key, n in shape.items() for part in (f"--{key}", str(n))]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            found[name] = {"error": run.stderr.strip().splitlines()[-1]}
        else:
            found[name] = json.loads(run.stdout.splitlines()[-1])
        print(name, found[name], flush=True)
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({**about(args.device), "shape": shape, "results": found}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
