"""The compiled code of publish and observe: the memory orders must be in the instructions, not only on x86."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.shm.build_ring import SOURCE, compiler

PROBE = f"""
#include "{SOURCE.parent / "ring.h"}"
void probe_publish(ring_out *out, uint64_t tail) {{ publish(out, tail, 1); }}
int probe_observe(const ring_in *in) {{ return has_records(in); }}
void probe_release(ring_in *in, uint64_t head, uint64_t tail) {{ close_batch(in, head, tail, 1); }}
int probe_room(ring_out *out, uint64_t tail, uint64_t need) {{ return make_room(out, tail, need); }}
"""


def assembly(tmp_path: Path, name: str, *flags: str) -> dict[str, str]:
    """The code of each probe."""
    source = tmp_path / "probe.c"
    source.write_text(PROBE)
    command = [name, "-std=c11", "-D_GNU_SOURCE", "-O2", "-S", "-o", "-", *flags, str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    parts = re.split(r"^(probe_\w+):", result.stdout, flags=re.MULTILINE)
    return {name: code.split(".size")[0] for name, code in zip(parts[1::2], parts[2::2], strict=True)}


def test_x86_has_a_full_fence_in_every_handshake(tmp_path: Path):
    name = compiler()
    machine = subprocess.run([name, "-dumpmachine"], capture_output=True, text=True, check=True).stdout
    if not machine.startswith("x86_64"):
        pytest.skip(f"the compiler is for {machine.strip()}")
    fence = re.compile(r"\bmfence\b|\block or[lq]\b")
    code = assembly(tmp_path, name)
    for probe in ("probe_publish", "probe_release", "probe_room"):
        assert fence.search(code[probe]), probe
    without = assembly(tmp_path, name, "-DRING_WITHOUT_FENCES")
    assert not any(fence.search(part) for part in without.values())


def test_aarch64_publishes_with_release_and_observes_with_acquire(tmp_path: Path):
    name = "aarch64-linux-gnu-gcc"
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    code = assembly(tmp_path, name, "-mno-outline-atomics")
    assert re.search(r"\bstlr\b", code["probe_publish"])
    assert re.search(r"\bldar\b", code["probe_observe"])
    assert re.search(r"\bstlr\b", code["probe_release"])
    assert re.search(r"\bldar\b", code["probe_room"])
    for probe in ("probe_publish", "probe_release", "probe_room"):
        assert re.search(r"\bdmb\s+ish\b", code[probe]), probe
