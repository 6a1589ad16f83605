"""Checks of the model: whether it can be read, who may change it, and whether it fits."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lightllm_mp.cli.doctor.finding import Findings, fail, ok, warn
from lightllm_mp.cli.inspect.report import inspect
from lightllm_mp.errors import EngineError
from lightllm_mp.machine import format_bytes
from lightllm_mp.model_files.default_model import find_default_model, not_there


def model(model_dir: str | None) -> Findings:
    try:
        path = find_default_model(fetch=False) if model_dir is None else Path(model_dir).expanduser()
    except EngineError:
        text = "the default model is not here yet; lightllm-mp serve fetches it once, about 93 MB"
        yield warn("model", text, "fetch it with lightllm-mp pull, or name a model with --model-dir")
        return
    if not path.exists():
        yield fail("model", f"{path}: {not_there(str(model_dir))}", "name a folder or a .gguf file with --model-dir")
        return
    findings = list(permissions(path))
    yield from findings
    if all(finding.status != "FAIL" for finding in findings):
        yield from contents(path)


def permissions(path: Path) -> Findings:
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
    except OSError as error:
        yield fail("permissions", f"{path}: {error.strerror}", "chmod u+rx the folder, or run the server as its owner")
        return
    closed = [file.name for file in files if not os.access(file, os.R_OK)]
    loose = [entry for entry in (path, *files) if _anybody_writes(entry)]
    if closed:
        shown = ", ".join(closed[:3]) + (f" and {len(closed) - 3} more" if len(closed) > 3 else "")
        yield fail("permissions", f"cannot read {shown}", "chmod u+r the files, or run the server as their owner")
    elif loose:
        text = f"every user of this machine can change {len(loose)} of {len(files) + 1} entries"
        yield warn("permissions", text, f"chmod -R o-w {path}")
    else:
        yield ok("permissions", f"{path} can be read, and other users cannot change it")


def _anybody_writes(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return False


def contents(path: Path) -> Findings:
    try:
        report = inspect(path)
    except (EngineError, OSError) as error:
        yield fail("model", str(error), "run lightllm-mp inspect; docs/models.md lists the supported models")
        return
    for problem in report.problems:
        yield fail("model", problem, f"run lightllm-mp inspect {path}")
    if not report.problems:
        weights = f"{format_bytes(report.weight_bytes)} of weights as {report.data_type}"
        yield ok("model", f"{report.family}, {weights}, about {report.kv_tokens:,} KV tokens fit on {report.device}")
    for note in report.notes:
        yield ok("model", note)
