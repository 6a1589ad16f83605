"""Compiles variants of _ring.c into a directory of the test."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import lightllm_mp.shm

SOURCE = Path(lightllm_mp.shm.__file__).parent / "_ring.c"


def compiler() -> str:
    """The system compiler; without one the test is skipped."""
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return name
    pytest.skip("no C compiler")


def build(directory: Path, *flags: str, skip: str = "") -> Path:
    """The extension built with `flags`. With `skip`, a failing build skips the test for that reason."""
    target = directory / "_ring.so"
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").exists():
        pytest.skip("no Python headers")
    command = [
        compiler(),
        "-std=c11",
        "-O2",
        "-shared",
        "-fPIC",
        f"-I{include}",
        *flags,
        str(SOURCE),
        "-o",
        str(target),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if result.returncode and skip:
        pytest.skip(f"{skip}: {result.stderr.splitlines()[-1] if result.stderr else result.returncode}")
    assert result.returncode == 0, result.stderr
    return target
