"""Several processes of one command on this machine, joined by torch.distributed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

_GRACE_S = 30.0  # for the others to end once one has failed


def launched() -> bool:
    """Whether a launcher (torchrun, accelerate, this module) has already made the processes."""
    return "RANK" in os.environ


def asked_of_accelerate() -> int:
    """The N of `accelerate launch --cpu --num_processes N`, of which accelerate starts one."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true" or launched():
        return 1
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent is not None else []
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            number = value or "".join(words[i + 1 : i + 2])
            return int(number) if number.isdigit() else 1
    return 1


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `thinkrl ARGUMENTS` in so many processes; the exit code of the first that failed."""
    # -P: like the thinkrl command, without the current folder among the modules.
    command = [sys.executable, "-P", "-m", "thinkrl.grpo.cli", *arguments]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    running = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        ranks["LOCAL_WORLD_SIZE"] = processes
        environment = os.environ | place | {name: str(n) for name, n in ranks.items()}
        environment.setdefault("OMP_NUM_THREADS", "1")
        running.append(subprocess.Popen(command, env=environment))
    # Ctrl-C reaches the processes by itself: they save, and this one waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in running])
    return _wait(running)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; when one fails, the others, which would wait for it for ever, are ended."""
    failed, ended_at = 0, 0.0
    while any(process.poll() is None for process in running):
        codes = [process.returncode for process in running]
        if not failed and any(codes):
            failed, ended_at = next(code for code in codes if code), time.monotonic()
        if failed and time.monotonic() - ended_at > _GRACE_S:
            for process in running:
                process.kill()
        time.sleep(0.05)
    failed = failed or next((p.returncode for p in running if p.returncode), 0)
    return failed if failed >= 0 else 128 - failed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
