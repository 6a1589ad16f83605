"""How much memory can still be reserved. The kernel would hand out pages until it has to kill somebody."""

from __future__ import annotations

from pathlib import Path

_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def available_memory() -> int:
    """Bytes left to this process, by the machine and every cgroup above it. Reclaimable file cache counts as free."""
    found = [_machine()]
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _groups(Path("/sys/fs/cgroup"), path, *_V2)
        elif "memory" in controllers.split(","):
            found += _groups(Path("/sys/fs/cgroup/memory"), path, *_V1)
    return min(found)


def _machine() -> int:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62  # no meminfo: let the kernel decide


def _groups(root: Path, path: str, limit: str, usage: str, cache: str) -> list[int]:
    """What is left in a cgroup and its parents, where they have a limit. In a container the root may be the group."""
    own = root / path.lstrip("/")
    found = []
    for group in {own, *own.parents} if own.is_dir() else {root}:
        if not group.is_relative_to(root):
            continue
        most = "".join(_lines(group / limit))
        used = "".join(_lines(group / usage))
        if most.isdigit() and used.isdigit():
            stat = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
            found.append(max(0, int(most) - int(used) + int(stat.get(cache, 0))))
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
