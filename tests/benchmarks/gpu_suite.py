"""Every GPU test and benchmark within a time budget, and one dated JSON of what came out.

    tests/benchmarks/gpu_suite.sh [--budget-s 460] [--output tests/benchmarks/results/gpu_DATE.json]

Tests first: numbers of kernels that are wrong mean nothing, so a failure stops the suite. A step
that runs out of time is recorded as such.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "benchmarks"
CASES = [str(ROOT / "tests" / "kernels" / f"{name}_cases.py") for name in ("flash", "logit")]
LIBRARIES = ("torch", "triton", "transformers", "numpy")


def environment() -> dict[str, Any]:
    """Device, versions and commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    properties = torch.cuda.get_device_properties(0)
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def run(command: list[str], limit_s: float) -> dict[str, Any]:
    """Exit code (None: out of time), seconds and the end of the output."""
    start = time.monotonic()
    variables = os.environ | {"TOKENIZERS_PARALLELISM": "false", "TRITON_INTERPRET": "0"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=limit_s
        )
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, text = None, (error.stdout or b"").decode(errors="replace")
    seconds = round(time.monotonic() - start, 1)
    print(f"{' '.join(command[1:4])}: exit {code} after {seconds} s", flush=True)
    print(text[-3000:], flush=True)
    return {"exit": code, "seconds": seconds, "tail": text[-6000:]}


def pytest(*options: str, limit_s: float) -> dict[str, Any]:
    workers = str(min(8, os.cpu_count() or 1))
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider"]
    return run([*command, *options], limit_s)


def benchmark(name: str, *options: str, limit_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.json"
        command = [sys.executable, str(HERE / f"{name}.py"), *options, "--output", str(output)]
        step = run(command, limit_s)
        step["results"] = json.loads(output.read_text()) if output.exists() else None
    return step


def suite(budget_s: float) -> dict[str, Any]:
    end = time.monotonic() + budget_s
    steps: dict[str, Any] = {}

    def left(most: float) -> float:
        return max(1.0, min(most, end - time.monotonic()))

    steps["kernels"] = pytest("-m", "not slow", *CASES, limit_s=left(200))
    if steps["kernels"]["exit"] != 0:
        return steps
    deselect = "tests/test_flash_attention.py::test_on_the_gpu"  # the step above
    steps["gpu tests"] = pytest("-m", "gpu", "tests", "--deselect", deselect, limit_s=left(90))
    budget = left(140)
    steps["attention"] = benchmark(
        "attention", "--budget-s", str(budget * 0.8), limit_s=budget + 20
    )
    steps["logprob head"] = benchmark("logprob_head", limit_s=left(90))
    if end - time.monotonic() > 60:
        steps["every case"] = pytest("-m", "slow", *CASES, limit_s=left(600))
    return steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget-s", type=float, default=460.0)
    parser.add_argument("--output")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("the GPU suite needs a CUDA device", file=sys.stderr)
        return 2
    found = environment()
    print(json.dumps(found), flush=True)
    steps = suite(args.budget_s)
    name = f"gpu_{found['date']}.json"
    path = Path(args.output) if args.output else HERE / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, "steps": steps}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    wrong = [key for key, step in steps.items() if step["exit"] not in (0, None, 5)]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
