"""Reads a compiler's output for a C file: functions, and the loops in them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path


def functions_of(source: Path, compiler: str, flags: list[str], to: Path) -> dict[str, str]:
    """Assembly by the names of functions. Functions that are called once stay functions."""
    command = [compiler, *flags, "-fno-inline-functions-called-once", "-S", str(source), "-o", str(to)]
    subprocess.run(command, check=True, timeout=120)
    parts = re.split(r"^(\w+)(?:\.\w+)*:$", to.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def innermost_loops(function: str) -> list[list[str]]:
    """Instructions between a label and the jump back to it that hold no other label."""
    loops: list[list[str]] = []
    label, body = "", list[str]()
    for line in function.splitlines():
        if found := re.match(r"^(\.L\w+):", line):
            label, body = found[1], []
        elif line.startswith("\t") and not line.startswith("\t."):
            body.append(line.strip())
            if label and re.match(rf"[jbct][\w.]*\s.*{re.escape(label)}$", line.strip()):
                loops.append(list(body))
    return loops
