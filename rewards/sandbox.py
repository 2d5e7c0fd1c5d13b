"""A pool of warm sandboxes that run untrusted Python programs and say how they ended.

One lane is one thread with one sandbox for candidates and, once a test needs it, another for the
referee that runs test code. A sandbox that breaks, or that a program left dirty, is replaced.
Expected outputs are never sent to a candidate's sandbox: comparing is the caller's business.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import marshal
import math
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from .cgroup import ControlGroup
from .isolation import UNSAFE, IsolationError, Launcher, launchers
from .zygote_protocol import CANCELLED, OUT_OF_MEMORY, OUT_OF_TIME, REPLY

OUTPUT_BYTES = 16 << 20
_START_S, _GRACE_S = 30.0, 15.0
_PATIENCE = 2.0  # a program that the machine kept waiting may take this many times its wall time
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid
_Result = TypeVar("_Result")


class SandboxLost(RuntimeError):
    """A sandbox did not start, or ended in the middle of a test."""


@dataclass(frozen=True)
class Limits:
    """What one test may use."""

    wall_s: float = 6.0
    memory_mb: int = 512
    cpu_s: int | None = None  # None: the wall time, rounded up


@dataclass(frozen=True)
class Outcome:
    """How one run ended: its fate, and the bytes that it left."""

    fate: str  # "ended", "time_limit", "memory_limit", "output_limit", "crashed" or "cancelled"
    stdout: bytes
    stderr: bytes
    result: bytes
    wall_s: float
    memory_mb: float


def _memory_file(data: bytes = b"") -> int:
    """Return a new anonymous file that holds the data, read from its start."""
    descriptor = os.memfd_create("thinkrl")
    if data:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _contents(descriptor: int) -> bytes:
    size = min(os.fstat(descriptor).st_size, OUTPUT_BYTES)
    return os.pread(descriptor, size, 0) if size else b""


class Slot:
    """One started sandbox: runs one program at a time."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.dirty = False
        self._scratch = tempfile.mkdtemp(prefix="thinkrl-") if launcher is UNSAFE else None
        self._errors = os.memfd_create("thinkrl-errors")
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        argv, environment = launcher.command(other.fileno(), self._scratch or "/tmp")
        try:
            self._process = subprocess.Popen(
                argv,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[other.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            self._control.close()
            raise SandboxLost(f"{launcher.name}: {error}") from error
        finally:
            other.close()
        _SLOTS.add(self)
        self._group: ControlGroup | None = None
        self._memory_bytes = 0
        self.hello = self._wait_for_hello()
        if launcher is not UNSAFE:
            self._group = ControlGroup(self._zygote_pid)

    def _wait_for_hello(self) -> dict[str, Any]:
        self._control.settimeout(_START_S)
        try:
            space = socket.CMSG_SPACE(_CREDENTIALS.size)
            hello, extra, _, _ = self._control.recvmsg(4096, space)
            if hello:
                # The kernel tells the zygote's id as it is outside its namespace.
                self._zygote_pid = _CREDENTIALS.unpack(extra[0][2])[0]
                return json.loads(hello)
        except OSError:
            pass
        lines = _contents(self._errors).decode(errors="replace").strip().splitlines()
        self.close()
        raise SandboxLost(f"{self.launcher.name}: {lines[-1] if lines else 'did not start'}")

    def start(
        self,
        mode: str,
        task: dict[str, Any],
        *,
        limits: Limits,
        stdin: bytes = b"",
        channel: socket.socket | None = None,
    ) -> None:
        """Send one run: the program as a task, its stdin, and a socket to its referee if any."""
        job = {
            "mode": mode,
            "wall_s": limits.wall_s,
            "patience": _PATIENCE,
            "cpu_s": limits.cpu_s or math.ceil(limits.wall_s),
            "memory_bytes": limits.memory_mb << 20,
            "file_bytes": OUTPUT_BYTES,
        }
        if self._group and job["memory_bytes"] != self._memory_bytes:
            self._memory_bytes = job["memory_bytes"]
            self._group.limit_memory(self._memory_bytes)
        self._limits = limits
        stream_count = 3 if mode == "program" else 4
        task_fd = _memory_file(marshal.dumps(task))
        self._streams = [_memory_file(stdin), *(_memory_file() for _ in range(stream_count - 1))]
        descriptors = [*self._streams, *([channel.fileno()] if channel else []), task_fd]
        try:
            self._control.settimeout(limits.wall_s * _PATIENCE + _GRACE_S)
            socket.send_fds(self._control, [marshal.dumps(job)], descriptors)
        except OSError as error:
            self._drop_streams()
            raise SandboxLost(f"the sandbox has ended: {error}") from error
        finally:
            os.close(task_fd)

    def finish(self) -> Outcome:
        """Wait for the run to end; SandboxLost when the sandbox itself ended or hangs."""
        try:
            reply = self._control.recv(256)
            if len(reply) != REPLY.size:
                raise SandboxLost("the sandbox ended in the middle of a test")
            status, cause, wall_s, peak_bytes, self.dirty = REPLY.unpack(reply)
            stdout, stderr, *result = [_contents(fd) for fd in self._streams[1:]]
        except OSError as error:
            raise SandboxLost(f"no word from the sandbox: {error}") from error
        finally:
            self._drop_streams()
        fate = _fate(status, cause, wall_s, peak_bytes, stderr, self._limits)
        if max(len(stdout), len(stderr)) >= OUTPUT_BYTES and fate != "memory_limit":
            fate = "output_limit"
        return Outcome(fate, stdout, stderr, b"".join(result), wall_s, peak_bytes / (1 << 20))

    def cancel(self) -> None:
        """Have the running program killed; finish() must still be called."""
        with contextlib.suppress(OSError):
            self._control.send(b"cancel")

    def forget(self) -> None:
        """Let go of a sandbox that another process owns."""
        self._control.close()

    def _drop_streams(self) -> None:
        for descriptor in self._streams:
            os.close(descriptor)
        self._streams = []

    def close(self) -> None:
        """End the sandbox with everything in it and leave nothing behind."""
        _SLOTS.discard(self)
        self._control.close()  # a zygote leaves when its grader has gone
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._group:
            self._group.close()
        with contextlib.suppress(OSError):
            os.close(self._errors)
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)


_SLOTS: weakref.WeakSet[Slot] = weakref.WeakSet()


def _fate(
    status: int, cause: bytes, wall_s: float, peak_bytes: int, stderr: bytes, limits: Limits
) -> str:
    """Say how a run ended from what the zygote saw."""
    if cause == OUT_OF_TIME:
        return "time_limit"
    if cause == CANCELLED:
        return "cancelled"
    if cause == OUT_OF_MEMORY or peak_bytes > limits.memory_mb << 20:
        return "memory_limit"
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXFSZ:
        return "output_limit"
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and wall_s >= limits.wall_s):
        return "time_limit"
    if code == -signal.SIGKILL and peak_bytes > limits.memory_mb << 19:
        return "memory_limit"  # not killed by us but by the kernel, for want of memory
    if code > 0 and stderr[-2000:].strip().split(b"\n")[-1].startswith(b"MemoryError"):
        return "memory_limit"
    return "crashed" if code else "ended"


class Lane:
    """A candidate's sandbox and its referee's, started when first needed; used by one thread."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._slots: dict[str, Slot] = {}

    def run(
        self, mode: str, task: dict[str, Any], *, limits: Limits, stdin: bytes = b""
    ) -> Outcome:
        """Run a task as "program" or "functions"; SandboxLost when two sandboxes broke on it."""

        def once() -> Outcome:
            slot = self._slot("candidate")
            slot.start(mode, task, limits=limits, stdin=stdin)
            return slot.finish()

        return self._twice(once)

    def run_refereed(
        self, task: dict[str, Any], referee_task: dict[str, Any], *, limits: Limits
    ) -> tuple[Outcome, Outcome]:
        """Run test code against a program, each in its own sandbox; return (candidate, referee)."""
        cpu_s = math.ceil(limits.wall_s) + 1
        # The candidate's limit comes first, and takes the referee with it.
        referee_limits = Limits(limits.wall_s * _PATIENCE + 1, limits.memory_mb, cpu_s)

        def once() -> tuple[Outcome, Outcome]:
            candidate, judge = self._slot("candidate"), self._slot("referee")
            ours, theirs = socket.socketpair()
            with ours, theirs:
                candidate.start("calls", task, limits=limits, channel=theirs)
                judge.start("referee", referee_task, limits=referee_limits, channel=ours)
            verdict = judge.finish()
            candidate.cancel()  # it may have ended already, or may never
            return candidate.finish(), verdict

        return self._twice(once)

    def _slot(self, kind: str) -> Slot:
        slot = self._slots.get(kind)
        if slot is None or slot.dirty:
            self._discard(kind)
            slot = self._slots[kind] = Slot(self._launcher)
        return slot

    def _twice(self, once: Callable[[], _Result]) -> _Result:
        try:
            return once()
        except SandboxLost:
            self.close()
        try:
            return once()
        except SandboxLost:
            self.close()
            raise

    def _discard(self, kind: str) -> None:
        if slot := self._slots.pop(kind, None):
            slot.close()

    def close(self) -> None:
        """End the sandboxes of this lane."""
        for kind in list(self._slots):
            self._discard(kind)


class Pool:
    """As many lanes as processors, fed from one queue; safe to use from any thread."""

    def __init__(self, launcher: Launcher, *, lanes: int | None = None) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[Lane], Any], Future[Any]] | None]
        self._jobs = queue.SimpleQueue()
        # bubblewrap dies with the thread that started it, so lanes start their own sandboxes.
        self.lanes = lanes or len(os.sched_getaffinity(0))
        self._threads = [
            threading.Thread(target=self._work, args=(launcher,), daemon=True)
            for _ in range(self.lanes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[Lane], _Result]) -> Future[_Result]:
        """Have a free lane do the job."""
        future: Future[_Result] = Future()
        self._jobs.put((job, future))
        return future

    def _work(self, launcher: Launcher) -> None:
        lane = Lane(launcher)
        while item := self._jobs.get():
            job, future = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job(lane))
                except BaseException as error:
                    future.set_exception(error)
            del item, job, future
        lane.close()

    def close(self) -> None:
        """Let the lanes finish what they are at and end every sandbox."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


# --- which isolation holds ------------------------------------------------------------------

_CANARY = """
import colorsys, ctypes, json, os, socket, uuid
open("/dev/null").close()
def attempt(name, action):
    try:
        action()
    except OSError:
        return
    held.append(name)
held = []
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), name)
attempt("reading /etc/passwd", lambda: open("/etc/passwd").read())
attempt("reading /proc/1", lambda: open("/proc/1/status").read())
attempt("writing to /", lambda: open("/canary", "w"))
attempt("writing to the library", lambda: open(os.__file__, "a"))
attempt("changing a mode", lambda: os.chmod("/tmp", 0o777))
attempt("a socket", lambda: socket.socket().close())
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("a signal to the parent", lambda: os.kill(os.getppid(), 0))
attempt("a signal to all", lambda: os.kill(-1, 0))
attempt("ptrace", lambda: call("ptrace", 16, os.getppid(), None, None))
attempt("unshare", lambda: call("unshare", 0x10000000))
attempt("mount", lambda: call("mount", b"x", b"/tmp", b"tmpfs", 0, None))
if os.getuid() == 0:
    held.append("being root")
print(json.dumps(held))
"""


def _check(launcher: Launcher) -> str:
    """Start one sandbox, attack it, and describe it; SandboxLost when an attack succeeds."""
    lane = Lane(launcher)
    try:
        slot = lane._slot("candidate")
        if not slot.hello["seccomp"]:
            raise SandboxLost(f"{launcher.name}: no seccomp filter")
        task = {"source": _CANARY, "quiet_prompts": False}
        outcome = lane.run("program", task, limits=Limits(wall_s=20.0))
        if outcome.fate != "ended" or outcome.stdout.strip() != b"[]":
            found = (outcome.stdout or outcome.stderr[-300:]).decode(errors="replace").strip()
            raise SandboxLost(f"{launcher.name}: it does not hold: {found or outcome.fate}")
        landlock = slot.hello["landlock"]
        name = launcher.name + (" in a user namespace" if launcher.user_namespace else "")
        layer = f"Landlock ABI {landlock}" if landlock else "no Landlock"
        return f"{name}, {layer}, seccomp, resource limits"
    finally:
        lane.close()


@functools.cache
def _best() -> tuple[Launcher | None, str]:
    reasons = []
    for launcher in launchers():
        try:
            return launcher, _check(launcher)
        except (OSError, SandboxLost, subprocess.SubprocessError) as error:
            reasons.append(str(error))
    if not reasons:
        return None, f"{sys.platform} has no namespaces"
    return None, "; ".join(dict.fromkeys(reasons))


def isolation_level() -> str:
    """Describe the isolation that code runs under here, or say why there is none."""
    launcher, description = _best()
    return description if launcher else f"none ({description})"


_LOCK = threading.Lock()
_POOLS: dict[str, Pool] = {}


def pool(isolation: str) -> Pool:
    """Return this process's pool for an isolation, "required" or "unsafe".

    IsolationError when isolation is required and this machine offers none.
    """
    if isolation not in ("required", "unsafe"):
        raise IsolationError(f"isolation: {isolation!r} is neither 'required' nor 'unsafe'")
    if not sys.platform.startswith("linux"):
        raise IsolationError(f"isolation: code rewards need Linux, this is {sys.platform}")
    with _LOCK:
        if isolation not in _POOLS:
            launcher, description = (UNSAFE, "") if isolation == "unsafe" else _best()
            if launcher is None:
                raise IsolationError(
                    f"isolation: required, but none holds here ({description}); install bubblewrap,"
                    " allow user namespaces, or choose isolation: unsafe for code that you trust"
                )
            _POOLS[isolation] = Pool(launcher)
        return _POOLS[isolation]


def close_pools() -> None:
    """End every sandbox of this process; the next test starts new ones."""
    with _LOCK:
        pools = list(_POOLS.values())
        _POOLS.clear()
    for each in pools:
        each.close()


def _forget_pools() -> None:
    """In a forked process: the sandboxes belong to the parent, and must see it go."""
    global _LOCK
    _LOCK = threading.Lock()
    _POOLS.clear()
    for slot in list(_SLOTS):
        slot.forget()


atexit.register(close_pools)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
