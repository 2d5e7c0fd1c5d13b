"""A control group around each sandbox, where the hierarchy can be written to (mostly as root).

It bounds what resource limits do not see: the kernel's own memory, the scratch files and all
processes together. Where nothing can be written the limits of zygote.py hold alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PREFIX = "thinkrl-"
_HEADROOM = 256 << 20  # the zygote, its scratch files, and what the program printed
_PROCESSES = 512
_NUMBERS = itertools.count()


def _own_folders() -> dict[str, Path]:
    """Return this process's folder for memory and pids, in version 1 or 2 hierarchies."""
    folders: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            folder = _ROOT / name / path.lstrip("/") if name else _ROOT / path.lstrip("/")
            if name in ("memory", "pids") and folder.is_dir():
                folders[name] = folder
            elif not name and (folder / "cgroup.controllers").is_file():
                folders.setdefault("unified", folder)
    return folders


def _remove_abandoned(folder: Path) -> None:
    """Remove the empty groups of graders that were killed."""
    for group in folder.glob(f"{_PREFIX}*"):
        owner = group.name.split("-")[1]
        if not Path("/proc", owner).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


class ControlGroup:
    """The groups of one sandbox; empty where none could be made."""

    def __init__(self, pid: int) -> None:
        self._folders: list[Path] = []
        name = f"{_PREFIX}{os.getpid()}-{next(_NUMBERS)}"
        with contextlib.suppress(OSError, ValueError):
            for folder in _own_folders().values():
                self._try(folder, name, pid)

    def _try(self, parent: Path, name: str, pid: int) -> None:
        _remove_abandoned(parent)
        group = parent / name
        try:
            group.mkdir()
        except OSError:
            return  # not ours to write
        self._folders.append(group)
        limited = self._write("pids.max", _PROCESSES, group)
        limited |= any((group / limit).exists() for limit in _MEMORY_FILES)
        if not limited or not self._write("cgroup.procs", pid, group):
            self._folders.remove(group)
            with contextlib.suppress(OSError):
                group.rmdir()

    def limit_memory(self, memory_bytes: int) -> None:
        """Set what the whole sandbox may hold while one program with this limit runs."""
        for group in self._folders:
            for limit in _MEMORY_FILES:
                self._write(limit, memory_bytes + _HEADROOM, group)

    @staticmethod
    def _write(name: str, value: int, group: Path) -> bool:
        try:
            # Opening must not create: these files exist or the controller is not there.
            descriptor = os.open(group / name, os.O_WRONLY)
        except OSError:
            return False
        try:
            os.write(descriptor, str(value).encode())
            return True
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Remove the groups once their last process has gone."""
        for group in self._folders:
            for _ in range(100):
                try:
                    group.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:  # still dying
                    time.sleep(0.01)
        self._folders = []


_MEMORY_FILES = ("memory.limit_in_bytes", "memory.max")
