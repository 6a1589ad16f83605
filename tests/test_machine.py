"""What this process may still take, on machines and in containers of every kind."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from lightllm_mp.machine import (
    NO_LIMIT,
    compute_threads,
    format_bytes,
    free_memory,
    physical_cores,
    raise_open_file_limit,
)


def system(root: Path, available_kib: int, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup."""
    proc, cgroup = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable:   {available_kib} kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    cgroup.mkdir()
    for name, text in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(text)
    return proc, cgroup


V2, V1 = "0::/a/b\n", "5:devices:/\n4:memory:/a/b\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("", {}, 1024_000),
        (V2, {"a/b/memory.max": "max\n", "a/b/memory.current": "500\n"}, 1024_000),
        (V2, {"a/b/memory.max": "9000\n", "a/b/memory.current": "500\n"}, 8_500),
        (V2, {"a/memory.max": "9000\n", "a/memory.current": "500\n"}, 8_500),
        (V2, {"memory.max": "9000\n", "memory.current": "500\n"}, 8_500),
        (
            V2,
            {"a/b/memory.max": "9000", "a/b/memory.current": "8500", "a/b/memory.stat": "anon 1\ninactive_file 300\n"},
            800,
        ),
        (V2, {"a/b/memory.max": "9000\n", "a/b/memory.current": "9500\n"}, 0),
        (V1, {"memory/a/b/memory.limit_in_bytes": "7000\n", "memory/a/b/memory.usage_in_bytes": "500\n"}, 6_500),
        (
            V1,
            {
                "memory/memory.limit_in_bytes": "7000\n",
                "memory/memory.usage_in_bytes": "500\n",
                "memory/memory.stat": "inactive_file 5\ntotal_inactive_file 100\n",
            },
            6_600,
        ),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "500"}, 1024_000),
    ],
)
def test_free_memory_within_control_groups(tmp_path: Path, groups: str, files: dict[str, str], free: int) -> None:
    assert free_memory(*system(tmp_path, 1000, groups, files)) == free


def test_free_memory_of_this_machine() -> None:
    assert 2**20 < free_memory() < NO_LIMIT


V1_CPU = "3:cpu,cpuacct:/a/b\n0::/\n"
PAIRS = {f"cpu{cpu}/topology/thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}\n" for cpu in range(8)}
"""Four cores of two hyperthreads."""


@pytest.mark.parametrize(
    ("allowed", "groups", "files", "cores"),
    [
        (range(8), "", {}, 4),
        ({1, 5}, "", {}, 1),
        ({0, 1, 5}, "", {}, 2),
        (range(8), V2, {"a/b/cpu.max": "max 100000\n"}, 4),
        (range(8), V2, {"a/b/cpu.max": "200000 100000\n"}, 2),
        (range(8), V2, {"a/b/cpu.max": "290000 100000\n"}, 2),
        (range(8), V2, {"a/b/cpu.max": "50000 100000\n"}, 1),
        (range(8), V2, {"a/b/cpu.max": "900000 100000\n"}, 4),
        (range(8), V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        (range(8), V2, {"cpu.max": "300000 100000\n"}, 3),
        ({1, 5}, V2, {"a/b/cpu.max": "300000 100000\n"}, 1),
        (range(8), V1_CPU, {"cpu/a/b/cpu.cfs_quota_us": "-1\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, 4),
        (range(8), V1_CPU, {"cpu/a/b/cpu.cfs_quota_us": "150000\n", "cpu/a/b/cpu.cfs_period_us": "50000\n"}, 3),
        (range(8), V1_CPU, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        (
            range(8),
            V1_CPU,
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            2,
        ),
        (range(8), V2, {"a/b/cpu.max": "nonsense"}, 4),
        (range(8), V1_CPU, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "0\n"}, 4),
    ],
)
def test_cores_within_affinity_and_control_groups(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    allowed: set[int],
    groups: str,
    files: dict[str, str],
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(allowed))
    proc, cgroup = system(tmp_path, 1000, groups, files)
    for name, text in PAIRS.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert physical_cores(proc, cgroup, tmp_path) == cores


def test_without_a_topology_each_cpu_is_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3, 9})
    assert physical_cores(*system(tmp_path, 1000, "", {}), tmp_path) == 3


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [
        (range(16), 10),  # efficiency cores are cores: threads take tasks as they get ready, so nobody waits for them
        ({0, 1, 2, 3}, 2),  # two hyperthreads of each of two performance cores
        ({0, 2, 4, 6, 8, 10}, 6),
        (range(12, 16), 4),
    ],
)
def test_cores_of_two_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: set[int], cores: int) -> None:
    """Six performance cores of two hyperthreads each, and four efficiency cores of one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(allowed))
    for cpu in range(16):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        siblings = f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n" if cpu < 12 else f"{cpu}\n"
        (topology / "thread_siblings_list").write_text(siblings)
    assert physical_cores(*system(tmp_path, 1000, "", {}), tmp_path) == cores


def test_cores_of_this_machine() -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "0.977 KiB"), (92 << 20, "92 MiB"), (5 << 28, "1.25 GiB")],
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_ranks_share_the_cores_unless_threads_are_given() -> None:
    assert compute_threads(5, ranks=2) == 5
    assert compute_threads() == physical_cores()
    assert compute_threads(ranks=1000) == 1


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
    try:
        assert raise_open_file_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_hard_limit_that_the_kernel_does_not_grant_leaves_the_soft_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, limits: tuple[int, int]) -> None:
        raise PermissionError

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_open_file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
