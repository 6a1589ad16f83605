"""Reads from /proc what processes use and hold. A process that has ended uses nothing."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from lightllm_mp.sandbox import VISIBLE

os.environ.setdefault(VISIBLE, "1")  # otherwise the servers that a tool starts hide from it

PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
MIB = float(1 << 20)
ACTOR = re.compile(r"\0lightllm_mp\.actors\.[\w.]+\0([^\0]+)")
"""The program of every actor's process; its first argument is the actor's name."""
MAPPING = re.compile(r"^([0-9a-f]+-[0-9a-f]+) \S+ ([0-9a-f]+) (\S+) (\d+)")
Process = tuple[int, int]
"""(pid, start time in ticks): the system uses pids again."""


def pids(root: int) -> list[int]:
    """`root` and its living descendants."""
    found = [root]
    for pid in found:  # the list grows during the walk
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, _read(children).split())
    return found


def descendants(root: int) -> set[Process]:
    """A process and all its descendants, without those that have just ended."""
    return {(pid, started) for pid in pids(root) if (started := _started(pid))}


def alive(processes: Iterable[Process]) -> set[Process]:
    """The processes that still run."""
    return {(pid, started) for pid, started in processes if _started(pid) == started}


def actors(supervisor: int) -> dict[str, int]:
    """{actor: pid} of the processes of a server; an actor that is being replaced is missing."""
    if not _started(supervisor):
        return {}
    found = {"supervisor": supervisor}
    for pid in _read(Path(f"/proc/{supervisor}/task/{supervisor}/children")).split():
        if match := ACTOR.search(_read(Path(f"/proc/{pid}/cmdline"))):
            found[match[1]] = int(pid)
    return found


def age(pid: int) -> float:
    """Seconds since its start; 0: it has ended."""
    started = _started(pid)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / TICKS if started else 0.0


def _started(pid: int) -> int:
    """Ticks from the machine's start to its start; 0: it has ended."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name."""
    return _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()


# --- CPU --------------------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process."""
    return sum(map(int, _stat(pid)[11:13])) / TICKS


def tree_cpu_seconds(root: int) -> float:
    """CPU time of a process and its descendants, with those that have ended and were waited for."""
    return sum(sum(map(int, _stat(pid)[11:15])) for pid in pids(root)) / TICKS


def machine_cpu_seconds() -> float:
    """Seconds in which this machine's CPUs were busy, summed over them, with the stolen time of a virtual machine."""
    user, nice, system, _idle, _wait, *rest = map(int, _read(Path("/proc/stat")).split("\n")[0].split()[1:])
    return (user + nice + system + sum(rest[:3])) / TICKS  # user time contains guests


def context_switches(pid: int) -> int:
    """Context switches of all threads so far."""
    statuses = map(_read, Path(f"/proc/{pid}/task").glob("*/status"))
    return sum(int(n) for status in statuses for n in re.findall(r"ctxt_switches:\s+(\d+)", status))


# --- memory -----------------------------------------------------------------------------------------------------------


def resident(pid: int) -> int:
    """Resident bytes."""
    return _statm(pid, 1)


def address_space(pid: int) -> int:
    """Bytes of its address space."""
    return _statm(pid, 0)


def _statm(pid: int, column: int) -> int:
    fields = _read(Path(f"/proc/{pid}/statm")).split()
    return int(fields[column]) * PAGE if fields else 0


def private_mib(pid: int) -> float:
    """Resident memory that belongs to no file and no other process, in MiB."""
    return _fields(_read(Path(f"/proc/{pid}/status"))).get("RssAnon", 0) / 1024


def tree_resident_mib(root: int) -> float:
    """The tree's sum of PSS in MiB, as on a machine without other programs.

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


# --- descriptors ------------------------------------------------------------------------------------------------------


def descriptors(pid: int | str) -> list[str]:
    """What every descriptor of a process points to."""
    return sorted(target for _, target in _links(pid))


def memory_files(pids: Iterable[int]) -> tuple[int, int]:
    """(files, allocated bytes) of the memory files that these processes have open, each counted once."""
    sizes: dict[int, int] = {}
    for pid in pids:
        for path, target in _links(pid):
            try:
                if target.startswith("/memfd:"):
                    status = path.stat()
                    sizes[status.st_ino] = status.st_blocks * 512
            except OSError:
                continue
    return len(sizes), sum(sizes.values())


def _links(pid: int | str) -> list[tuple[Path, str]]:
    found = []
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found.append((path, os.readlink(path)))
            except OSError:
                continue
    except OSError:  # the process has ended
        return []
    return found


def _fields(text: str) -> dict[str, int]:
    return {name: int(kib) for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # the process has ended
        return ""
