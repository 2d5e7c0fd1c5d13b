"""The warm process inside the sandbox: forks one limited child per test and reports how it ended.

It never reads a test: the task and the child's streams are descriptors that it hands on unread, so
nothing of one test is in memory when the next is forked. It starts as a script inside
an isolation that `isolation.py` built, locks every child down further, and ends when its control
socket closes. Standard library alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import json
import marshal
import os
import random
import resource
import select
import shutil
import signal
import site
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
    """What every child is put under besides resource limits; None where it is missing."""

    ruleset: int | None
    filter: kernel.SeccompFilter | None


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
    _limit_all_tests(processes=config["isolated"])
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # too much output ends a program
    return Guard(ruleset, kernel.SeccompFilter() if config["isolated"] else None)


@functools.cache
def _limits(memory_bytes: int, cpu_s: int, file_bytes: int) -> list[tuple[int, tuple[int, int]]]:
    """Return a test's resource limits; the wall clock is this process's business."""
    wanted = {
        resource.RLIMIT_AS: (memory_bytes + _HEADROOM, memory_bytes + _HEADROOM),
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),
        resource.RLIMIT_FSIZE: (file_bytes, file_bytes),
    }
    return [(which, _within(which, *pair)) for which, pair in wanted.items()]


def _within(which: int, soft: int, hard: int) -> tuple[int, int]:
    """Return the limits, lowered to the hard limit that already holds."""
    most = resource.getrlimit(which)[1]
    if most < 0:
        return soft, hard
    return (most if soft < 0 else min(soft, most)), (most if hard < 0 else min(hard, most))


def _limit_all_tests(*, processes: bool) -> None:
    """Set the limits that every test has; they do this process no harm."""
    # Deep recursion through C code needs the room that programming judges give.
    limits = [(resource.RLIMIT_CORE, 0, 0), (resource.RLIMIT_STACK, 128 << 20, -1)]
    limits.append((resource.RLIMIT_NOFILE, 128, 256))
    if processes:
        limits.append((resource.RLIMIT_NPROC, 256, 256))
    for which, soft, hard in limits:
        resource.setrlimit(which, _within(which, soft, hard))


def _child(job: dict[str, Any], descriptors: list[int], guard: Guard) -> NoReturn:
    """Become the test: streams, limits, lock-down, then the task. Never returns.

    Every page that this touches is copied, so it does little, and nothing that can be done before.
    """
    try:
        os.setsid()
        *streams, task_fd = descriptors
        for target, source in enumerate(streams):  # each source lies above its target
            os.dup2(source, target)
        task = marshal.loads(os.pread(task_fd, os.fstat(task_fd).st_size, 0))
        if guard.ruleset is not None:
            kernel.landlock_restrict(guard.ruleset)
        os.closerange(len(streams), 1 << 16)
        for which, pair in _limits(job["memory_bytes"], job["cpu_s"], job["file_bytes"]):
            resource.setrlimit(which, pair)
        if "random" in task.get("source", ""):
            random.seed()
        gc.enable()
        if guard.filter is not None:
            guard.filter.restrict(os.getpid())
        _RUNNERS[job["mode"]](task)
    except BaseException as error:
        os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(70)


_RUNNERS = {
    "program": sandbox_child.run_program,
    "functions": sandbox_child.call_functions,
    "calls": sandbox_child.serve_calls,
    "referee": referee.judge,
}


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
        _child(job, descriptors, guard)
    if pid < 0:
        raise OSError("fork failed")
    for descriptor in descriptors:
        os.close(descriptor)
    cause = _watch(pid, job, control)
    if cause != ENDED or guard.filter is None:
        _kill_tree(pid)
    _, status, usage = os.wait4(pid, 0)
    if guard.filter is None:
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
    for add_names in (site.setquit, site.setcopyright, site.sethelper):
        add_names()  # what a start without -S would have done
    os.environ.clear()
    os.chdir(config["scratch"])
    sys.set_int_max_str_digits(0)
    sandbox_child.open_streams()
    hello = {
        "landlock": kernel.landlock_abi() if guard.ruleset is not None else 0,
        "seccomp": guard.filter is not None,
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
            control.send(
                run(marshal.loads(message), descriptors, guard, config["scratch"], control)
            )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
