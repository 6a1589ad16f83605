"""Takes rights away from the process that calls: what a bug in a C library must not be able to use.

Two kinds of processes call this. Those that hold keys, weights or messages call `hide`: no process of the same user can
read their memory, environment or descriptors. A process that runs C code on data of strangers calls `confine` before it
sees any: from then on it can compute, read and write what it has open, and end, and nothing else.

`confine` lays several layers, each enough against most attacks, because not every machine has all of them: a container
may refuse seccomp, an old kernel has no Landlock. The layers need no privilege and no library.

`python -m lightllm_mp.sandbox` confines itself and prints the layers that this machine refuses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
VISIBLE = "LIGHTLLM_MP_DUMPABLE"
"""Environment variable: "1" keeps processes open to debuggers and profilers (gdb, py-spy) of the same user."""
SECCOMP = "LIGHTLLM_MP_SECCOMP"
"""Environment variable: "0" leaves the filter of system calls out, for a libc or Python that needs another call."""

Layer = Literal["seccomp", "Landlock"]
LAYERS: tuple[Layer, ...] = ("seccomp", "Landlock")
"""The layers that a kernel or container may lack."""
TRIAL_SECONDS = 20.0
"""Deadline of a child process that tries the layers."""

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int = 0) -> None:
    """prctl(2) with one argument. OSError."""
    _checked(_libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))))


def hide() -> None:
    """No other process of this user can attach to this one, or read /proc/PID/{mem,environ,fd,maps}; there are no core
    dumps. It does not hold for root, and ends at exec: a child calls it itself."""
    if os.environ.get(VISIBLE) != "1":
        prctl(PR_SET_DUMPABLE, 0)


def confine(memory: int) -> tuple[Layer, ...]:
    """Confines this process for ever; `memory` is its limit of address space in bytes. Returns the layers that are
    missing: the kernel refuses them, or SECCOMP switches them off.

    All modules must be imported and all files open: later not even the process's own code can open one. A system call
    that is not on the list fails with EPERM. The calling thread must be the only one. OSError if even the rights that
    every kernel lets go are kept.
    """
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)  # Landlock and seccomp ask for it
    laid: dict[Layer, bool] = {"Landlock": _laid(_forbid_files)}
    for name, most in {"AS": memory, "CORE": 0, "FSIZE": 0, "NOFILE": 0, "NPROC": 0}.items():
        _lower(getattr(resource, f"RLIMIT_{name}"), most)
    _drop_capabilities()
    laid["seccomp"] = os.environ.get(SECCOMP) != "0" and _laid(_filter_calls)
    return tuple(layer for layer in LAYERS if not laid[layer])


def missing_layers(environment: Mapping[str, str] | None = None) -> tuple[Layer, ...]:
    """The layers that `confine` does not get here, as a child process finds out. OSError if the child fails."""
    command = [sys.executable, "-m", "lightllm_mp.sandbox"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False)
    said = done.stdout.split()
    if done.returncode:
        raise OSError(f"a confined process ends with code {done.returncode}")
    return tuple(layer for layer in LAYERS if layer in said)


def _lower(limit: int, most: int) -> None:
    _, hard = resource.getrlimit(limit)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limit, (most, most))


def _laid(lay: Callable[[], None]) -> bool:
    try:
        lay()
    except OSError:
        return False
    return True


def _checked(result: int) -> int:
    """The result of a libc function. OSError for -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _call(number: int, *arguments: object) -> int:
    """A system call that libc has no function for. OSError."""
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments))


# --- capabilities -----------------------------------------------------------------------------------------------------

_CAPABILITY_VERSION = 0x20080522


def _drop_capabilities() -> None:
    """Root without capabilities is an ordinary user, who may read no hidden process."""
    header, none = struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _checked(_libc.capset(header, none))


# --- Landlock: no file, no TCP port, no signal to others --------------------------------------------------------------

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # the same on all architectures
_VERSION_QUERY = 1


def landlock_version() -> int:
    """Version of the kernel's Landlock interface; 0 if it has none."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION_QUERY))
    except OSError:
        return 0


def _forbid_files() -> None:
    """A ruleset that handles every right its version knows, and grants none."""
    version = landlock_version()
    if not version:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    ports, signals_and_sockets = (0b11 if version >= 4 else 0), (0b11 if version >= 6 else 0)
    rights = struct.pack("QQQ", files, ports, signals_and_sockets)
    ruleset = _call(_CREATE_RULESET, rights, ctypes.c_size_t(len(rights)), ctypes.c_uint(0))
    try:
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


# --- seccomp: a list of system calls ----------------------------------------------------------------------------------

PROT_EXEC = 4
MADV_DONTNEED, MADV_HUGEPAGE = 4, 14
_GUARDED = ("mmap", "mprotect", "madvise")
"""Calls that are allowed for some values of their third argument: memory never becomes code, and `madvise` takes no
pages out of shared memory (MADV_REMOVE)."""


class Architecture(NamedTuple):
    """An architecture: the kernel's name for it in filters, the number of seccomp(2), and the calls that are allowed:
    what an interpreter that has imported everything needs to compute. None makes a descriptor, or names a path or a
    process."""

    audit: int
    seccomp: int
    calls: Mapping[str, int]


ARCHITECTURES = {
    "x86_64": Architecture(
        0xC000003E, 317,
        {
            "read": 0, "write": 1, "close": 3,
            "mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25, "brk": 12, "madvise": 28,
            "futex": 202, "sched_yield": 24, "getrandom": 318, "clock_gettime": 228,
            "rt_sigreturn": 15, "rt_sigprocmask": 14, "restart_syscall": 219, "exit": 60, "exit_group": 231,
        },
    ),
    "aarch64": Architecture(
        0xC00000B7, 277,
        {
            "read": 63, "write": 64, "close": 57,
            "mmap": 222, "mprotect": 226, "munmap": 215, "mremap": 216, "brk": 214, "madvise": 233,
            "futex": 98, "sched_yield": 124, "getrandom": 278, "clock_gettime": 113,
            "rt_sigreturn": 139, "rt_sigprocmask": 135, "restart_syscall": 128, "exit": 93, "exit_group": 94,
        },
    ),
}  # fmt: skip
"""From arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h."""

_SET_FILTER, _ALL_THREADS = 1, 1
_KILL, _EPERM, _ALLOW = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
_LOAD, _IF_EQUAL, _IF_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: ld word; jeq; jset; ret
_NUMBER, _ARCHITECTURE, _THIRD_ARGUMENT = 0, 4, 32  # offsets in struct seccomp_data, little-endian

Instruction = tuple[int, int, int, int]
"""Code, instructions to skip if true, if false, operand."""


def call_filter(architecture: Architecture) -> list[Instruction]:
    """The program that the kernel runs for each system call."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture.audit),
        (_RETURN, 0, 0, _KILL),  # a 32-bit call, whose numbers mean something else
        (_LOAD, 0, 0, _NUMBER),
    ]
    for name, number in architecture.calls.items():
        verdict = list(_verdict(name))
        program += [(_IF_EQUAL, 0, len(verdict), number), *verdict]
    return [*program, (_RETURN, 0, 0, _EPERM)]


def _verdict(name: str) -> Iterator[Instruction]:
    if name in _GUARDED:
        yield (_LOAD, 0, 0, _THIRD_ARGUMENT)
        if name == "madvise":
            yield (_IF_EQUAL, 2, 0, MADV_DONTNEED)
            yield (_IF_EQUAL, 1, 0, MADV_HUGEPAGE)
        else:
            yield (_IF_BITS, 0, 1, PROT_EXEC)
        yield (_RETURN, 0, 0, _EPERM)
    yield (_RETURN, 0, 0, _ALLOW)


def _filter_calls() -> None:
    architecture = _architecture()
    install_filter(architecture, call_filter(architecture))


def install_filter(architecture: Architecture, program: list[Instruction]) -> None:
    """Filters the system calls of all threads of this process, which must have `no_new_privs`. OSError."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    header = struct.pack("H6xP", len(program), ctypes.addressof(code))
    if thread := _call(architecture.seccomp, ctypes.c_uint(_SET_FILTER), ctypes.c_uint(_ALL_THREADS), header):
        raise OSError(errno.ESRCH, f"thread {thread} has another filter")


def _architecture() -> Architecture:
    """OSError for an architecture without a table, and for 32-bit programs."""
    architecture = ARCHITECTURES.get(platform.machine()) if ctypes.sizeof(ctypes.c_void_p) == 8 else None
    if architecture is None:
        raise OSError(errno.ENOSYS, f"there is no filter for {platform.machine()}")
    return architecture


if __name__ == "__main__":
    print(*confine(1 << 30))
