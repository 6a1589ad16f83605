"""Runs the scripts of web/package.json."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

WEB = ROOT / "web"
PATH = f"{os.environ['PATH']}:{ROOT / '.venv-clients' / 'bin'}"
"""Where the system has no Node.js, dev.sh installs one there."""

needs_npm = pytest.mark.skipif(
    shutil.which("npm", path=PATH) is None or not (WEB / "node_modules").is_dir(),
    reason="needs npm, and `npm ci` in web/",
)


def npm_run(script: str, *arguments: str | Path, seconds: float = 100.0) -> None:
    """Fails with the script's output unless it exits with 0."""
    command = ["npm", "run", "--silent", script, "--", *map(str, arguments)]
    environment = os.environ | {"PATH": PATH}
    done = subprocess.run(command, cwd=WEB, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
