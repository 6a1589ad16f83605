"""Memory this process may still take: what the machine has, within the limits of its control group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

NO_LIMIT = 1 << 60
"""Control groups v1 say "no limit" with a number near 2^63."""


def free_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """MemAvailable, or less where a control group (v2 or v1, this process's or one above it) leaves less."""
    return min(_available(proc), *_left_in_groups(proc, cgroup), NO_LIMIT)


def _available(proc: Path) -> int:
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return NO_LIMIT


def _left_in_groups(proc: Path, cgroup: Path) -> Iterator[int]:
    for folder, limit, usage, cache in _groups(proc, cgroup):
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None and most < NO_LIMIT:
            yield max(0, most - used + _reclaimable(folder / "memory.stat", cache))


def _groups(proc: Path, cgroup: Path) -> Iterator[tuple[Path, str, str, str]]:
    """(folder, limit file, usage file, name of the cache counter) of each group that holds this process.

    A container often sees the group's path of the host while its own group is mounted as the root; then the folders
    that the path names do not exist, and the root is what counts.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            root, files = cgroup, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, files = cgroup / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder == root or root in folder.parents:
                yield folder, *files


def _number(file: Path) -> int | None:
    """The file's number; None for no file, or the word "max"."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable(stat: Path, counter: str) -> int:
    """Bytes of file cache that the kernel gives up before it refuses memory."""
    try:
        entries = dict(line.split(maxsplit=1) for line in stat.read_text().splitlines())
    except OSError:
        return 0
    return int(entries.get(counter, 0))
