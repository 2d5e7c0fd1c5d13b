"""The run folder: what a run writes down, so that it can be looked at, compared and resumed.

`recipe.yaml` (resolved), `environment.json`, `metrics.jsonl` (one object a step),
`rollouts/step_*.parquet`, `checkpoints/step_*` and `final/`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

RUNS = Path("runs")
PACKAGES = (
    "thinkrl",
    "torch",
    "transformers",
    "triton",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "numpy",
    "pyarrow",
    "bitsandbytes",
    "vllm",
)
_STAMP = re.compile(r"\d{8}-\d{6}(-\d+)?")
_STEP = re.compile(r"step_(\d+)(\.parquet)?")


class RunFolder:
    """One stage's folder. Every file is whole or absent, whenever the process is killed."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def final_path(self) -> Path:
        """Where the trained checkpoint goes; it exists once the stage is done."""
        return self.path / "final"

    def rollouts_path(self, step: int) -> Path:
        return self.path / "rollouts" / f"step_{step:06d}.parquet"

    def write_recipe(self, text: str) -> None:
        """The resolved recipe, as `recipe.to_yaml` gives it."""
        write_text(self.path / "recipe.yaml", text)

    def write_environment(self, values: Mapping[str, Any]) -> None:
        """What the run runs on; each resume is added under `resumed`."""
        target = self.path / "environment.json"
        values = {name: _plain(value) for name, value in values.items()}
        first = _read_object(target)
        if first is not None:
            values = {**first, "resumed": [*first.get("resumed", []), values]}
        write_text(target, json.dumps(values, indent=2) + "\n")

    def log_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one object to metrics.jsonl. A value that is not finite is written as null."""
        line = json.dumps({name: _plain(value) for name, value in row.items()})
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows so far; a line that a kill or a power cut left damaged is left out."""
        if not self.metrics_path.exists():
            return []
        rows = []
        text = self.metrics_path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines(keepends=True):
            with suppress(ValueError):
                row = json.loads(line)
                rows += [row] if line.endswith("\n") and isinstance(row, dict) else []
        return rows

    def truncate_after(self, step: int) -> None:
        """Forget metrics and rollouts past `step`: a resumed run writes them again."""
        kept = [row for row in self.read_metrics() if row.get("step", 0) <= step]
        if self.metrics_path.exists():
            write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))
        for path_step, path in self._rollout_files():
            if path_step > step:
                path.unlink()
        for leftover in self.path.glob("**/.*.partial"):
            if leftover.is_file():
                leftover.unlink()

    def write_rollouts(
        self, step: int, columns: Mapping[str, Sequence[Any]], *, budget_mb: float = 2048
    ) -> None:
        """One parquet file of a step's rollouts; the oldest files go when all exceed the budget.

        Raises ValueError where columns differ in length. The newest file always stays.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"rollouts of step {step}: columns differ in length: {lengths}")
        table = pa.table({name: _column(values) for name, values in columns.items()})
        target = self.rollouts_path(step)
        target.parent.mkdir(exist_ok=True)
        with replacing(target) as partial:
            pq.write_table(table, partial, compression="zstd")
        self._enforce_budget(budget_mb * 1e6)

    def _enforce_budget(self, budget_bytes: float) -> None:
        files = [(path, path.stat().st_size) for _, path in self._rollout_files()]
        total = sum(size for _, size in files)
        for path, size in files[:-1]:
            if total <= budget_bytes:
                return
            path.unlink()
            total -= size

    def _rollout_files(self) -> list[tuple[int, Path]]:
        files = self.path.glob("rollouts/step_*.parquet")
        matches = ((_STEP.fullmatch(path.name), path) for path in files)
        return sorted((int(match[1]), path) for match, path in matches if match)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A partial file beside `target` that takes its place when the block succeeds."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write a small file in one piece, so that no reader and no kill sees half of it."""
    with replacing(target) as partial:
        partial.write_text(text, encoding="utf-8")


def new_run_dir(recipe_name: str, root: str | Path = RUNS) -> Path:
    """Create and return `root/<recipe>-<date>-<time>`; a second run in one second gets `-2`."""
    base = Path(root) / f"{_file_name(recipe_name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1, 1000):
        path = base if attempt == 1 else base.with_name(f"{base.name}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise ValueError(f"run_dir: no free name at {base}; give one with run_dir=PATH")


def find_run(recipe_name: str, root: str | Path = RUNS) -> Path | None:
    """The newest run folder of a recipe, by the date and time in its name."""
    prefix = f"{_file_name(recipe_name)}-"
    runs = [
        path
        for path in Path(root).glob("*")
        if path.name.startswith(prefix) and _STAMP.fullmatch(path.name.removeprefix(prefix))
    ]
    return max(runs, key=lambda path: _run_order(path.name.removeprefix(prefix)), default=None)


def _run_order(stamp: str) -> tuple[str, int]:
    day, second, *attempt = stamp.split("-")
    return day + second, int(attempt[0]) if attempt else 1


def environment() -> dict[str, Any]:
    """Versions, device, commit and command line: what a number needs to be believed."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(0) if cuda else cpu_name(),
        "devices": torch.cuda.device_count() if cuda else 0,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "cpu_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if cuda else None,
        "commit": git_commit(Path(__file__).resolve().parent.parent),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the installed libraries that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """The commit of the working copy at `folder`, with `+` for local changes; None outside git."""
    if not (folder / ".git").exists():
        return None
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file, or a damaged one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "run"


def _plain(value: Any) -> Any:
    """Numbers that strict JSON can hold: tensors and numpy scalars as Python's, NaN as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, str | int | float | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _column(values: Sequence[Any]) -> Sequence[Any]:
    """Parquet has no mapping without keys: a column of only such becomes null."""
    empty = all(value is None or value == {} for value in values)
    return [None] * len(values) if empty else values
