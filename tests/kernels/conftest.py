"""Where kernels run: in Triton's interpreter on a CPU, or on the GPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def device() -> str:
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device or TRITON_INTERPRET=1")
    return "cpu" if INTERPRETED else "cuda"


def _make_bfloat16_products_right() -> None:
    """The interpreter keeps bfloat16 as uint16 bits and multiplies these: widen them before."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def widen(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    product = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return product(self, widen(a), widen(b), *rest)

    InterpreterBuilder.create_dot = create_dot  # type: ignore[method-assign]


if INTERPRETED:
    _make_bfloat16_products_right()
