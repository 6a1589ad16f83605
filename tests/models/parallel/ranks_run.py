"""Runs rank_main.py on several ranks, once per set of folders and for all tests."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.paths import ROOT

DEADLINE = 420.0
"""Seconds for all folders, on a busy machine."""


@functools.cache
def run(
    size: int, folders: tuple[str, ...], dtype: str = "float32"
) -> dict[str, tuple[dict[str, Tensor], list[dict[str, Any]]]]:
    """By folder: rank 0's outputs, and every rank's report: the digest of its outputs, or its error. `primitives`: the
    results of the group's calls on each rank."""
    meeting = os.memfd_create("meeting")
    with tempfile.TemporaryDirectory() as out:
        arguments = [[str(meeting), str(rank), str(size), out, dtype, *folders] for rank in range(size)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.models.parallel.rank_main", *each],
                pass_fds=(meeting,),
                env=environment,
            )
            for each in arguments
        ]
        try:
            for process in ranks:
                process.wait(DEADLINE)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
            os.close(meeting)
        return {folder: _result(Path(out), folder, size) for folder in (*folders, "primitives")}


def _result(out: Path, folder: str, size: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    files = [out / f"{folder}.{rank}.json" for rank in range(size)]
    reports = [json.loads(file.read_text()) if file.exists() else {"error": "ended before"} for file in files]
    tensors = out / f"{folder}.safetensors"
    return (load_file(tensors) if tensors.exists() else {}), reports
