"""Landlock, seccomp and mount calls that the sandbox makes through ctypes.

Runs inside the sandbox before any untrusted code, on the standard library alone. Sources: Linux
uapi headers (landlock.h, seccomp.h, filter.h, asm/unistd_64.h, asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)
fork = ctypes.PyDLL(None).fork

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = (
    1,
    4,
    22,
    24,
    38,
)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, argument: int = 0) -> None:
    """Call prctl(2) with one argument; OSError when the kernel refuses."""
    _checked(_LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), f"prctl {option}")


def unshare(flags: int) -> None:
    """Call unshare(2); OSError when the kernel refuses."""
    _checked(_LIBC.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Call mount(2); OSError when the kernel refuses."""
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags))
    _checked(_LIBC.mount(*arguments, data.encode()), f"mount {kind or 'bind'} on {target}")


def unmount(target: str) -> None:
    """Detach a mount; nothing happens where none is."""
    _LIBC.umount2(target.encode(), 2)


def pivot_root(new_root: str) -> None:
    """Make new_root the root of this mount namespace and let go of the old one."""
    os.chdir(new_root)
    number = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    _checked(_LIBC.syscall(number, b".", b"."), "pivot_root")
    _checked(_LIBC.umount2(b".", 2), "umount2")  # MNT_DETACH: the old root lies over the new one
    os.chdir("/")


def drop_capabilities() -> None:
    """Empty the bounding, permitted, effective and inheritable capability sets."""
    for capability in range(64):
        if _LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # past the last capability of this kernel, or not allowed to (none are held)
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    _checked(_LIBC.capset(header, bytes(24)), "capset")


# --- Landlock -------------------------------------------------------------------------------

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 16, 32, 128, 256, 4096
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_SCRATCH = (
    _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG
) | (_MAKE_SYM | _REFER | _TRUNCATE)
_FS_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}


def landlock_abi() -> int:
    """Return the Landlock ABI version of this kernel; 0 where there is none."""
    return max(0, _LIBC.syscall(444, None, ctypes.c_size_t(0), 1))


def landlock_ruleset(*, readable: list[str], writable: list[str], devices: list[str]) -> int:
    """Build a ruleset and return its descriptor: everything not named is denied.

    Readable folders may be read, writable ones hold a program's scratch files, devices are read
    and written. TCP, abstract sockets and signals to other processes are denied where the ABI can.
    """
    abi = landlock_abi()
    handled = (1 << _FS_RIGHTS_OF_ABI.get(abi, 16)) - 1
    attributes = struct.pack("<QQQ", handled, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    size = ctypes.c_size_t(len(attributes))
    ruleset = _checked(_LIBC.syscall(444, attributes, size, 0), "landlock")
    for paths, rights in (
        (readable, _READ_FILE | _READ_DIR),
        (writable, _SCRATCH),
        (devices, _READ_FILE | _WRITE_FILE),
    ):
        for path in filter(os.path.exists, paths):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = rights & handled
            if not os.path.isdir(path):
                allowed &= _READ_FILE | _WRITE_FILE
            rule = struct.pack("<Qi", allowed, descriptor)
            _checked(_LIBC.syscall(445, ruleset, 1, rule, 0), f"landlock rule {path}")
            os.close(descriptor)
    return ruleset


def landlock_restrict(ruleset: int) -> None:
    """Put this thread and its future children under the ruleset; needs no_new_privs."""
    _checked(_LIBC.syscall(446, ruleset, 0), "landlock_restrict_self")


# --- seccomp --------------------------------------------------------------------------------

# What CPython, glibc, threads, asyncio and ctypes need. Everything else gets EPERM: fork, exec,
# sockets, ptrace, mounts, keys, System V IPC, chmod and the rest.
_ALLOWED = {
    "x86_64": (
        "0-15 17-26 28 32-40 44-48 51-52 54-55 60-61 63 73-89 95-100 102 104 107-108 110-111 115 "
        "118 120-121 124 127-128 130-131 137-138 140 143 145-147 158 160 186-187 201-202 204 213 "
        "217-219 221-226 228-233 247 257-258 262-267 269-271 273-274 281 283-287 290-293 295-296 "
        "309 316 318 324 326-328 332 334 436 439 441"
    ),
    "aarch64": (
        "17 19-24 32 34-38 43-50 56-57 59 61-73 78-80 82-83 85-87 93-96 98-103 107-111 113-115 "
        "120-121 123-126 128 132-137 139 141 148 150 153 155-156 158 160 163-166 168-169 172-179 "
        "204-215 216 222-223 226-227 233 260 276 278 283 285-287 291 293 436 439 441"
    ),
}
_CHECKED = {  # name: (x86_64, aarch64), decided by an argument
    "clone": (56, 220),
    "clone3": (435, 435),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "socketpair": (53, 199),
    "prctl": (157, 167),
}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _GO, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x05, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_DENY = _ERRNO | errno.EPERM
_CLONE_THREAD = 0x10000
# F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ: signals to others, memory
_FCNTL_DENIED = (8, 10, 15, 1024, 1026, 1031)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL_ALLOWED = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_PRCTL_ALLOWED = (3, 15, 16)  # PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME
_OWN_PID = 0x7E57_71D0  # stands for the process id until it is known

_Instructions = list[tuple[int, int, int, int]]


def _argument_is(
    index: int, values: tuple[int, ...], *, then: int, otherwise: int
) -> _Instructions:
    """Return code that compares one argument's low 32 bits with the values."""
    tests = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
    load = (_LOAD, 0, 0, 16 + 8 * index)
    return [load, *tests, (_RETURN, 0, 0, otherwise), (_RETURN, 0, 0, then)]


def _argument_checks() -> dict[str, _Instructions]:
    own = (_OWN_PID,)
    return {
        "clone": [
            (_LOAD, 0, 0, 16),
            (_ANY_BIT, 0, 1, _CLONE_THREAD),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _DENY),
        ],
        "clone3": [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)],  # glibc then falls back to clone
        "kill": _argument_is(0, own, then=_ALLOW, otherwise=_DENY),
        "tgkill": _argument_is(0, own, then=_ALLOW, otherwise=_DENY),
        "prlimit64": _argument_is(0, (0, *own), then=_ALLOW, otherwise=_DENY),
        "fcntl": _argument_is(1, _FCNTL_DENIED, then=_DENY, otherwise=_ALLOW),
        "ioctl": _argument_is(1, _IOCTL_ALLOWED, then=_ALLOW, otherwise=_ERRNO | errno.ENOTTY),
        "socketpair": _argument_is(0, (1,), then=_ALLOW, otherwise=_DENY),  # AF_UNIX
        "prctl": _argument_is(0, _PRCTL_ALLOWED, then=_ALLOW, otherwise=_DENY),
    }


def _segments(machine: str) -> list[tuple[int, _Instructions]]:
    """Return (first number, what to do) for the whole number line, ascending."""
    allow: _Instructions = [(_RETURN, 0, 0, _ALLOW)]
    deny: _Instructions = [(_RETURN, 0, 0, _DENY)]
    action: dict[int, _Instructions] = {}
    for part in _ALLOWED[machine].split():
        first, _, last = part.partition("-")
        action.update(dict.fromkeys(range(int(first), int(last or first) + 1), allow))
    column = list(_ARCHITECTURE).index(machine)
    for name, code in _argument_checks().items():
        action[_CHECKED[name][column]] = code
    segments = [(0, action.get(0, deny))]
    for number in range(1, max(action) + 2):
        code = action.get(number, deny)
        if code is not segments[-1][1]:
            segments.append((number, code))
    return segments


def _search(segments: list[tuple[int, _Instructions]]) -> _Instructions:
    """Return a binary search over the segments.

    The kernel runs a new filter once per system call number to cache its answers, so a short path
    to each answer is what makes installing the filter per test cheap.
    """
    if len(segments) == 1:
        return segments[0][1]
    middle = len(segments) // 2
    left, right = _search(segments[:middle]), _search(segments[middle:])
    return [
        (_AT_LEAST, 0, 1, segments[middle][0]),
        (_GO, 0, 0, len(left)),
        *left,
        *right,
    ]


class SeccompFilter:
    """The filter, built once; each process adds its own id and installs it in one call.

    OSError when there is no table for this machine.
    """

    def __init__(self) -> None:
        machine = platform.machine()
        if machine not in _ARCHITECTURE:
            raise OSError(errno.ENOSYS, f"no seccomp table for {machine}")
        code = [
            (_LOAD, 0, 0, 4),
            (_EQUAL, 1, 0, _ARCHITECTURE[machine]),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, 0),
            *_search(_segments(machine)),  # the x32 numbers lie above every segment: denied
        ]
        packed = b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
        self._code = ctypes.create_string_buffer(packed, len(packed))
        self._pid_offsets = [8 * i + 4 for i, part in enumerate(code) if part[3] == _OWN_PID]
        self._header = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(self._code))

    def restrict(self, pid: int) -> None:
        """Put this thread and its future threads under the filter; needs no_new_privs."""
        for offset in self._pid_offsets:
            struct.pack_into("<I", self._code, offset, pid)
        _checked(_LIBC.prctl(PR_SET_SECCOMP, 2, self._header, 0, 0), "seccomp")
