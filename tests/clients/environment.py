"""Where the clients are installed (scripts/dev.sh does it), and how their programs run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.paths import ROOT

VENV = ROOT / ".venv-clients"
PROGRAMS = Path(__file__).parent / "programs"
OPENAI_2 = VENV / "openai2"
"""An older release of openai, and what needs it."""
KEY = "key-of-the-clients"
DEADLINE = 150.0
"""Seconds of one program."""

needs_clients = pytest.mark.skipif(
    not (VENV / ".installed").is_file(), reason="the clients are not installed (scripts/dev.sh test does it)"
)


def command(program: str, prefix: str) -> list[str]:
    """The program, for the checks whose names begin with `prefix`."""
    path = str(PROGRAMS / program)
    if program.endswith(".cjs"):
        return [shutil.which("node") or str(VENV / "bin" / "node"), path, prefix]
    return [str(VENV / "bin" / "python"), path, prefix]


def environment(base_url: str, home: Path, layer: Path | None = None) -> dict[str, str]:
    """Of a program that asks the server. `layer`: packages that come before those of the environment."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OPENAI", "ANTHROPIC"))}
    return {
        **mine,
        "HOME": str(home),
        "BASE_URL": base_url,
        "API_KEY": KEY,
        "NODE_PATH": str(VENV / "node_modules"),
        **({"PYTHONPATH": str(layer)} if layer else {}),
        # What would ask other hosts.
        "LANGSMITH_TRACING": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "true",
        "LITELLM_TELEMETRY": "false",
        "HF_HUB_OFFLINE": "1",
    }
