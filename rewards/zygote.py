"""The warm process inside the sandbox: forks one limited child per test and reports how it ended.

It never reads a test: the task and the child's streams are descriptors that it hands on unread, so
nothing of one test is in memory when the next is forked. It starts as a script inside
an isolation that `isolation.py` built, locks every child down further, and ends when its control
socket closes. Standard library alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import sys
import time
from typing import Any, NamedTuple, NoReturn

import referee
import sandbox_child
import zygote_kernel as kernel
from zygote_protocol import CANCELLED, ENDED, OUT_OF_MEMORY, OUT_OF_TIME, REPLY

# Loaded once, so that a program's imports of them cost nothing.
_PRELOAD = (
    "abc array bisect cmath collections collections.abc contextlib copy dataclasses datetime "
    "decimal enum fractions functools heapq itertools math numbers operator queue random re "
    "statistics string threading time traceback types typing"
)
_HEADROOM = 1 << 30  # address space above the memory limit: thread stacks, arenas, libraries
_POLL_S = 0.02


class Guard(NamedTuple):
    """What every child is put under besides resource limits; None and False where it is missing."""

    ruleset: int | None
    program: bytes | None
    limit_processes: bool


def set_up(config: dict[str, Any]) -> Guard:
    """Finish the isolation: scratch file system, unprivileged user, no privileges to gain."""
    abi = kernel.landlock_abi() if config["isolated"] else 0
    if config["isolated"]:
        options = f"size={config['scratch_bytes']},nr_inodes=4096,mode=1777"
        kernel.mount("tmpfs", config["scratch"], "tmpfs", 2 | 4 | 8, options)  # nosuid nodev noexec
        if abi == 0:  # only Landlock keeps programs from looking around in /proc
            kernel.unmount("/proc")
    if config["uid"]:
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    if config["isolated"]:
        kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user had cleared it
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans come here to be killed
    ruleset = None
    if abi > 0:
        ruleset = kernel.landlock_ruleset(
            readable=config["readable"],
            writable=[config["scratch"]],
            devices=["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"],
        )
        # Out of the way of the descriptors that every child is given.
        ruleset = fcntl.fcntl(ruleset, fcntl.F_DUPFD_CLOEXEC, 100)
    program = kernel.seccomp_program() if config["isolated"] else None
    return Guard(ruleset, program, config["isolated"])


def _limit(job: dict[str, Any], *, processes: bool) -> None:
    """Set this process's resource limits; the wall clock is the parent's business."""
    space = job["memory_bytes"] + _HEADROOM
    hard_stack = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = 128 << 20 if hard_stack < 0 else min(hard_stack, 128 << 20)
    limits = [
        (resource.RLIMIT_AS, space, space),
        (resource.RLIMIT_CPU, job["cpu_s"], job["cpu_s"] + 1),
        (resource.RLIMIT_FSIZE, job["file_bytes"], job["file_bytes"]),
        (resource.RLIMIT_NOFILE, 128, 128),
        (resource.RLIMIT_CORE, 0, 0),
        # Deep recursion through C code needs the room that programming judges give.
        (resource.RLIMIT_STACK, stack, hard_stack),
    ]
    if processes:
        limits.append((resource.RLIMIT_NPROC, 256, 256))
    for which, soft, hard in limits:
        with contextlib.suppress(ValueError, OSError):  # a lower limit already holds
            resource.setrlimit(which, (soft, hard))


def _child(job: dict[str, Any], descriptors: list[int], guard: Guard, scratch: str) -> NoReturn:
    """Become the test: streams, limits, lock-down, then the task. Never returns."""
    try:
        os.setsid()
        task_fd, *streams = [os.dup2(fd, 20 + i) for i, fd in enumerate(descriptors)]
        for target, source in enumerate(streams):
            os.dup2(source, target)
        with open(task_fd, "rb", closefd=False) as file:
            task = json.loads(file.read())
        keep = len(streams)
        if guard.ruleset is not None:
            os.dup2(guard.ruleset, keep)
            kernel.landlock_restrict(keep)
        os.closerange(keep, 1 << 16)
        os.chdir(scratch)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # too much output ends the program
        _limit(job, processes=guard.limit_processes)
        sandbox_child.open_streams()
        if "random" in task.get("source", ""):
            random.seed()
        sys.set_int_max_str_digits(0)
        runner = {
            "program": sandbox_child.run_program,
            "function": sandbox_child.call_function,
            "calls": sandbox_child.serve_calls,
            "referee": referee.judge,
        }[job["mode"]]
        gc.enable()
        if guard.program is not None:
            kernel.seccomp_restrict(guard.program, pid=os.getpid())
        runner(task)
    except BaseException as error:
        os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(70)


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0  # no /proc here, or the process has just ended


def _time_left(pid: int, job: dict[str, Any], elapsed_s: float) -> float:
    """Return the wall time left, not counting what the machine let the program wait for a core.

    The wait is forgiven up to a limit of its own, so the end is certain on any machine.
    """
    left = job["wall_s"] - elapsed_s
    if left > 0 or elapsed_s > job["wall_s"] * job["patience"]:
        return left
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return left + int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return left


def _watch(pid: int, job: dict[str, Any], control: socket.socket) -> bytes:
    """Wait for the child to end or to pass a limit, or for the grader to lose interest."""
    pidfd = os.pidfd_open(pid)
    started = time.monotonic()
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.register(control, select.POLLIN)
    try:
        while (left := _time_left(pid, job, time.monotonic() - started)) > 0:
            ready = {fd for fd, _ in poller.poll(1000 * min(left, _POLL_S))}
            if pidfd in ready:
                return ENDED
            if ready:
                control.recv(16)  # any word during a test, or the end of the grader, cancels it
                return CANCELLED
            if _resident_bytes(pid) > job["memory_bytes"]:
                return OUT_OF_MEMORY
        return OUT_OF_TIME
    finally:
        os.close(pidfd)


def _kill_tree(pid: int) -> None:
    """Kill the child; where fork was allowed (unsafe mode), its group and orphans as well."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _reap_orphans() -> None:
    """Kill and reap whatever a test left to this subreaper."""
    for _ in range(10_000):
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
            task = f"/proc/self/task/{os.getpid()}/children"
            with open(task) as file:
                orphans = file.read().split()
        except (ChildProcessError, OSError):
            return
        for orphan in orphans:
            _kill_tree(int(orphan))
        time.sleep(0.001)


def _wipe(scratch: str) -> bool:
    """Empty the scratch folder; True when something is left."""
    try:
        for entry in os.scandir(scratch):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
        return bool(os.listdir(scratch))
    except (OSError, RecursionError):
        return True


def run(
    job: dict[str, Any], descriptors: list[int], guard: Guard, scratch: str, control: socket.socket
) -> bytes:
    """Fork one test, wait for its end, clean up after it and return the packed reply."""
    started = time.monotonic()
    # The C library's fork: this process has one thread and no locks held, and Python's hooks for
    # locks, threads and random numbers would cost more than the fork itself.
    pid = kernel.fork()
    if pid == 0:
        _child(job, descriptors, guard, scratch)
    if pid < 0:
        raise OSError("fork failed")
    for descriptor in descriptors:
        os.close(descriptor)
    cause = _watch(pid, job, control)
    if cause != ENDED or not guard.program:
        _kill_tree(pid)
    _, status, usage = os.wait4(pid, 0)
    if not guard.program:
        _reap_orphans()
    dirty = _wipe(scratch)
    return REPLY.pack(status, cause, time.monotonic() - started, usage.ru_maxrss * 1024, dirty)


def main(config: dict[str, Any]) -> NoReturn:
    """Serve tests from the control socket until it closes."""
    for name in _PRELOAD.split():
        __import__(name)
    control = socket.socket(fileno=fcntl.fcntl(config["control"], fcntl.F_DUPFD_CLOEXEC, 100))
    os.close(config["control"])
    guard = set_up(config)
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path = [path for path in sys.path if path != here]
    for name, module in list(sys.modules.items()):  # a program's own modules may have these names
        if os.path.dirname(getattr(module, "__file__", None) or "/") == here:
            del sys.modules[name]
    os.environ.clear()
    hello = {
        "landlock": kernel.landlock_abi() if guard.ruleset is not None else 0,
        "seccomp": guard.program is not None,
        "uid": os.getuid(),
        "pid": os.getpid(),
    }
    control.send(json.dumps(hello).encode())
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 8)
        if not message:
            os._exit(0)
        if descriptors:  # without any it is a late cancellation
            control.send(run(json.loads(message), descriptors, guard, config["scratch"], control))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
