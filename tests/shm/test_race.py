"""The sleep handshake under its race, and a proof that the test would find a missing fence."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.shm.build_ring import build

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a race needs two CPUs")
PROGRAM = "tests.shm.race_main"


def race(extension: str, hand_overs: int, max_lost: int, seconds: float) -> tuple[int, int]:
    """(hand-overs made, wake-ups lost)"""
    command = [sys.executable, "-m", PROGRAM, extension, str(hand_overs), str(max_lost), str(seconds)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    made, lost = result.stdout.split()
    return int(made), int(lost)


def test_no_wake_up_is_lost_with_the_fences(tmp_path: Path):
    made, lost = race(str(build(tmp_path)), 100_000, 1, 4)
    assert lost == 0
    assert made >= 100, "the machine is too busy for this test to mean anything"


def test_without_the_fences_wake_ups_are_lost(tmp_path: Path):
    """If this fails, the test above proves nothing. Loads overtake stores on every common CPU."""
    assert platform.machine() in ("x86_64", "aarch64")
    extension = build(tmp_path, "-DRING_WITHOUT_FENCES")
    _, lost = race(str(extension), 100_000, 10, 20)
    assert lost >= 10


def test_the_twin_loses_none():
    _, lost = race("python", 30_000, 1, 4)
    assert lost == 0


@pytest.mark.slow
def test_two_million_hand_overs_without_a_loss(tmp_path: Path):
    made, lost = race(str(build(tmp_path)), 2_000_000, 1, 240)
    assert (made, lost) == (2_000_000, 0)
