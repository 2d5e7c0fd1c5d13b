"""The worker pool: results, limits of time and memory, reuse, threads, forks and event loops."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from thinkrl.rewards.workers import WorkerDied, WorkerError, WorkerPool, WorkerTimeout


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    workers = WorkerPool(2, memory_mb=512)
    workers.warm()
    yield workers
    workers.close()


def test_calls_reuse_one_worker(pool: WorkerPool) -> None:
    ids = {pool.call("os:getpid", timeout_s=10) for _ in range(5)}
    assert len(ids) == 1 and os.getpid() not in ids
    assert pool.call("math:gcd", 12, 18, timeout_s=10) == 6


def test_a_slow_call_is_killed_and_the_pool_goes_on(pool: WorkerPool) -> None:
    before = pool.call("os:getpid", timeout_s=10)
    with pytest.raises(WorkerTimeout):
        pool.call("time:sleep", 60, timeout_s=0.2)
    assert not psutil.pid_exists(before)
    assert pool.call("os:getpid", timeout_s=20) != before


def test_a_call_stuck_in_c_code_is_killed_too(pool: WorkerPool) -> None:
    with pytest.raises(WorkerTimeout):
        pool.call("math:factorial", 10**8, timeout_s=0.3)
    assert pool.call("math:gcd", 4, 6, timeout_s=20) == 2


def test_memory_is_limited(pool: WorkerPool) -> None:
    with pytest.raises(WorkerError):
        pool.call("builtins:bytearray", 2**31, timeout_s=10)
    assert pool.call("math:gcd", 4, 6, timeout_s=20) == 2


def test_a_crash_is_an_error_not_a_hang(pool: WorkerPool) -> None:
    with pytest.raises(WorkerDied):
        pool.call("os:abort", timeout_s=10)
    with pytest.raises(WorkerDied):
        pool.call("os:_exit", 0, timeout_s=10 + 10)
    assert pool.call("math:gcd", 4, 6, timeout_s=20) == 2


def test_an_exception_names_itself_and_keeps_the_worker(pool: WorkerPool) -> None:
    before = pool.call("os:getpid", timeout_s=10)
    with pytest.raises(WorkerError, match="ValueError: factorial"):
        pool.call("math:factorial", -1, timeout_s=10)
    with pytest.raises(WorkerError, match="ModuleNotFoundError"):
        pool.call("no_such_module:f", timeout_s=10)
    with pytest.raises(WorkerError, match="TypeError"):
        pool.call("builtins:object", timeout_s=10)  # no JSON
    assert pool.call("os:getpid", timeout_s=10) == before


def test_what_a_function_prints_is_no_reply(pool: WorkerPool) -> None:
    assert pool.call("builtins:print", '{"result": 5}', timeout_s=10) is None


def test_threads_share_the_pool(pool: WorkerPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: pool.call("math:factorial", n, timeout_s=30), range(40)))
    assert found[5] == 120 and len(found) == 40
    alive = [
        w for w in psutil.Process().children() if "thinkrl.rewards.workers" in " ".join(w.cmdline())
    ]
    assert len(alive) <= 2 + 2  # this pool's, and those of the maths reward


def test_an_event_loop_stays_free(pool: WorkerPool) -> None:
    async def run() -> int:
        ticks = 0
        call = asyncio.ensure_future(pool.acall("time:sleep", 0.3, timeout_s=20))
        while not call.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(run()) >= 3


def test_waiting_for_a_free_worker_is_part_of_the_time(pool: WorkerPool) -> None:
    busy = [
        threading.Thread(target=lambda: pool.call("time:sleep", 3, timeout_s=30)) for _ in range(2)
    ]
    for thread in busy:
        thread.start()
    time.sleep(0.5)
    with pytest.raises(WorkerTimeout):
        pool.call("math:gcd", 4, 6, timeout_s=0.2)
    for thread in busy:
        thread.join()


def test_a_forked_child_gets_its_own_workers(pool: WorkerPool) -> None:
    mine = pool.call("os:getpid", timeout_s=10)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    child = context.Process(target=lambda: sender.send(pool.call("os:getpid", timeout_s=30)))
    child.start()
    assert receiver.poll(40) and receiver.recv() != mine
    child.join(20)
    assert pool.call("os:getpid", timeout_s=10) == mine


def test_workers_are_replaced_after_their_calls() -> None:
    pool = WorkerPool(1, max_calls=3)
    ids = [pool.call("os:getpid", timeout_s=30) for _ in range(5)]
    assert len(set(ids)) == 2
    pool.close()


def test_close_ends_the_workers_and_the_pool_can_go_on() -> None:
    pool = WorkerPool(1)
    worker = pool.call("os:getpid", timeout_s=30)
    pool.close()
    assert not psutil.pid_exists(worker)
    assert pool.call("math:gcd", 4, 6, timeout_s=30) == 2
    pool.close()


def test_a_senseless_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size = 0"):
        WorkerPool(0)
