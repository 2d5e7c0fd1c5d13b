"""TFLOP/s of our attention kernels beside PyTorch's: SDPA by cuDNN, SDPA by FLASH, FlexAttention.

    python tests/benchmarks/attention.py [--tokens 16384] [--budget-s 150] [--output results.json]
    python tests/benchmarks/attention.py --sweep 128     every tile of one head width, fastest first

All run in one process on the same random bfloat16 numbers, interleaved; the table gives medians.
FLOPs are 4 x D per visible pair of query and key, 2.5 times that backward. A row passes when the
ratio to cuDNN (to FLASH where cuDNN cannot) reaches its floor; the target is printed beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from thinkrl.kernels import masks
from thinkrl.kernels.configurations import Tile
from thinkrl.kernels.flash_attention import Tiles, flash_attention
from thinkrl.kernels.masks import Mask
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Goal:
    """Least and wanted ratio to cuDNN, wanted ratio to FLASH."""

    floor: float | None
    target: float | None
    flash: float


# (pass, head width, causal, sequence lengths): ratios expected of plain Triton on Hopper, from
# published rates of cuDNN, FlashAttention-2 and Triton kernels.
GOALS: dict[tuple[str, int, bool, tuple[int, ...]], Goal] = {
    ("forward", 64, False, (1024, 4096)): Goal(0.85, 0.95, 1.20),
    ("forward", 64, True, (2048, 8192)): Goal(0.80, 0.92, 1.20),
    ("forward", 64, True, (512,)): Goal(0.60, 0.80, 1.00),
    ("forward", 128, False, (1024, 8192)): Goal(0.65, 0.78, 1.25),
    ("forward", 128, True, (4096, 8192)): Goal(0.60, 0.75, 1.15),
    ("forward", 128, True, (512, 2048)): Goal(0.45, 0.65, 1.00),
    ("forward", 256, False, (4096,)): Goal(0.50, 0.62, 1.10),
    ("forward", 256, True, (4096,)): Goal(0.50, 0.62, 1.10),
    ("backward", 64, False, (4096,)): Goal(0.58, 0.70, 1.05),
    ("backward", 64, True, (4096,)): Goal(0.58, 0.70, 1.05),
    ("backward", 128, False, (4096,)): Goal(0.43, 0.57, 0.95),
    ("backward", 128, True, (4096,)): Goal(0.43, 0.57, 0.95),
    ("backward", 256, True, (4096,)): Goal(None, None, 0.75),
    ("both", 128, False, (8192,)): Goal(0.50, 0.62, 1.00),
}
# Layouts that SDPA has no kernel for: to be compared with FlexAttention.
LAYOUTS = ("packed", "shared_prefix", "window")
Run = Callable[[], Any]
CALLS = 5


@dataclass
class Result:
    """One row of the table; TFLOP/s by implementation."""

    kind: str
    D: int
    layout: str
    S: int
    tflops: dict[str, float]
    missing: dict[str, str]
    floor: float | None = None
    target: float | None = None
    ratio: float | None = None
    flash_target: float | None = None
    flash_ratio: float | None = None

    @property
    def passed(self) -> bool | None:
        return None if self.ratio is None or self.floor is None else self.ratio >= self.floor


def timed(run: Run, device: str) -> float:
    """Seconds of one call, on a GPU of several in a row: launches overlap with work."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(CALLS):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / CALLS


def interleaved(runs: dict[str, Run], device: str, *, rounds: int = 20) -> dict[str, float]:
    """Median seconds of each, round after round, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for n in range(rounds + 2):
        for name, run in runs.items():
            spent = timed(run, device)
            if n >= 2:
                seconds[name].append(spent)
    return {name: statistics.median(values) for name, values in seconds.items()}


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, backend: SDPBackend) -> Tensor:
    with sdpa_kernel(backend):
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal
        )
    return out.transpose(1, 2)


def flex(mask: Mask, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Compiled FlexAttention over the same pairs."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    lo, hi = mask.lo_S.to(device), mask.hi_S.to(device)

    def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= lo[key]) & (query < hi[key])

    block_mask = create_block_mask(sees, None, None, mask.num_queries, mask.num_keys, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return compiled(q, k, v, block_mask=block_mask).transpose(1, 2)

    return run


def as_run(function: Callable[..., Tensor], qkv: list[Tensor], kind: str) -> Run:
    """What is timed: the forward, the backward alone, or both."""
    if kind == "forward":
        inputs = [x.detach() for x in qkv]
        return lambda: function(*inputs)
    out = function(*qkv)
    upstream = torch.randn_like(out)
    if kind == "backward":
        return lambda: torch.autograd.grad(out, qkv, upstream, retain_graph=True)
    return lambda: torch.autograd.grad(function(*qkv), qkv, upstream)


def visible_pairs(mask: Mask) -> int:
    return int((mask.hi_S - mask.lo_S).clamp(min=0).long().sum())


def make_layout(layout: str, S: int, tokens: int) -> tuple[Mask, int]:
    """The mask, and the rows that share it."""
    if layout == "causal":
        return masks.causal(S), tokens // S
    if layout == "full":
        return masks.bidirectional(S), tokens // S
    if layout == "packed":
        return masks.packed_causal([S] * (tokens // S)), 1
    if layout == "window":
        return masks.sliding_window(tokens, S), 1
    groups = max(1, tokens // (5 * S))
    return masks.shared_prefix([(S, [S // 2] * 8)] * groups), 1


def bench(kind: str, D: int, layout: str, S: int, *, tokens: int, device: str) -> Result:
    """All implementations on one shape."""
    mask, B = make_layout(layout, S, tokens)
    H = max(1, 2048 // D) if device == "cuda" else 1
    torch.manual_seed(0)
    qkv = [
        torch.randn(B, n, H, D, dtype=torch.bfloat16, device=device).requires_grad_()
        for n in (mask.num_queries, mask.num_keys, mask.num_keys)
    ]
    moved = mask.to(device)
    candidates: dict[str, Callable[..., Tensor]] = {
        "ours": lambda q, k, v: flash_attention(q, k, v, mask=moved)
    }
    if layout in ("causal", "full"):
        for name, backend in (
            ("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION),
        ):  # fmt: skip
            candidates[name] = lambda q, k, v, b=backend: sdpa(
                q, k, v, causal=layout == "causal", backend=b
            )
    elif device == "cuda":
        candidates["flex"] = flex(mask, device)
    runs: dict[str, Run] = {}
    missing: dict[str, str] = {}
    for name, function in candidates.items():
        try:
            runs[name] = as_run(function, qkv, kind)
            runs[name]()
        except RuntimeError as error:  # a backend that does not take this shape
            runs.pop(name, None)
            missing[name] = str(error).splitlines()[0][:200]
    factor = {"forward": 1.0, "backward": 2.5, "both": 3.5}[kind]
    work = 4.0 * D * H * B * visible_pairs(mask) * factor / 1e12
    seconds = interleaved(runs, device, rounds=20 if device == "cuda" else 1)
    return Result(kind, D, layout, S, {n: work / s for n, s in seconds.items()}, missing)


def judge(result: Result, goal: Goal) -> None:
    rates = result.tflops
    result.floor, result.target, result.flash_target = goal.floor, goal.target, goal.flash
    if "ours" in rates and "cudnn" in rates:
        result.ratio = rates["ours"] / rates["cudnn"]
    if "ours" in rates and "flash" in rates:
        result.flash_ratio = rates["ours"] / rates["flash"]


def results(tokens: int, device: str, deadline: float) -> Iterator[Result]:
    for (kind, D, causal, lengths), goal in GOALS.items():
        for S in lengths:
            if time.monotonic() > deadline:
                return
            layout = "causal" if causal else "full"
            result = bench(kind, D, layout, min(S, tokens), tokens=tokens, device=device)
            judge(result, goal)
            yield result
    for layout, kind in itertools.product(LAYOUTS, ("forward", "backward")):
        if time.monotonic() > deadline:
            return
        yield bench(kind, 128, layout, min(1024, tokens // 4), tokens=tokens, device=device)


def show(result: Result) -> str:
    rates = "  ".join(f"{name} {rate:7.1f}" for name, rate in result.tflops.items())
    line = f"{result.kind:8s} D={result.D:<3d} {result.layout:13s} S={result.S:<6d} {rates}"
    if result.ratio is not None and result.floor is not None:
        verdict = "ok" if result.passed else "UNDER THE FLOOR"
        line += f"  {result.ratio:.2f} of cudnn (floor {result.floor}, target {result.target})"
        line += f" {verdict}"
    if result.flash_ratio is not None:
        line += f"  {result.flash_ratio:.2f} of flash (target {result.flash_target})"
    return line + "".join(f"  [no {name}: {why}]" for name, why in result.missing.items())


def sweep(D: int, *, tokens: int, device: str) -> None:
    """Every tile for each of the three kernels on causal attention, fastest first."""
    S = min(4096, tokens)
    mask = masks.causal(S).to(device)
    shape = (tokens // S, S, max(1, 2048 // D), D)
    qkv = [torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in "qkv"]
    qkv = [x.requires_grad_() for x in qkv]
    sizes = (32, 64, 128) if device == "cuda" else (32,)
    for field, kind in (("forward", "forward"), ("grad_query", "backward"),
                        ("grad_key_value", "backward")):  # fmt: skip
        found = []
        for q, k, warps, stages in itertools.product(sizes, sizes, (4, 8), (1, 2, 3)):
            tiles = Tiles(**{field: Tile(q, k, warps, stages)})
            with contextlib.suppress(Exception):  # out of resources: not a candidate
                run = as_run(lambda *x, t=tiles: flash_attention(*x, mask=mask, tiles=t), qkv, kind)
                found.append((interleaved({"": run}, device, rounds=5)[""], tiles))
        for seconds, tiles in sorted(found, key=lambda pair: pair[0])[:6]:
            print(f"D={D} {field:15s} {seconds * 1e3:8.3f} ms  {getattr(tiles, field)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--budget-s", type=float, default=150.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sweep", type=int)
    parser.add_argument("--output")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device", file=sys.stderr)
        return 2
    if args.sweep:
        sweep(args.sweep, tokens=args.tokens, device=args.device)
        return 0
    rows = []
    for result in results(args.tokens, args.device, time.monotonic() + args.budget_s):
        print(show(result), flush=True)
        rows.append(asdict(result) | {"passed": result.passed})
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    return 1 if any(row["passed"] is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
