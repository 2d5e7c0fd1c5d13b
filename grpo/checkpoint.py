"""Checkpoints on disk: whole or absent, the newest found again, old ones deleted.

A checkpoint is a folder `step_000010`: the model in Hugging Face layout, and `trainer_state/` with
all that an exact resume needs. It is written beside its place and renamed into it, so a process
killed at any moment leaves the previous checkpoint as it was. `latest` and `best` are links.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..models.checkpoint import replaced_folder

STATE = "trainer_state"


class RunError(RuntimeError):
    """The run failed for a reason that one line can say; the message is that line."""


class Checkpoints:
    """The `checkpoints/` folder of a run; keeps the newest `keep` and the best."""

    def __init__(self, root: Path, *, keep: int) -> None:
        self.root = root
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None], *, best: bool = False) -> Path:
        """Have `write` fill a folder, then make it the latest checkpoint.

        Raises RunError when the disk is full; no half-written checkpoint remains.
        """
        final = self.root / f"step_{step:06d}"
        write_folder(final, write)
        _point(self.root / "latest", final)
        if best:
            _point(self.root / "best", final)
        self._prune()
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        complete = [path for path in self._all() if (path / STATE / "state.json").is_file()]
        return complete[-1] if complete else None

    def _all(self) -> list[Path]:
        return sorted(self.root.glob("step_*")) if self.root.is_dir() else []

    def _prune(self) -> None:
        best = self.root / "best"
        kept = {best.resolve()} if best.exists() else set()
        for path in self._all()[: -self.keep]:
            if path.resolve() not in kept:
                shutil.rmtree(path)


def write_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder beside its place and rename it there, replacing what stood in it.

    Raises RunError when the disk is full or the place cannot be written.
    """
    try:
        with replaced_folder(final) as staging:
            write(staging)
            _flush(staging)
    except OSError as error:
        raise RunError(f"{error} (or give a run_dir on another disk)") from error


def write_state(folder: Path, state: dict[str, Any], tensors: dict[str, Any]) -> None:
    """`trainer_state/`: counters as JSON, and one .pt file per entry of `tensors`."""
    (folder / STATE).mkdir()
    for name, value in tensors.items():
        try:
            torch.save(value, folder / STATE / f"{name}.pt")
        except RuntimeError as error:  # torch hides the errno of a full disk
            raise OSError(f"{name}.pt could not be written: {error}".split("\n")[0]) from error
    (folder / STATE / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """The counters of a checkpoint. Raises RunError when the file is damaged."""
    path = folder / STATE / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(state, dict) and isinstance(state.get("step"), int)):
            raise ValueError("it has no step")
        return state
    except (OSError, ValueError) as error:
        raise _damaged(path, folder, error) from None


def read_tensors(folder: Path, name: str) -> Any:
    """One entry of `trainer_state/`, on the CPU. Raises RunError when the file is damaged."""
    path = folder / STATE / f"{name}.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _damaged(path, folder, str(error).split("\n")[0]) from error


def _damaged(path: Path, folder: Path, reason: object) -> RunError:
    return RunError(f"{path}: cannot be read: {reason}; delete {folder} to resume before it")


def rng_state() -> dict[str, Any]:
    """Random state of torch and Python: dropout and users' rewards draw from it."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])


def _point(link: Path, target: Path) -> None:
    """A relative link, replaced in one step."""
    partial = link.with_name(f".partial-{link.name}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name)
    partial.replace(link)


def _flush(folder: Path) -> None:
    """Bring the files to the disk before the rename that makes them count."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
