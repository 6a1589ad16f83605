"""The fuzz of fuzz_main.py over the C ring with AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.shm.build_ring import build, compiler

PROGRAM = "tests.shm.fuzz_main"


@pytest.mark.slow
def test_fuzz_under_the_sanitizers(tmp_path: Path):
    flags = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    extension = build(tmp_path, *flags, skip="no sanitizers")
    runtime = subprocess.run([compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    library = runtime.stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("no libasan.so to preload")
    # The interpreter itself is not built for leak detection; its allocator would hide overruns.
    environment = {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    command = [sys.executable, "-m", PROGRAM, str(extension), "3000", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "poisoned=" in result.stdout
