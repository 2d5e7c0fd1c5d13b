"""`thinkrl doctor`: versions, devices and what is missing, in one table."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..models.registry import resolve_kernels
from ..rewards.sandbox import isolation_level
from .tracking import cpu_name

OPTIONAL = {
    "vllm": "a faster rollout engine",
    "bitsandbytes": "4-bit and 8-bit loading (QLoRA), 8-bit AdamW",
    "torchao": "optimizer states on the CPU",
    "tensorboard": "tracking",
    "wandb": "tracking",
    "trackio": "tracking",
}
VARIABLES = ("THINKRL_DATA", "THINKRL_DEBUG", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
_COLOURS = {"ok": "green", "missing": "dim", "wrong": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, whether it is all right, and what was found."""

    name: str
    state: Literal["ok", "missing", "wrong"]
    detail: str


def findings() -> list[Finding]:
    """Everything that the table shows."""
    return [*_system(), *_devices(), *_required(), *_optional(), *_variables()]


def show_report() -> None:
    """Print the table; whatever it says, the exit code of `doctor` is 0."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for finding in findings():
        table.add_row(
            Text(finding.name),
            Text(finding.state, _COLOURS[finding.state]),
            Text(finding.detail),
        )
    Console(highlight=False).print(table)


def _system() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    disk: Literal["ok", "wrong"] = "ok" if free > 1 else "wrong"
    return [
        Finding("thinkrl", "ok", metadata.version("thinkrl")),
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        Finding("disk", disk, f"{free:.0f} GB free here"),
    ]


def _devices() -> list[Finding]:
    cpu = f"{cpu_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    rows = [Finding("cpu", "ok", cpu)]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        rows.append(Finding(f"cuda:{index}", "ok", f"{properties.name}, {memory}"))
    if not torch.cuda.is_available():
        rows.append(Finding("cuda", "missing", "no GPU: everything runs on the CPU"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows.append(Finding("kernels", "ok", f"auto is {resolve_kernels('auto', device=device)} here"))
    isolation = isolation_level()
    held: Literal["ok", "wrong"] = "wrong" if isolation.startswith("none") else "ok"
    rows.append(Finding("sandbox", held, f"code rewards run under: {isolation}"))
    return rows


def _required() -> list[Finding]:
    """Each dependency against the version that the package asks for."""
    rows = []
    for text in metadata.requires("thinkrl") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            rows.append(Finding(requirement.name, "wrong", f"not installed, {text} is needed"))
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        detail = found if fits else f"{found}, but {requirement.specifier} is needed"
        rows.append(Finding(requirement.name, "ok" if fits else "wrong", detail))
    return rows


def _optional() -> list[Finding]:
    rows = []
    for name, purpose in OPTIONAL.items():
        if find_spec(name) is None:
            rows.append(Finding(name, "missing", f"optional: {purpose}"))
        else:
            rows.append(Finding(name, "ok", f"{_version(name)}: {purpose}"))
    return rows


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "installed"


def _variables() -> list[Finding]:
    return [Finding(name, "ok", os.environ[name]) for name in VARIABLES if name in os.environ]
