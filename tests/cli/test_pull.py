"""`lightllm-mp pull`: the library of Hugging Face against a hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightllm_mp.cli import main
from lightllm_mp.cli.pull import choose
from lightllm_mp.errors import ConfigError, ModelError
from lightllm_mp.model_files import default_model
from lightllm_mp.model_files.default_model import FILE, OFFLINE, find_model
from tests.cli.fake_hub import COMMIT, FakeHub, fake_hub
from tests.paths import ROOT

NAME = "org/tiny-1.0"
FOLDER = {
    "config.json": b"{}",
    "tokenizer.json": b"{} ",
    "README.md": b"#",
    "modeling.py": b"1",
    "model-00001-of-00002.safetensors": b"a",
    "model-00002-of-00002.safetensors": b"b",
    "model.safetensors.index.json": b" {}",
    "consolidated.safetensors": b"c",
    "pytorch_model.bin": b"d",
    "pytorch_model.bin.index.json": b"{}",
    "onnx/model.onnx": b"e",
    "1_Pooling/config.json": b" {} ",
}
TAKEN = {
    "1_Pooling/config.json",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
}
GGUFS = {"a-Q4_K_M.gguf": b"q4", "a-Q8_0.gguf": b"q8", "mmproj-a-f16.gguf": b"mm", "config.json": b"{}"}


def pull(hub: FakeHub | str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    url = hub if isinstance(hub, str) else hub.url
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    env.pop(OFFLINE, None)
    command = [sys.executable, "-P", "-m", "lightllm_mp", "pull", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=90)


def test_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    with fake_hub(NAME, FOLDER) as hub:
        done = pull(hub, tmp_path, f"hf:{NAME}")
        assert done.returncode == 0, done.stderr
        path, serve = done.stdout.splitlines()
        assert serve == f"serve it: lightllm-mp serve --model-dir {path}"
        assert set(hub.sent) == TAKEN
        assert {str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file()} == TAKEN
        assert path.endswith(COMMIT)
        assert f"{NAME}: 6 files, 14 bytes, into {tmp_path}" in done.stderr
        hub.sent.clear()
        assert pull(hub, tmp_path, NAME, "--revision", "main").stdout == done.stdout
        assert hub.sent == []
        refused = pull(hub, tmp_path, NAME, "--revision", "none")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "has no such --revision" in refused.stderr


def test_one_of_several_gguf_files(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    with fake_hub(NAME, GGUFS) as hub:
        asked = pull(hub, tmp_path, NAME)
        assert asked.returncode == 1
        assert "choose with --include; a-Q4_K_M.gguf (2 bytes), a-Q8_0.gguf (2 bytes)" in asked.stderr
        done = pull(hub, tmp_path, NAME, "--include", "*Q8_0.gguf", "mmproj*")
        path = Path(done.stdout.splitlines()[0])
        assert path.read_bytes() == b"q8"
        assert {file.name for file in path.parent.iterdir()} == {"a-Q8_0.gguf", "mmproj-a-f16.gguf"}


def test_what_a_hub_refuses_and_a_hub_that_is_away(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    with fake_hub(NAME, FOLDER) as hub:
        for spoil, name, said in (
            (False, "org/other", "has no such repository; if it is private, set HF_TOKEN"),
            (True, NAME, f"accept its terms at {hub.url}/{NAME}, then set HF_TOKEN"),
        ):
            hub.gated = spoil
            done = pull(hub, tmp_path, name)
            assert (done.returncode, done.stdout) == (1, "")
            assert said in done.stderr
            assert "Traceback" not in done.stderr
        url = hub.url
    done = pull(url, tmp_path, NAME)
    assert done.returncode == 1
    assert f"{NAME}: {url} cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1


def sizes(names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), 1 << 30)


@pytest.mark.parametrize(
    ("there", "include", "taken"),
    [
        ("config.json pytorch_model.bin x.h5 tf_model.h5", [], "config.json pytorch_model.bin"),
        ("config.json odd.safetensors pytorch_model.bin", [], "config.json odd.safetensors"),
        ("config.json one.gguf", [], "one.gguf"),
        ("a.gguf b/b.gguf", ["b/*"], "b/b.gguf"),
        ("config.json model.safetensors model.fp16.safetensors", ["model.fp16*"], "config.json model.fp16.safetensors"),
        ("tokenizer.model vocab.tiktoken chat_template.jinja model.safetensors", [], "all"),
    ],
)
def test_choice(there: str, include: list[str], taken: str) -> None:
    expected = sorted((there if taken == "all" else taken).split())
    assert choose(NAME, sizes(there), include) == expected


def test_no_choice() -> None:
    with pytest.raises(ModelError, match=r"no file matches x\*; it has config.json \(1 GiB\)"):
        choose(NAME, sizes("config.json"), ["x*"])
    with pytest.raises(ModelError, match=r"no safetensors, \.bin or GGUF files"):
        choose(NAME, sizes("config.json training_args.bin optimizer.bin"), [])


def test_without_the_library_and_offline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(OFFLINE, raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main.main(["pull", NAME]) == 1
    assert "huggingface_hub is not installed; run: " in capsys.readouterr().err
    monkeypatch.setenv(OFFLINE, "1")
    assert main.main(["pull", NAME]) == 1
    assert f"{OFFLINE} is set" in capsys.readouterr().err
    assert main.main(["pull", "name"]) == main.main(["pull", "../x"]) == main.main(["pull", "--revison", "x"]) == 2


def test_without_a_name_the_default_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(default_model, "PACKAGE", "no_such_package_is_installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = tmp_path / "lightllm_mp" / FILE
    cached.parent.mkdir()
    cached.touch()
    assert main.main(["pull"]) == 0
    assert capsys.readouterr().out == f"{cached}\nserve it: lightllm-mp serve\n"


def test_a_name_of_a_hub_is_no_folder_and_the_refusal_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (NAME, f"hf:{NAME}"):
        with pytest.raises(
            ConfigError, match=f"no such folder or file; from a Hugging Face hub: lightllm-mp pull {NAME}$"
        ):
            find_model(name)
    with pytest.raises(ConfigError, match=r"no such folder or file$"):
        find_model("/nowhere/at/all")
    assert main.main(["inspect", NAME]) == 2
    assert f"lightllm-mp pull {NAME}" in capsys.readouterr().err
