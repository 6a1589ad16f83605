"""Free memory, CPU cores and open files of this computer, within the limits of the process's control groups (v2 or v1).

The limit of a group also binds the groups below it. So every group from this process's own up to the root is read.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

NO_LIMIT = 1 << 60
"""Bytes. Control groups v1 write a number near 2^63 for "no limit"."""
PROC, CGROUP, CPUS = Path("/proc"), Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")


def free_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Bytes that this process can still allocate: MemAvailable, or less if a control group leaves less."""
    return min(_available(proc), *_left_in_groups(proc, cgroup), NO_LIMIT)


def physical_cores(proc: Path = PROC, cgroup: Path = CGROUP, cpus: Path = CPUS) -> int:
    """Number of cores (not hyperthreads) that this process may use; at least 1. CPU affinity and the quotas of control
    groups limit it. A fraction of a core does not count: one thread that has to pause keeps all others waiting."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_siblings(cpus, cpu) for cpu in allowed})
    return max(1, min([cores, *(int(share) for share in _cpu_shares(proc, cgroup))]))


def compute_threads(wanted: int = 0, ranks: int = 1) -> int:
    """Threads for the CPU ops of one process: `wanted`, or if 0 this rank's share of the physical cores; at least 1."""
    return wanted or max(1, physical_cores() // ranks)


def raise_open_file_limit() -> int:
    """Raise the soft limit of open files to the hard limit, which costs nothing. Children inherit it. Returns the soft
    limit; RLIM_INFINITY: no limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # a hard limit above fs.nr_open cannot be set again
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def format_bytes(count: int) -> str:
    """A size for a person, in three significant digits: "92 MiB", "1.25 GiB"."""
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.3g} {units[0]}"


def _siblings(cpus: Path, cpu: int) -> str:
    """An identifier of the CPU's core: the list of its hyperthreads, or the CPU itself if the system has no list."""
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
    """The quota of each group that has one, in CPUs."""
    for folder, version in _groups(proc, cgroup, "cpu"):
        if version == 2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # "max", or -1 in v1: no limit
            yield int(quota) / int(period)


def _groups(proc: Path, cgroup: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """(folder, version) of each group that contains this process.

    A container often sees the host's path of its group, but its group is mounted as the root. Then the folders of the
    path do not exist, and only the root has limits.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            root, version = cgroup, 2
        elif controller in controllers.split(","):
            names = (controller, controllers)  # some systems have no link from "cpu" to "cpu,cpuacct"
            root, version = next((cgroup / name for name in names if (cgroup / name).is_dir()), cgroup), 1
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder == root or root in folder.parents:
                yield folder, version


def _text(file: Path) -> str:
    """The content of the file; "" if it does not exist."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    """The number in the file; None if there is no file, or it says "max"."""
    text = _text(file)
    return int(text) if text.isdigit() else None


def _reclaimable(stat: Path, counter: str) -> int:
    """Bytes of file cache that the kernel frees before it refuses memory."""
    entries = dict(line.split(maxsplit=1) for line in _text(stat).splitlines())
    return int(entries.get(counter, 0))
