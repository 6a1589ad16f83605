"""What this process may take of its machine: memory and cores, within the limits of its control groups (v2 or v1).

A limit holds for a group and all below it, so each one from this process's group up to the root is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

NO_LIMIT = 1 << 60
"""Control groups v1 say "no limit" with a number near 2^63."""
PROC, CGROUP, CPUS = Path("/proc"), Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")


def free_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Bytes: MemAvailable, or less where a control group leaves less."""
    return min(_available(proc), *_left_in_groups(proc, cgroup), NO_LIMIT)


def physical_cores(proc: Path = PROC, cgroup: Path = CGROUP, cpus: Path = CPUS) -> int:
    """Cores, not hyperthreads, that this process may run on, or less where a control group gives it less time than
    these have; at least 1. A part of a core is not counted: a thread that is not let run keeps all others waiting."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_siblings(cpus, cpu) for cpu in allowed})
    return max(1, min([cores, *(int(share) for share in _cpu_shares(proc, cgroup))]))


def format_bytes(count: int) -> str:
    """A size for a person, in three significant digits: "92 MiB", "1.25 GiB"."""
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.3g} {units[0]}"


def _siblings(cpus: Path, cpu: int) -> str:
    """What names the core of a CPU: its hyperthreads, or itself where the system does not tell."""
    try:
        return (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _available(proc: Path) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return NO_LIMIT


def _left_in_groups(proc: Path, cgroup: Path) -> Iterator[int]:
    for folder, version in _groups(proc, cgroup, "memory"):
        if version == 2:
            limit, usage, cache = "memory.max", "memory.current", "inactive_file"
        else:
            limit, usage, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None and most < NO_LIMIT:
            yield max(0, most - used + _reclaimable(folder / "memory.stat", cache))


def _cpu_shares(proc: Path, cgroup: Path) -> Iterator[float]:
    """How many CPUs' time each group is given; nothing for one without a limit."""
    for folder, version in _groups(proc, cgroup, "cpu"):
        if version == 2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # "max", or -1 in v1: no limit
            yield int(quota) / int(period)


def _groups(proc: Path, cgroup: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """(folder, version) of each group that holds this process.

    A container often sees the group's path of the host while its own group is mounted as the root; then the folders
    that the path names do not exist, and the root is what counts.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            root, version = cgroup, 2
        elif controller in controllers.split(","):
            root, version = cgroup / controller, 1
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder == root or root in folder.parents:
                yield folder, version


def _text(file: Path) -> str:
    """What the file says; nothing where there is none."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    """The file's number; None for no file, or the word "max"."""
    text = _text(file)
    return int(text) if text.isdigit() else None


def _reclaimable(stat: Path, counter: str) -> int:
    """Bytes of file cache that the kernel gives up before it refuses memory."""
    entries = dict(line.split(maxsplit=1) for line in _text(stat).splitlines())
    return int(entries.get(counter, 0))
