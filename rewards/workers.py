"""A pool of worker processes that can be killed: for work that may be slow, eat memory or crash.

Usable from any thread, process or event loop: the caller waits on pipes and never sets a signal.
A worker is a fresh interpreter (no fork of the caller), limited in memory; a call that overruns
its time kills its worker, and the next call gets a new one. Arguments and results travel as
JSON, so a worker cannot hand code back to the caller.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from importlib import import_module
from typing import Any

START_S = 20.0  # for an interpreter to import what it needs
MAX_MESSAGE = 16 * 2**20


class WorkerError(Exception):
    """The call failed in the worker: an exception there, or the worker died."""


class WorkerTimeout(WorkerError):
    """The call overran its time; its worker was killed."""


class WorkerDied(WorkerError):
    """The worker's process ended: out of memory, or a crash."""


class Worker:
    """One child process that serves one call at a time."""

    def __init__(self, *, memory_mb: int, preload: tuple[str, ...]):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        environment["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, "-m", __name__, str(memory_mb), *preload]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            close_fds=True,
            start_new_session=True,  # a terminal's Ctrl-C is for the caller
        )
        self.served = 0
        self.ready = False
        self.in_call = False  # also after a call that did not end

    def call(self, target: str, arguments: list[Any], *, deadline: float) -> Any:
        """Run `module:function` with these JSON arguments. Raises WorkerTimeout or WorkerError."""
        if not self.ready:
            self._receive(deadline)  # the worker says when it is up
            self.ready = True
        self.served += 1
        self.in_call = True
        message = json.dumps([target, arguments, deadline - time.monotonic()]).encode() + b"\n"
        self._send(message, deadline)
        reply = json.loads(self._receive(deadline))
        self.in_call = False
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply["result"]

    def _send(self, message: bytes, deadline: float) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        sent = 0
        while sent < len(message):
            if not _wait(pipe.fileno(), select.POLLOUT, deadline):
                raise WorkerTimeout("timeout")
            try:
                sent += os.write(pipe.fileno(), message[sent : sent + 65536])
            except BlockingIOError:
                continue
            except OSError:
                raise WorkerDied("the worker died") from None

    def _receive(self, deadline: float) -> bytes:
        pipe = self.process.stdout
        assert pipe is not None
        received = bytearray()
        while not received.endswith(b"\n"):
            if not _wait(pipe.fileno(), select.POLLIN, deadline):
                raise WorkerTimeout("timeout")
            chunk = os.read(pipe.fileno(), 65536)
            if not chunk:
                raise WorkerDied("the worker died: out of memory, or crashed")
            received += chunk
            if len(received) > MAX_MESSAGE:
                raise WorkerError("the worker's reply is too long")
        return bytes(received)

    def kill(self) -> None:
        """End the process and reap it."""
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()


def _wait(fd: int, events: int, deadline: float) -> bool:
    poller = select.poll()  # select() fails for descriptors above 1023
    poller.register(fd, events)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))


class WorkerPool:
    """Up to `size` workers, started when first needed and reused.

    `preload` names modules that each worker imports at its start. A worker is replaced after
    `max_calls` calls, so that caches do not grow without end.
    """

    def __init__(
        self,
        size: int = 2,
        *,
        memory_mb: int = 1024,
        preload: tuple[str, ...] = (),
        max_calls: int = 2000,
    ):
        if size < 1:
            raise ValueError(f"WorkerPool: size = {size}; give 1 or more")
        self.size = size
        self.memory_mb = memory_mb
        self.preload = preload
        self.max_calls = max_calls
        self._reset()
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self.close)

    def _reset(self) -> None:
        """Forget the workers: a forked child must not talk to its parent's."""
        self._idle: list[Worker] = []
        self._busy = 0
        self._condition = threading.Condition()

    def call(self, target: str, *arguments: Any, timeout_s: float) -> Any:
        """The result of `module:function` on these JSON arguments, computed in a worker.

        Raises WorkerTimeout when it takes longer than `timeout_s` (waiting for a free worker
        included), WorkerError when it raises or its process dies.
        """
        deadline = time.monotonic() + timeout_s
        worker = self._acquire(deadline)
        try:
            result = worker.call(target, list(arguments), deadline=deadline)
        except WorkerError as error:
            # a worker that is still starting, or whose function raised, is as good as before
            self._release(worker, keep=not (worker.in_call or isinstance(error, WorkerDied)))
            raise
        except BaseException:
            self._release(worker, keep=False)
            raise
        self._release(worker, keep=worker.served < self.max_calls)
        return result

    async def acall(self, target: str, *arguments: Any, timeout_s: float) -> Any:
        """`call` for an event loop, which stays free meanwhile."""
        return await asyncio.to_thread(self.call, target, *arguments, timeout_s=timeout_s)

    def warm(self) -> None:
        """Have one worker up, so that the next call does not wait for its start."""
        with self._condition:
            if any(worker.ready and worker.process.poll() is None for worker in self._idle):
                return
        self.call("builtins:len", "", timeout_s=START_S)

    def _acquire(self, deadline: float) -> Worker:
        with self._condition:
            while not self._idle and self._busy >= self.size:
                if not self._condition.wait(max(0.0, deadline - time.monotonic())):
                    raise WorkerTimeout("timeout: no worker was free")
            self._busy += 1
            while self._idle:
                worker = self._idle.pop()
                if worker.process.poll() is None:
                    return worker
                worker.kill()
        try:
            return Worker(memory_mb=self.memory_mb, preload=self.preload)
        except BaseException:
            with self._condition:
                self._busy -= 1
                self._condition.notify()
            raise

    def _release(self, worker: Worker, *, keep: bool) -> None:
        if not keep:
            worker.kill()
        with self._condition:
            self._busy -= 1
            if keep:
                self._idle.append(worker)
            self._condition.notify()

    def close(self) -> None:
        """End the idle workers. The pool can be used again afterwards."""
        with self._condition:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()


# ---- in the worker


def resolve(target: str) -> Any:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def serve(memory_mb: int, preload: list[str]) -> None:
    """Answer calls from standard input until it closes."""
    import resource
    import signal

    for module in preload:
        import_module(module)
    if sys.platform == "linux":
        limit = memory_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the called function prints is no reply
    replies.write(b"{}\n")
    replies.flush()
    for line in requests:
        target, arguments, timeout_s = json.loads(line)
        # ends this worker should its caller be gone; the caller itself kills earlier
        signal.setitimer(signal.ITIMER_REAL, max(0.1, timeout_s) + 5)
        try:
            reply = json.dumps({"result": resolve(target)(*arguments)})
        except MemoryError:
            os._exit(1)
        except BaseException as error:
            reply = json.dumps({"error": f"{type(error).__name__}: {error}"[:500]})
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(reply.encode() + b"\n")
        replies.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])
