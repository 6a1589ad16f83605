"""What this process may still take, on machines and in containers of every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightllm_mp.shm.free_memory import NO_LIMIT, free_memory


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
