"""What a running server holds, seen from outside: its processes through /proc, its numbers through /metrics."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
SAMPLE = re.compile(r"^lightllm_(\w+)\{(.*)\} (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
IDLE = ("num_requests_running", "num_requests_waiting", "kv_used_tokens", "live_requests", "queue_bytes")
"""Gauges that are 0 when nothing is left; of a gauge with several rows, the sum."""
IDLE_IMAGES = ("image_cache_leased_items", "image_requests_waiting", "images_in_work", "image_file_bytes")
"""The same where images are served."""
Process = tuple[int, int]
"""(pid, when it was started, in ticks): pids are used again."""


def family(supervisor: int) -> dict[str, int]:
    """{actor: pid} of all processes of a server; an actor that is being replaced is missing."""
    found = {"supervisor": supervisor}
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    except OSError:
        return {}
    for pid in children:
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"lightllm_mp.actors.runtime.child_main" in arguments:
            found[arguments[arguments.index(b"lightllm_mp.actors.runtime.child_main") + 1].decode()] = int(pid)
    return found


def descendants(pid: int) -> set[Process]:
    """A process and all below it: the actors, and the processes that those have started."""
    found: set[Process] = set()
    below = [pid]
    while below:
        pid = below.pop()
        try:
            found.add((pid, _started(pid)))
            for thread in os.listdir(f"/proc/{pid}/task"):
                below += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
        except OSError:
            continue  # it has just ended
    return found


def alive(processes: Iterable[Process]) -> set[Process]:
    """Those that still run."""
    found = set()
    for pid, started in processes:
        try:
            if _started(pid) == started:
                found.add((pid, started))
        except OSError:
            continue
    return found


def resident(pid: int) -> int:
    """Resident bytes; 0: it is gone."""
    return _statm(pid, 1)


def address_space(pid: int) -> int:
    """Bytes of its address space; 0: it is gone."""
    return _statm(pid, 0)


def _statm(pid: int, column: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[column]) * PAGE
    except (OSError, IndexError):
        return 0


def age(pid: int) -> float:
    """Seconds since it was started; 0: it is gone."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - _started(pid) / TICKS
    except OSError:
        return 0.0


def _started(pid: int) -> int:
    """Ticks since the machine was started."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def links(pid: int | str) -> list[str]:
    """What every descriptor of a process points to."""
    found = []
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
    for number in numbers:
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:
            continue
    return sorted(found)


def shared_memory(pids: Iterable[int]) -> tuple[int, int]:
    """(files, allocated bytes) of the memory files that these processes have open, each counted once."""
    sizes: dict[int, int] = {}
    for pid in pids:
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for number in numbers:
            path = f"/proc/{pid}/fd/{number}"
            try:
                if os.readlink(path).startswith("/memfd:"):
                    status = os.stat(path)
                    sizes[status.st_ino] = status.st_blocks * 512
            except OSError:
                continue
    return len(sizes), sum(sizes.values())


def parse(text: str) -> dict[str, float]:
    """{name: value} of /metrics without the prefix; rows of one name are added up."""
    numbers: dict[str, float] = {}
    for line in text.splitlines():
        if (found := SAMPLE.match(line)) is not None:
            numbers[found[1]] = numbers.get(found[1], 0.0) + float(found[3])
    return numbers


def parse_rows(text: str, name: str, label: str) -> dict[str, float]:
    """{value of `label`: value} of one metric."""
    rows = {}
    for line in text.splitlines():
        if (found := SAMPLE.match(line)) is not None and found[1] == name:
            rows[dict(LABEL.findall(found[2])).get(label, "")] = float(found[3])
    return rows


def not_idle(numbers: Mapping[str, float], *, images: bool) -> dict[str, float]:
    """Gauges that should be 0 in an idle server and are not, or are not there."""
    names = IDLE + IDLE_IMAGES if images else IDLE
    return {name: numbers.get(name, -1.0) for name in names if numbers.get(name) != 0.0}
