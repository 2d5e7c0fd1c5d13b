"""FlashAttention kernels in Triton's interpreter and on a GPU, and the choice of a backend.

The cases are in `kernels/*_cases.py`, those of the log-prob head too. They run in a process of
their own: Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from thinkrl.kernels import masks
from thinkrl.kernels.attention import attention
from thinkrl.kernels.backend import resolve_backend
from thinkrl.kernels.block_lists import BlockLists
from thinkrl.kernels.masks import Mask
from torch import Tensor

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    sys.platform != "linux", reason="triton is not available on this platform"
)
# Halves of about the same time, so that two processes share the work.
HALVES = ("every_mask", "not every_mask")


def run_cases(*options: str, interpret: bool) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options]
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    run = subprocess.run(
        [*command, *(str(HERE / "kernels" / f"{name}_cases.py") for name in ("flash", "logit"))],
        env=environment,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout, run.stdout[-500:]


@needs_triton
@pytest.mark.parametrize("half", HALVES)
def test_in_the_interpreter(half: str) -> None:
    run_cases("-m", "not slow and not gpu", "-k", half, interpret=True)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("part", ["D16", "D64", "D80", "D128", "D256", "vocabulary"])
def test_everything_in_the_interpreter(part: str) -> None:
    run_cases("-m", "slow", "-k", part, interpret=True)


@pytest.mark.gpu
def test_on_the_gpu() -> None:
    run_cases(interpret=False)


MASKS = {
    "causal": masks.causal(70),
    "blind": masks.causal(50, 20),
    "packed": masks.packed_causal([40, 0, 1, 33, 60]),
    "window": masks.sliding_window(90, 13),
    "prefix": masks.shared_prefix([(40, [20, 33, 9]), (17, [25])]),
    "diffusion": masks.block_diffusion([(5, [16, 16]), (0, [8, 30])]),
    "bytes": masks.patches_from_bytes([4, 0, 30, 1, 50], slots=3),
    "padded": masks.bidirectional(40, lengths=[40, 3, 0]),
    "nothing": Mask(torch.zeros(9, dtype=torch.int32), torch.zeros(9, dtype=torch.int32), 20),
}


def kinds(lists: BlockLists, width: int) -> Tensor:
    """0 skipped, 1 partial, 2 full, from the lists of one axis."""
    found = torch.zeros(len(lists.order_X), width, dtype=torch.int64)
    for x, (full, total) in enumerate(zip(lists.full_X, lists.total_X, strict=True)):
        found[x, lists.index_XY[x, :total].long()] = 1
        found[x, lists.index_XY[x, :full].long()] = 2
        assert len(set(lists.index_XY[x].tolist())) == width
    assert sorted(lists.order_X.tolist()) == list(range(len(lists.order_X)))
    work = lists.total_X[lists.order_X.long()]
    assert torch.equal(work, work.sort(descending=True).values)
    return found


@pytest.mark.parametrize("size", [(16, 16), (32, 16), (16, 64), (128, 128)])
@pytest.mark.parametrize("name", MASKS)
def test_block_lists(name: str, size: tuple[int, int]) -> None:
    """Against the dense mask: a tile is full, partial or skipped by what is in it."""
    mask, (q, k) = MASKS[name], size
    by_query, by_key = mask.blocks(q, k)
    M, N = -(-mask.num_queries // q), -(-mask.num_keys // k)
    dense = torch.zeros(M * q, N * k, dtype=torch.bool)
    dense[: mask.num_queries, : mask.num_keys] = mask.dense()
    tiles = dense.view(M, q, N, k).transpose(1, 2).flatten(2)
    expected = tiles.any(-1).long() + tiles.all(-1).long()
    assert torch.equal(kinds(by_query, N), expected)
    assert torch.equal(kinds(by_key, M), expected.T)
    assert mask.blocks(q, k)[0] is by_query  # built once


def test_the_backend_on_a_cpu() -> None:
    assert resolve_backend("auto", device="cpu") == "torch"
    assert resolve_backend("torch", device="cuda") == "torch"
    q = torch.randn(5, 2, 16)
    expected = attention(q, q, q, mask=masks.causal(5), backend="torch")
    assert torch.equal(attention(q, q, q, mask=masks.causal(5), backend="auto"), expected)
    assert torch.equal(attention(q, q, q, mask=masks.causal(5)), expected)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted")
def test_a_wrong_backend_is_one_clear_line() -> None:
    q = torch.randn(5, 2, 16)
    with pytest.raises(ValueError, match="backend='triton': needs a CUDA device, not 'cpu'; use"):
        attention(q, q, q, mask=masks.causal(5), backend="triton")
    with pytest.raises(ValueError, match="backend='tritn': unknown; use one of auto, triton, tor"):
        resolve_backend("tritn")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="backend='triton': torch finds no CUDA device; use"):
            resolve_backend("triton", device="cuda")
        assert resolve_backend("auto", device="cuda") == "torch"


def test_a_mask_has_one_copy_per_device() -> None:
    mask = masks.packed_causal([3, 2])
    assert mask.to("meta") is mask.to(torch.device("meta"))
