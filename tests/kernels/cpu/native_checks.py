"""Builds the checks of the CPU kernels. They are in C and run without Python, so also under an emulator."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.paths import ROOT

HERE = Path(__file__).parent


def extension() -> dict[str, Any]:
    """How the package builds the extension."""
    modules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    return next(module for module in modules if module["name"] == "lightllm_mp.kernels.cpu._native")


def build(to: Path, compiler: str, *flags: str) -> Path:
    """The program of `native/check.c` with all sources of the extension but the Python module."""
    settings = extension()
    kernels = [ROOT / source for source in settings["sources"] if not source.endswith("/native.c")]
    short = "-DATTENTION_SEGMENT=64"  # contexts of the checks have several
    options = [*settings["extra-compile-args"], f"-I{ROOT}/lightllm_mp/kernels/cpu", short, *flags]

    def compile_one(source: Path) -> str:
        made = to / f"{source.parent.name}-{source.stem}.o"
        subprocess.run([compiler, *options, "-c", str(source), "-o", str(made)], check=True, timeout=200)
        return str(made)

    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(compile_one, [*kernels, *sorted((HERE / "native").glob("*.c"))]))
    program = to / "check"
    subprocess.run([compiler, *flags, *made, *settings["extra-link-args"], "-o", str(program)], check=True, timeout=60)
    return program


def run(command: list[str]) -> tuple[list[str], list[str]]:
    """The levels that the processor has, and the checked ones. AssertionError names what failed."""
    # A stack made by the sanitizer is not aligned as GCC's code for 64-byte vectors expects (GCC bug 110027).
    environment = {**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=0"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert result.returncode == 0, f"{result.returncode}: {result.stdout[-3000:]}{result.stderr[-3000:]}"
    first, *rest = result.stdout.splitlines()
    checked = {found[1]: int(found[2]) for line in rest if (found := re.fullmatch(r"(\w+): (\d+) checks", line))}
    assert all(count > 100_000 for count in checked.values()), checked
    return first.removeprefix("levels:").split(), list(checked)
