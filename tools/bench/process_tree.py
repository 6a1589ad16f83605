"""What a process and all its descendants use, and what is left for others, read from /proc."""

from __future__ import annotations

import os
import re
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
MAPPING = re.compile(r"^([0-9a-f]+-[0-9a-f]+) \S+ ([0-9a-f]+) (\S+) (\d+)")


def pids(root: int) -> list[int]:
    """`root` and its living descendants. One that ends meanwhile is left out."""
    found = [root]
    for pid in found:  # grows while it is walked
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, _read(children).split())
    return found


def cpu_seconds(root: int) -> float:
    """User and system time so far of the tree: its living processes and those that were waited for."""
    stats = (_read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split() for pid in pids(root))
    return sum(sum(map(int, fields[11:15])) / TICK for fields in stats if fields)


def machine_seconds() -> float:
    """Time so far that this machine's CPUs did not idle, summed over them; a virtual one's stolen time is in it."""
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text("utf-8").split("\n")[0].split()[1:])
    return (user + nice + system + sum(rest[:3])) / TICK  # guests are in user


def resident_mib(root: int) -> float:
    """The tree's sum of PSS as it is on a machine without other programs, in MiB.

    Anonymous and shared memory count with their PSS. Pages of files (libraries, mapped weights) count once for the
    tree, with the most that one process has of a mapping: their PSS would be less while programs outside of the tree
    map the same files.
    """
    own, files = 0, dict[tuple[str, ...], int]()
    for pid in pids(root):
        rollup = _fields(_read(Path(f"/proc/{pid}/smaps_rollup")))
        own += rollup.get("Pss_Anon", 0) + rollup.get("Pss_Shmem", 0)
        for place, kib in _file_pages(_read(Path(f"/proc/{pid}/smaps"))):
            files[place] = max(kib, files.get(place, 0))
    return (own + sum(files.values())) / 1024


def _file_pages(smaps: str) -> list[tuple[tuple[str, ...], int]]:
    """((offset, device, inode, length), resident KiB that are the file's own) of each mapping of a file on a disk."""
    found = list[tuple[tuple[str, ...], int]]()
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps):
        head = MAPPING.match(part)
        if not head or head[4] == "0" or "/memfd:" in part or "/dev/shm/" in part:
            continue
        start, end = (int(address, 16) for address in head[1].split("-"))
        sizes = _fields(part)
        kib = sizes.get("Rss", 0) - sizes.get("Anonymous", 0)
        found.append(((head[2], head[3], head[4], str(end - start)), kib))
    return found


def _fields(text: str) -> dict[str, int]:
    return {name: int(kib) for name, kib in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # the process has ended
        return ""
