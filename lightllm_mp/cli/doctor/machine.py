"""Checks of this machine: memory, limits, clock, disk and port."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lightllm_mp.cli.doctor.finding import Findings, fail, ok, warn
from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import StartupError
from lightllm_mp.machine import format_bytes, free_memory
from lightllm_mp.shm import Segment

GIB = 1 << 30
LEAST_MEMORY, GOOD_MEMORY = GIB // 2, 2 * GIB
TRIAL = 64 << 20
"""Bytes of shared memory that the check allocates, about as much as the lanes and arenas of a text server."""
LEAST_FILES, GOOD_FILES = 256, HttpConfig().max_live_requests + 200
"""File descriptors: those of the process itself, and one per connection."""
LEAST_DISK = GIB
PACKAGE_IS_NEWER_THAN = 1_735_689_600
"""2025-01-01 in Unix time. A clock that shows an earlier date is wrong."""
CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen")
"""Clock sources that can be read without a system call."""


def memory() -> Findings:
    free = free_memory()
    text = f"{format_bytes(free)} free within the limits of this control group"
    if free < LEAST_MEMORY:
        yield fail("memory", text, "end other programs, or raise the container's memory limit")
    elif free < GOOD_MEMORY:
        yield warn("memory", text, "raise the container's memory limit: this is enough for the smallest models only")
    else:
        yield ok("memory", text)


def shared_memory(create: Callable[[str, int], Segment] = Segment.create) -> Findings:
    """Allocates as much shared memory as a server, and frees it. The size of /dev/shm does not limit memfds."""
    try:
        create("doctor", TRIAL).close()
    except (OSError, StartupError) as error:
        advice = f"raise the memory limit: a server needs {format_bytes(TRIAL)} of memfd memory"
        yield fail("shared memory", str(error), advice)
    else:
        yield ok("shared memory", f"{format_bytes(TRIAL)} as sealed memfd")


def limits() -> Findings:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f"ulimit -Hn {GOOD_FILES} before the start, or LimitNOFILE= in the systemd unit"
    if 0 <= hard < LEAST_FILES:
        yield fail("files", f"{hard} descriptors (hard RLIMIT_NOFILE)", advice)
    elif 0 <= hard < GOOD_FILES:
        text = f"{hard} descriptors (hard RLIMIT_NOFILE), fewer than --max-live-requests connections need"
        yield warn("files", text, advice)
    else:
        yield ok("files", f"{_limit(hard)} descriptors (serve raises the soft limit of {_limit(soft)})")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    yield ok("locked memory", f"{_limit(locked)} bytes (RLIMIT_MEMLOCK)")


def clock(now: float | None = None, sources: Path = Path("/sys/devices/system/clocksource/clocksource0")) -> Findings:
    now = time.time() if now is None else now
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    try:
        source = (sources / "current_clocksource").read_text().strip()
    except OSError:
        source = ""
    if now < PACKAGE_IS_NEWER_THAN:
        yield warn("clock", said, "set the clock: logs and certificates depend on it; deadlines do not")
    elif source and source not in CLOCKS:
        advice = "see the kernel's log for why it does not use tsc: every reading of this clock is slow"
        yield warn("clock", f"{said}, source {source}", advice)
    else:
        yield ok("clock", f"{said}{', source ' + source if source else ''}")


def disk() -> Findings:
    """Checks the temporary folder, where GPU kernels are compiled."""
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
    except OSError as error:
        yield fail("disk", f"no temporary file: {error.strerror}", "set TMPDIR to a folder that you can write to")
        return
    free = shutil.disk_usage(folder).free
    text = f"{format_bytes(free)} free in {folder}"
    if free < LEAST_DISK:
        yield warn("disk", text, "free disk space, or set TMPDIR to another folder: GPU kernels are compiled there")
    else:
        yield ok("disk", text)


def port(number: int, host: str = "127.0.0.1") -> Findings:
    if number == 0:
        yield ok("port", "any free port")
        return
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, number))
            trial.listen(1)
        except PermissionError:
            yield fail("port", f"{host}:{number} is reserved for the superuser", "choose a --port above 1023")
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            advice = "end the program that listens there (ss -ltnp names it), or choose another --port"
            yield fail("port", f"{host}:{number}: {reason}", advice)
        else:
            yield ok("port", f"{host}:{number} is free")


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else f"{number:,}"
