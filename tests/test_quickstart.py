"""The quick-start keeps its promise: thinking, taught by GRPO alone, on every seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from thinkrl.grpo.cli import main
from thinkrl.grpo.tracking import RunFolder

SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


@pytest.mark.parametrize("seed", SEEDS)
def test_quickstart(seed: int, tmp_path: Path) -> None:
    assert main(["train", "quickstart", f"seed={seed}", f"run_dir={tmp_path}", "--quiet"]) == 0
    rows = RunFolder(tmp_path).read_metrics()
    before, after = (row for row in rows if "eval/reward" in row)
    assert 0.2 < before["eval/reward"] < 0.45
    assert after["eval/reward"] > 0.95
    assert after["eval/greedy/reward"] > 0.95
    length = "eval/completions/mean_length"
    assert after[length] > 1.9 * before[length]
    steps = [row for row in rows if "reward" in row]
    assert len(steps) == 60
    assert max(row["sampling/kl"] for row in steps) < 1e-6  # it trains on what it sampled
