"""Every tool runs: `--smoke` is a tiny run of the same code, in a process as its user starts it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tools.harness.command_line import SKIPPED

DEADLINE = 60.0
"""Seconds of one tool."""


def defined(file: Path) -> set[str]:
    """Functions at the top level of a file, without importing it."""
    return {node.name for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


FILES = sorted((ROOT / "tools").rglob("*.py"))
TOOLS = [module(file) for file in FILES if "main" in defined(file)]


def smoke(tool: str) -> tuple[int, str]:
    """Exit code and output. A tool that takes too long is killed with all its processes."""
    command = [sys.executable, "-m", tool, "--smoke"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output = process.communicate(timeout=DEADLINE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1, f"no end after {DEADLINE:.0f} s\n{process.communicate()[0]}"
    return process.returncode, output


@pytest.mark.parametrize("tool", TOOLS)
def test_a_smoke_run_ends_well(tool: str) -> None:
    code, output = smoke(tool)
    if code == SKIPPED:
        pytest.skip(output.strip().splitlines()[-1])
    assert code == 0, output[-3000:]


def test_what_is_run_is_a_tool_or_its_child() -> None:
    """A program without `main` would escape the test above."""
    programs = {module(file) for file in FILES if '__name__ == "__main__"' in file.read_text("utf-8")}
    assert programs - set(TOOLS) == {"tools.bench.transformers_child", "tools.fuzz.child"}
    assert len(TOOLS) > 15


def test_every_tool_has_the_flag() -> None:
    """A main that ignores its arguments would pass every test."""
    sources = {module(file): file.read_text("utf-8") for file in FILES}
    assert [tool for tool in TOOLS if "ToolParser(" not in sources[tool]] == []
