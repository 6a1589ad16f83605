"""A hidden process is closed to others of its user; filters of system calls let through what they list."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lightllm_mp.sandbox import ARCHITECTURES, VISIBLE, call_filter
from tests.paths import ROOT

DEADLINE = 60
PLAIN_USER = [
    sys.executable,
    "-c",
    """
import ctypes, os, sys
for capability in range(64):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: exec gives it to nobody, root included
os.execv(sys.argv[1], sys.argv[1:])
""",
]
"""Starts a program without capabilities. With them root reads every process, so none in these tests may have them."""

VICTIM = """
import os, sys
from lightllm_mp.sandbox import hide
hide()
fd = os.memfd_create("own")
os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
open("/proc/self/maps").close()
print("ready", flush=True)
sys.stdin.read()
"""
SPY = """
import ctypes, os, sys
pid = int(sys.argv[1])
def attach():
    if ctypes.CDLL(None, use_errno=True).ptrace(16, pid, None, None) < 0:
        raise PermissionError
for look in (
    lambda: open(f"/proc/{pid}/environ", "rb").read(),
    lambda: open(f"/proc/{pid}/mem", "rb"),
    lambda: open(f"/proc/{pid}/maps").read(),
    lambda: os.readlink(f"/proc/{pid}/fd/2"),
    attach,
):
    try:
        look()
        print("seen")
    except PermissionError:
        print("refused")
"""


def python(program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PLAIN_USER, sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def victim(visible: str) -> Iterator[int]:
    process = python(VICTIM, **{VISIBLE: visible})
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate(timeout=DEADLINE)
        yield process.pid
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE)


def seen(pid: int) -> list[str]:
    spy = python(SPY, str(pid))
    said, error = spy.communicate(timeout=DEADLINE)
    assert spy.returncode == 0, error
    return said.split()


def test_a_hidden_process_is_closed_to_its_own_user() -> None:
    """Yet it reopens its own descriptors, as logs and torch's file stores do."""
    with victim("0") as pid:
        assert seen(pid) == ["refused"] * 5


def test_a_debugger_gets_in_where_the_operator_asks_for_it() -> None:
    with victim("1") as pid:
        assert "seen" in seen(pid)[:4]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_filter_allows(name: str) -> None:
    """The program is run here as the kernel does it, also for the other architecture."""
    here = ARCHITECTURES[name]
    allowed, refused, killed = 0x7FFF0000, 0x00050001, 0x80000000
    listed = set(here.calls.values())
    for number in range(1000):
        assert verdict(here.audit, number, 3, name) == (allowed if _plain(name, number) else refused), number
    assert all(verdict(here.audit, number | 1 << 30, 3, name) == refused for number in listed)  # x32
    assert verdict(0x40000003, 3, 0, name) == killed  # i386
    for guarded in ("mmap", "mprotect"):
        assert verdict(here.audit, here.calls[guarded], 3, name) == allowed
        assert verdict(here.audit, here.calls[guarded], 7, name) == refused
    advices = [verdict(here.audit, here.calls["madvise"], advice, name) for advice in range(30)]
    assert [advice for advice, result in enumerate(advices) if result == allowed] == [4, 14]


def _plain(name: str, number: int) -> bool:
    calls = ARCHITECTURES[name].calls
    return number in calls.values() and number != calls["madvise"]


def verdict(audit: int, number: int, third: int, name: str) -> int:
    """What the filter says of a call with this third argument."""
    data = {0: number, 4: audit, 32: third}
    program = call_filter(ARCHITECTURES[name])
    at, value = 0, 0
    while True:
        code, yes, no, operand = program[at]
        at += 1
        if code == 0x20:
            value = data[operand]
        elif code == 0x06:
            return operand
        else:
            at += yes if (value == operand if code == 0x15 else value & operand) else no


def test_no_listed_call_makes_a_descriptor_or_names_a_process() -> None:
    dangerous = "open openat openat2 socket connect clone fork execve kill ptrace dup fcntl ioctl ftruncate prctl"
    for here in ARCHITECTURES.values():
        assert set(here.calls).isdisjoint(dangerous.split())
