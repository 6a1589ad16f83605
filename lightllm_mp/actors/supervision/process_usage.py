"""What a process uses, from /proc. Other users' limits (`hide`) do not cover these files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

TICK, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
USER_TIME, SYSTEM_TIME = 11, 12
"""Fields of /proc/PID/stat behind the name of the program, which may hold anything."""


class ProcessUsage(NamedTuple):
    cpu_seconds: float = 0.0
    memory: int = 0
    """Resident bytes of its own."""
    shared: int = 0
    """Resident bytes of shared memory and files."""


def process_usage(pid: int) -> ProcessUsage:
    """All zero if there is no such process, or the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        resident, shared = map(int, Path(f"/proc/{pid}/statm").read_bytes().split()[1:3])
    except (OSError, ValueError):
        return ProcessUsage()
    ticks = int(stat[USER_TIME]) + int(stat[SYSTEM_TIME])
    return ProcessUsage(ticks / TICK, (resident - shared) * PAGE, shared * PAGE)
