"""The look at a model's files, in a process of its own: it finds what it would find here, and leaves nothing here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp.cli.model_check import check_model, check_model_apart
from lightllm_mp.errors import ConfigError, ModelError, StartupError
from tests.paths import GOLDENS


def test_a_model_that_can_be_served() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    check_model_apart(GOLDENS / "llama", ranks=2, weights=True, images=False)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    for file in (GOLDENS / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return tmp_path


def test_what_is_wrong_is_told_as_it_would_be_here(torn: Path) -> None:
    with pytest.raises(ModelError) as here:
        check_model(torn, ranks=1, weights=True, images=False)
    with pytest.raises(ModelError) as told:
        check_model_apart(torn, ranks=1, weights=True, images=False)
    assert told.value.message == here.value.message
    check_model_apart(torn, ranks=1, weights=False, images=False)  # there are no weights to look at


def test_ranks_that_do_not_fit_are_a_mistake_of_the_flags() -> None:
    with pytest.raises(ConfigError) as here:
        check_model(GOLDENS / "llama", ranks=1000, weights=True, images=False)
    with pytest.raises(ConfigError) as told:
        check_model_apart(GOLDENS / "llama", ranks=1000, weights=True, images=False)
    assert (told.value.message, told.value.param) == (here.value.message, here.value.param)


def test_a_bug_there_is_no_silence_here(capfd: pytest.CaptureFixture[str]) -> None:
    many: Any = "many"
    with pytest.raises(StartupError, match="ended with code 1"):
        check_model_apart(GOLDENS / "llama", ranks=many, weights=True, images=False)
    assert "ValidationError" in capfd.readouterr().err


def test_what_it_imports_does_not_stay() -> None:
    program = f"""
import sys
from pathlib import Path
from lightllm_mp.cli import serve
serve.check_model_apart(Path({str(GOLDENS / "llama")!r}), ranks=1, weights=True, images=False)
print(*({{"numpy", "gguf", "torch", "aiohttp", "lightllm_mp.models.checkpoint.preflight"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
