"""Programs of other projects that these tests run; where they are missing, the tests are skipped."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def program(name: str) -> str:
    """Its path. Skips the test or module without it."""
    if (found := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed", allow_module_level=True)
    return found


def output(*command: str | Path, cwd: Path | None = None) -> str:
    """What a program prints. Fails with what it says."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
