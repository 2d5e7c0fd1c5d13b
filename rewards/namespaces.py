"""Starts the zygote in namespaces of our own, where bubblewrap is not installed.

A script: it unshares user (for ordinary users), mount, pid, net, ipc, uts and cgroup namespaces,
builds a root of the interpreter alone, and becomes the zygote as pid 1 of the new pid namespace.
Runs on the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any, NoReturn

import zygote
import zygote_kernel as kernel

_NEW_NS, _NEW_CGROUP, _NEW_UTS, _NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ROOT = "/tmp"  # exists everywhere; covered in this mount namespace alone


def _unshare(*, user_namespace: bool, inside_uid: int) -> None:
    uid, gid = os.getuid(), os.getgid()
    flags = _NEW_NS | _NEW_CGROUP | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET
    kernel.unshare(flags | (_NEW_USER if user_namespace else 0))
    if user_namespace:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{inside_uid} {uid} 1"),
            ("gid_map", f"{inside_uid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _bind(source: int, target: str, *, folder: bool) -> None:
    """Bind an opened path read-only on a new mount point."""
    if folder:
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    kernel.mount(f"/proc/self/fd/{source}", target, "", _BIND | _REC)
    # A remount may not clear flags that an outer namespace has locked: repeat them.
    locked = os.statvfs(target).f_flag & (_NOSUID | _NODEV | _NOEXEC | 1024 | 2048)
    nodev = 0 if "/dev/" in target else _NODEV
    kernel.mount("", target, "", _REMOUNT | _BIND | _RDONLY | _NOSUID | nodev | locked)


def _build_root(config: dict[str, Any]) -> None:
    """Make a read-only root that holds the interpreter, five devices and nothing else."""
    os.umask(0o022)
    kernel.mount("", "/", "", _REC | _PRIVATE)
    paths = [*config["visible"], *(f"/dev/{name}" for name in _DEVICES)]
    sources = {path: os.open(path, os.O_PATH) for path in paths if os.path.exists(path)}
    kernel.mount("tmpfs", _ROOT, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path, source in sources.items():
        _bind(source, _ROOT + path, folder=os.path.isdir(path))
        os.close(source)
    for path in config["hidden"]:
        if os.path.isdir(_ROOT + path):
            kernel.mount("tmpfs", _ROOT + path, "tmpfs", _RDONLY | _NOSUID | _NODEV, "size=4k")
    for link, target in config["links"].items():
        if not os.path.lexists(_ROOT + link):
            os.symlink(target, _ROOT + link)
    for name in ("proc", config["scratch"].strip("/")):
        os.makedirs(f"{_ROOT}/{name}", exist_ok=True)
    with contextlib.suppress(OSError):  # not allowed where an outer container masks /proc
        kernel.mount("proc", _ROOT + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    kernel.pivot_root(_ROOT)
    kernel.mount("", "/", "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)


def main(config: dict[str, Any]) -> NoReturn:
    """Build the sandbox, fork its first process and wait for it.

    That process becomes the zygote: pid 1, whose end takes every process of the sandbox with it.
    """
    _unshare(user_namespace=config["user_namespace"], inside_uid=config["inside_uid"])
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _build_root(config)
            zygote.main(config)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(config["control"])
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
