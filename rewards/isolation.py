"""Which isolation this machine offers, and the command that starts a zygote in it.

In order: bubblewrap where it is installed, then namespaces of our own. Root builds the sandbox
with its privileges and hands it to a user id that nothing else has; ordinary users do it in a user
namespace. Both add Landlock, seccomp and resource limits.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRATCH_BYTES = 64 << 20
_HERE = Path(__file__).resolve().parent
_APP = "/app"
_SCRIPTS = (
    "zygote.py",
    "zygote_kernel.py",
    "zygote_protocol.py",
    "sandbox_child.py",
    "plain_data.py",
    "referee.py",
    "namespaces.py",
)
_STREAMS = ("stdin", "stdout", "stderr")
_PYTHON_FLAGS = ("-s", "-S", "-P", "-B", "-X", "utf8")
_PROBE = """
import importlib, json, os, sys, sysconfig
for name in ("bz2", "ctypes", "decimal", "hashlib", "lzma", "sqlite3", "ssl", "zlib"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
with open("/proc/self/maps") as maps:
    mapped = {line.split(None, 5)[-1].strip() for line in maps}
paths = sysconfig.get_paths()
print(json.dumps({
    "libraries": sorted({os.path.dirname(p) for p in mapped if ".so" in os.path.basename(p)}),
    "stdlib": sorted({paths["stdlib"], paths["platstdlib"]}),
    "packages": sorted({paths["purelib"], paths["platlib"]}),
}))
"""


class IsolationError(ValueError):
    """No isolation holds here and none was waived."""


@dataclass(frozen=True)
class Interpreter:
    """The files that a Python needs to run, and nothing more."""

    executable: str
    visible: tuple[str, ...]
    hidden: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    library_path: str


@functools.cache
def interpreter() -> Interpreter:
    """Find this Python's base interpreter, its standard library and its shared libraries."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    command = [executable, *_PYTHON_FLAGS, "-c", _PROBE]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, env={}).stdout)
    links = {"/dev/fd": "/proc/self/fd", "/dev/shm": "/tmp"}
    links |= {f"/dev/{name}": f"/proc/self/fd/{i}" for i, name in enumerate(_STREAMS)}
    visible = [executable, *found["stdlib"], *found["libraries"]]
    for path in ("/lib", "/lib64", "/usr/lib64"):
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif path != "/lib" and os.path.isdir(path):
            visible.append(path)  # holds the dynamic loader
    libraries = [path for path in found["libraries"] if "lib-dynload" not in path]
    return Interpreter(
        executable=executable,
        visible=tuple(_without_nested(visible)),
        hidden=tuple(found["packages"]),
        links=tuple(links.items()),
        library_path=":".join(libraries),
    )


def _without_nested(paths: list[str]) -> list[str]:
    """Return the existing paths, leaving out those inside another of them."""
    kept: list[str] = []
    for path in sorted({path for path in paths if os.path.exists(path)}):
        if not any(path.startswith(outer + "/") for outer in kept):
            kept.append(path)
    return kept


@dataclass(frozen=True)
class Launcher:
    """One way to start a zygote."""

    name: str  # "bubblewrap", "namespaces" or "unsafe"
    user_namespace: bool

    def command(self, control: int, scratch: str) -> tuple[list[str], dict[str, str]]:
        """Return argv and environment; control is the descriptor that the zygote serves."""
        python = interpreter()
        isolated = self.name != "unsafe"
        app = _APP if self.name == "bubblewrap" else str(_HERE)
        config: dict[str, Any] = {
            "control": control,
            "scratch": scratch,
            "scratch_bytes": SCRATCH_BYTES,
            "isolated": isolated,
            # An id of its own keeps root's sandboxes apart: from the system and from each other.
            "uid": 0 if self.user_namespace or not isolated else (1 << 30) + secrets.randbits(24),
            "inside_uid": 65534,
            "user_namespace": self.user_namespace,
            "readable": [path for path in python.visible if path != python.executable],
            "visible": python.visible,
            "hidden": python.hidden,
            "links": dict(python.links),
        }
        script = "namespaces.py" if self.name == "namespaces" else "zygote.py"
        argv = [python.executable, *_PYTHON_FLAGS, f"{app}/{script}", json.dumps(config)]
        # A fixed hash seed makes a program's verdict the same every time.
        environment = {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "2"}
        environment["LD_LIBRARY_PATH"] = python.library_path
        if self.name == "bubblewrap":
            return [*self._bubblewrap(environment), "--", *argv], {}
        # -P keeps the script's folder off the path; the zygote's own modules are there.
        return argv, environment | {"PYTHONPATH": app}

    def _bubblewrap(self, environment: dict[str, str]) -> list[str]:
        python = interpreter()
        words = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session"]
        words += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        words += ["--unshare-cgroup-try", "--hostname", "sandbox", "--cap-drop", "ALL"]
        capabilities = ["CAP_SYS_ADMIN", "CAP_SETPCAP"]  # given up before the first test
        if self.user_namespace:
            words += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
        else:
            capabilities += ["CAP_SETUID", "CAP_SETGID"]
        for capability in capabilities:
            words += ["--cap-add", capability]
        # Parents that bubblewrap makes by itself are closed to other users.
        inside = [*python.visible, f"{_APP}/x", "/dev/x"]
        parents = {parent for path in inside for parent in Path(path).parents}
        for parent in sorted(map(str, parents - {Path("/")})):
            words += ["--dir", parent]
        for path in python.visible:
            words += ["--ro-bind", path, path]
        for path in filter(os.path.isdir, python.hidden):
            words += ["--tmpfs", path, "--remount-ro", path]
        for name in _SCRIPTS:
            words += ["--ro-bind", str(_HERE / name), f"{_APP}/{name}"]
        for name in ("null", "zero", "full", "random", "urandom"):
            words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        for link, target in python.links:
            words += ["--symlink", target, link]
        words += ["--proc", "/proc", "--dir", "/tmp", "--remount-ro", "/", "--clearenv"]
        for name, value in (environment | {"PYTHONPATH": _APP}).items():
            words += ["--setenv", name, value]
        return words


def launchers() -> list[Launcher]:
    """Return the isolating ways to try here, the preferred one first."""
    if not sys.platform.startswith("linux"):
        return []
    modes = (False, True) if os.getuid() == 0 else (True,)
    names = ("bubblewrap", "namespaces") if shutil.which("bwrap") else ("namespaces",)
    return [Launcher(name, mode) for name in names for mode in modes]


UNSAFE = Launcher("unsafe", False)
