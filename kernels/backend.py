"""Which kernels run: chosen once, by name.

`triton` needs a CUDA device of compute capability 8.0 or more, or Triton's interpreter
(TRITON_INTERPRET=1, for tests). `auto` is `torch`: the Triton kernels pass in the interpreter and
compile for sm_80 and sm_90, but nothing here has run on a GPU yet, and a default must have.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch

BACKENDS = ("auto", "triton", "torch")
_LEAST_CAPABILITY = (8, 0)


def resolve_backend(name: str = "auto", *, device: torch.device | str = "cpu") -> str:
    """ "triton" or "torch" for tensors on `device`. Raises ValueError that says why not."""
    return _resolve(name, torch.device(device))


@cache
def _resolve(name: str, device: torch.device) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r}: unknown; use one of {', '.join(BACKENDS)}")
    if name in ("auto", "torch"):
        return "torch"
    if name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        return "triton"
    reason = _why_not_triton(device)
    if reason is not None:
        raise ValueError(f"backend='triton': {reason}; use 'auto' or 'torch'")
    return "triton"


def _why_not_triton(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"needs a CUDA device, not {device.type!r}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if torch.version.hip is not None:
        return "the tiles are chosen for NVIDIA devices only"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        return f"{device} has compute capability {capability[0]}.{capability[1]}, 8.0 is the least"
    return None
