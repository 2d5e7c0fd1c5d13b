"""Plant one bug at a time in a copy of the attention kernels; the cases must notice every one.

    python tests/kernels/mutations.py [part of a name]

Prints a line per bug and exits with 1 if one went unnoticed. A case that cannot fail proves
nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = "blind or shared_prefix or padded or rows_share or length or fold or shift"

# name: (file, text, replacement)
MUTATIONS: dict[str, tuple[str, str, str]] = {
    "first visible query lost, forward": (
        "flash_forward.py", "(query[:, None] >= lo[None, :])", "(query[:, None] > lo[None, :])",
    ),
    "one query too many, dq": (
        "flash_backward.py", "(query[:, None] < hi[None, :])", "(query[:, None] <= hi[None, :])",
    ),
    "dk and dv ignore the mask": (
        "flash_backward.py", "(query[None, :] >= lo[:, None])", "(query[None, :] >= 0)",
    ),
    "running output not rescaled": (
        "flash_forward.py", "acc = acc * shrink[:, None]", "acc = acc * 1.0",
    ),
    "a blind row gets NaN": (
        "flash_forward.py", 'tl.where(new_top == float("-inf"), 0.0, new_top)', "new_top",
    ),
    "a query head of each group lost": (
        "flash_backward.py", "range(kv_head * group, (kv_head + 1) * group)",
        "range(kv_head * group + 1, (kv_head + 1) * group)",
    ),
    "the wrong kv head": ("flash_forward.py", "head // group * k_sh", "head % group * k_sh"),
    "delta dropped from dq": (
        "flash_backward.py", "(dweights - delta[:, None])", "dweights",
    ),
    "delta dropped from dk": (
        "flash_backward.py", "(dweights - delta[None, :])", "dweights",
    ),
    "dk without the scale": ("flash_backward.py", "dk * scale", "dk * 1.0"),
    "dq off by one per cent": ("flash_backward.py", "dq * scale", "dq * scale * 1.01"),
    "last row never written": ("flash_tiles.py", "(row < remaining)[:, None] & (column < D)",
                               "(row < remaining - 1)[:, None] & (column < D)"),
    "one row too many written": ("flash_tiles.py", "(row < remaining)[:, None] & (column < D)",
                                 "(row < remaining + 1)[:, None] & (column < D)"),
    "rows past the end read": ("flash_tiles.py", "if CHECK and D != W:", "if False:"),
    "a partial tile taken for a full one": (
        "block_lists.py", "covers_NM == block_k", "covers_NM >= block_k - 1",
    ),
    "a visible tile skipped": (
        "block_lists.py", "-(-hi_S // block_q)", "hi_S // block_q",
    ),
    "rows share the first row's keys": (
        "flash_forward.py", "k_base = K + batch * k_sb +", "k_base = K +",
    ),
    "entropy not rescaled": (
        "logits_triton.py", "shrink * (moment + total * fall)", "shrink * moment",
    ),
    "padding enters the sum": (
        "logits_triton.py", "tl.where(inside, tl.exp(below), 0.0)", "tl.exp(below)",
    ),
}  # fmt: skip


def noticed(file: str, text: str, replacement: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("kernels", "models"):
            shutil.copytree(ROOT / name, Path(folder) / "thinkrl" / name)
        path = Path(folder) / "thinkrl" / "kernels" / file
        source = path.read_text()
        assert text in source, f"{file} has no {text!r}"
        path.write_text(source.replace(text, replacement))
        environment = os.environ | {
            "TRITON_INTERPRET": "1",
            "PYTHONPATH": folder,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += ["-m", "not slow and not gpu", "-k", CASES]
        cases = [str(ROOT / "tests" / "kernels" / f"{n}_cases.py") for n in ("flash", "logit")]
        run = subprocess.run(
            [*command, *cases], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert run.returncode in (0, 1), run.stdout + run.stderr
        return run.returncode == 1


def main() -> int:
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    missed = 0
    for name, mutation in MUTATIONS.items():
        if part in name:
            seen = noticed(*mutation)
            missed += not seen
            print(f"{'noticed' if seen else 'MISSED '}  {name}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
