"""Each way to isolate holds, as root and as an ordinary user; without any, code is refused."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from thinkrl.rewards import cgroup, isolation, sandbox
from thinkrl.rewards.code_tests import run_tests
from thinkrl.rewards.isolation import UNSAFE, IsolationError, Launcher
from thinkrl.rewards.sandbox import Lane, Limits, SandboxLost

from .sandbox_here import LEVEL, needs_isolation

LINUX = sys.platform.startswith("linux")
WAYS = [Launcher(name, user) for name in ("bubblewrap", "namespaces") for user in (False, True)]
ECHO = {"inputs": ["1\n"], "outputs": ["1\n"]}
WORDS = {"source": "print('hello')", "quiet_prompts": False}


@pytest.fixture(params=WAYS, ids=lambda w: w.name + ("-user" if w.user_namespace else "-root"))
def lane(request: pytest.FixtureRequest):
    way: Launcher = request.param
    if way not in isolation.launchers():
        pytest.skip(f"{way.name} is not for this user or not installed here")
    lane = Lane(way)
    try:
        lane.run("program", WORDS, limits=Limits())
    except SandboxLost as error:
        lane.close()
        pytest.skip(f"this machine refuses: {error}")
    yield lane
    lane.close()


def output(lane: Lane, source: str, *, stdin: bytes = b"", limits: Limits | None = None) -> str:
    task = {"source": source, "quiet_prompts": False}
    done = lane.run("program", task, limits=limits or Limits(20.0), stdin=stdin)
    assert done.fate == "ended", done
    return done.stdout.decode().strip()


def test_no_canary_escapes(lane: Lane) -> None:
    assert output(lane, sandbox._CANARY) == "[]"


@pytest.mark.skipif(not LINUX, reason="code rewards need Linux")
def test_a_missing_wall_is_seen() -> None:
    """The check is able to fail. Only its harmless attacks run here, outside any sandbox."""
    with pytest.raises(SandboxLost, match="no seccomp"):
        sandbox._check(UNSAFE)
    harmless = ("/etc/passwd", "/proc/1", "a socket", "fork", "signal to the parent")
    lines = [
        line
        for line in sandbox._CANARY.splitlines()
        if not line.startswith("attempt(") or any(word in line for word in harmless)
    ]
    lane = Lane(UNSAFE)
    try:
        held = output(lane, "\n".join(lines))
    finally:
        lane.close()
    assert all(word in held for word in harmless)


def test_what_a_program_sees(lane: Lane) -> None:
    seen = output(
        lane,
        "import os, resource, sys\n"
        "print(os.getuid() > 60000, dict(os.environ), os.getcwd())\n"
        "print(os.listdir('/tmp'), os.path.exists('/etc'), os.path.exists('/home'))\n"
        "print(sorted(os.path.basename(p) for p in sys.path))\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))\n"
        "import sqlite3, ssl, lzma, bz2, ctypes, unittest, asyncio\n",
    ).splitlines()
    assert seen[0] == "True {} /tmp"
    assert seen[1] == "[] False False"
    assert not any("site-packages" in path for path in seen)
    assert seen[3] == "(0, 0)"


def test_limits_hold(lane: Lane) -> None:
    short = Limits(0.3, 64)
    for source, fate in (
        ("while True: pass", "time_limit"),
        ("import time; time.sleep(60)", "time_limit"),
        ("x = []\nwhile True: x.append('x' * 100000 + str(len(x)))", "memory_limit"),
        ("while True: print('x' * 100000)", "output_limit"),
        ("raise SystemExit(3)", "crashed"),
    ):
        limits = short if fate == "time_limit" else Limits(20.0, 64)
        task = {"source": source, "quiet_prompts": False}
        assert lane.run("program", task, limits=limits).fate == fate
    assert output(lane, "print(input())", stdin=b"next\n") == "next"


def test_programs_are_kept_apart_from_earlier_ones(lane: Lane) -> None:
    output(lane, "import math, os\nmath.mark = 1\nopen('mark', 'w').close()\nos.mkdir('d')")
    look = "import math, os\nprint(hasattr(math, 'mark'), os.listdir('.'))"
    assert output(lane, look) == "False []"


def test_a_broken_sandbox_is_replaced(lane: Lane) -> None:
    slot = lane._slot("candidate")
    slot._process.kill()
    slot._process.wait()
    assert output(lane, "print(1)") == "1"


GRADER = """
import os, sys, threading, time
from thinkrl.rewards.code_tests import run_tests
from thinkrl.rewards import sandbox
print(run_tests("print(input())", {"inputs": ["1"], "outputs": ["1"]}).status)
print(sandbox.isolation_level(), flush=True)
slots = list(sandbox._SLOTS)
print(*[slot._process.pid for slot in slots], flush=True)
if len(sys.argv) > 1:
    loop = {"inputs": [""], "outputs": [""], "time_limit_s": 100}
    threading.Thread(target=run_tests, args=("while True: pass", loop), daemon=True).start()
    time.sleep(100)
"""


@needs_isolation
def test_control_groups_are_removed_with_their_sandbox() -> None:
    def groups() -> list[str]:
        return [
            str(path)
            for folder in cgroup._own_folders().values()
            for path in folder.glob(f"thinkrl-{os.getpid()}-*")
        ]

    sandbox.close_pools()
    assert run_tests("print(input())", ECHO).status == "passed"
    slots = list(sandbox._SLOTS)
    made = [str(folder) for slot in slots if slot._group for folder in slot._group._folders]
    assert sorted(groups()) == sorted(made)
    for folder in made:
        assert Path(folder, "cgroup.procs").read_text().split()
    sandbox.close_pools()
    assert groups() == []


def gone(pids: list[int]) -> bool:
    def ended(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    for _ in range(200):
        if all(map(ended, pids)):
            return True
        time.sleep(0.05)
    return False


def descendants(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()[1:]]
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in pairs if its_parent == parent]
    return found[1:]


@needs_isolation
@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_nothing_outlives_a_killed_grader() -> None:
    command = [sys.executable, "-c", GRADER, "loop"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as grader:
        assert grader.stdout is not None
        assert grader.stdout.readline() == "passed\n"
        grader.stdout.readline()
        grader.stdout.readline()
        time.sleep(0.5)  # the endless program runs by now
        family = descendants(grader.pid)
        assert len(family) >= 2
        grader.send_signal(signal.SIGKILL)
        grader.wait()
    assert gone(family)


@needs_isolation
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_sandboxes_of_its_own() -> None:
    assert run_tests("print(input())", ECHO).status == "passed"
    code = (
        "import os\n"
        "from thinkrl.rewards.code_tests import run_tests\n"
        f"tests = {ECHO!r}\n"
        "assert run_tests('print(input())', tests).status == 'passed'\n"
        "pid = os.fork()\n"
        "status = run_tests('print(input())', tests).status\n"
        "assert status == 'passed', status\n"
        "if pid == 0: os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def readable_python() -> str | None:
    """Return a Python of ours that any user may start."""
    for path in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3"):
        real = Path(path).resolve()
        open_to_all = all(p.stat().st_mode & stat.S_IXOTH for p in [real, *real.parents])
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        if open_to_all and real.name.endswith(version):
            return str(real)
    return None


@pytest.mark.skipif(not LINUX or os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("hidden", [False, True], ids=["bubblewrap", "namespaces"])
def test_an_ordinary_user_is_isolated_too(tmp_path: Path, root: Path, hidden: bool) -> None:
    python = readable_python()
    if python is None:
        pytest.skip("no Python of this version that other users may start")
    if not hidden and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    place = Path("/var/tmp") / f"thinkrl-{os.getpid()}-{hidden}"
    shutil.copytree(root / "rewards", place / "thinkrl" / "rewards")
    subprocess.run(["chmod", "-R", "a+rX", str(place)], check=True)
    try:
        done = subprocess.run(
            [python, "-c", GRADER],
            env={"PYTHONPATH": str(place), "PATH": str(tmp_path) if hidden else "/usr/bin:/bin"},
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        shutil.rmtree(place)
    if "isolation: required" in done.stderr:
        pytest.skip(f"ordinary users have no isolation here: {done.stderr.splitlines()[-1]}")
    assert done.stdout.startswith("passed\n"), done.stderr
    way = "namespaces" if hidden else "bubblewrap"
    assert f"{way} in a user namespace" in done.stdout


def test_without_isolation_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_best", lambda: (None, "bwrap: not found"))
    monkeypatch.setattr(sandbox, "_POOLS", {})
    with pytest.raises(IsolationError) as raised:
        run_tests("print(1)", ECHO)
    message = str(raised.value)
    assert "\n" not in message
    assert ("bwrap: not found" in message and "isolation: unsafe" in message) or not LINUX
    assert sandbox.isolation_level() == "none (bwrap: not found)"


def test_a_launcher_that_does_not_hold_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    if LEVEL.startswith("none"):
        pytest.skip(f"this machine offers no isolation: {LEVEL}")
    working = sandbox._best()[0]
    assert working is not None
    sandbox._best.cache_clear()
    monkeypatch.setattr(sandbox, "launchers", lambda: [UNSAFE, working])
    try:
        assert sandbox._best()[0] == working
        sandbox._best.cache_clear()
        monkeypatch.setattr(sandbox, "launchers", lambda: [UNSAFE])
        assert sandbox._best() == (None, "unsafe: no seccomp filter")
    finally:
        sandbox._best.cache_clear()


@pytest.mark.skipif(not LINUX, reason="code rewards need Linux")
def test_unsafe_runs_without_isolation_and_still_kills_the_tree() -> None:
    assert run_tests("print(input())", ECHO, isolation="unsafe").status == "passed"
    mark = 100_000 + os.getpid()
    code = (
        "import os, time\n"
        f"for _ in range(3):\n    if os.fork() == 0:\n        os.setsid(); time.sleep({mark})\n"
        "print(input(), flush=True)\ntime.sleep(100)"
    )
    tests = ECHO | {"time_limit_s": 0.5}
    before = set(descendants(os.getpid()))
    assert run_tests(code, tests, isolation="unsafe").status == "time_limit"
    sandbox._POOLS["unsafe"].close()
    del sandbox._POOLS["unsafe"]
    assert gone([pid for pid in descendants(os.getpid()) if pid not in before])
