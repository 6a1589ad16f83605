"""`lightllm-mp inspect`: the figures of the engine itself, what is wrong with a checkpoint, and no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightllm_mp.cli import main
from lightllm_mp.cli.inspect import command, report
from lightllm_mp.cli.inspect.machine import Machine
from lightllm_mp.cli.inspect.report import ModelReport, inspect
from lightllm_mp.config import RUN_AHEAD, STEP_TOKENS, EngineConfig
from lightllm_mp.engine.kv_sizing import plan_memory
from lightllm_mp.engine.window_sizing import windowed_limits
from lightllm_mp.errors import ConfigError, ModelError
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.decoder.state_pool import StatePool
from lightllm_mp.models.model_config import read_model_config
from tests.paths import GOLDENS

FOLDERS = ("llama", "llama_sharded", "qwen", "qwen3_moe", "mixtral", "minicpm", "internlm2_reward")
GPU = Machine("A GPU", 10 << 20, is_gpu=True)


@pytest.fixture
def folder(tmp_path: Path):
    """A copy of a golden checkpoint, without its outputs."""

    def copied(name: str) -> Path:
        for file in (GOLDENS / name).iterdir():
            if not file.name.startswith("golden."):
                shutil.copy(file, tmp_path)
        return tmp_path

    return copied


def look(path: Path, **options) -> ModelReport:
    return inspect(path, machine=GPU, **options)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_figures_are_those_of_the_loaded_model(name: str) -> None:
    report = look(GOLDENS / name, data_type="float32")
    model = load_model(GOLDENS / name, dtype=torch.float32)
    assert report.problems == []
    assert report.weight_bytes == model.weight_bytes == 4 * report.parameters
    assert report.kv_bytes_per_token == KVPool.token_bytes(model.spec, torch.float32)
    assert report.kind == ("text" if model.spec.pooling is None else "reward")
    assert report.tokenizer == "none"


@pytest.mark.parametrize("name", ["bloom", "chatglm2", "deepseek_v2", "gemma3", "starcoder", "yi"])
def test_kv_sizes_are_those_of_the_pool(name: str) -> None:
    spec = read_model_config(GOLDENS / name)
    assert 2 * spec.kv_elements == KVPool.token_bytes(spec, torch.float16)


def test_tokens_that_fit() -> None:
    report = look(GOLDENS / "llama")
    assert report.data_type == "float16"
    assert 0.8 * (10 << 20) < report.kv_tokens * report.kv_bytes_per_token + report.weight_bytes < 10 << 20
    small = inspect(GOLDENS / "llama", machine=Machine("A GPU", report.weight_bytes, is_gpu=True))
    assert small.problems == ["the weights leave no memory for a request"]


@pytest.mark.parametrize("name", ["gemma3", "gpt_oss"])
def test_layers_with_windows_take_their_part(name: str) -> None:
    machine = Machine("A GPU", 40 << 20, is_gpu=True)
    report = inspect(GOLDENS / name, machine=machine, data_type="float32")
    spec = read_model_config(GOLDENS / name)
    found = plan_memory(
        spec,
        torch.float32,
        EngineConfig(),
        machine.kv_room(report.weight_bytes, 0.93),
        limits=windowed_limits(spec, STEP_TOKENS["cuda"], RUN_AHEAD["cuda"]),
    )
    assert (report.kv_tokens, report.window_tokens) == (found.kv_tokens, found.window_tokens)
    assert (report.window_tokens > 0) == (name == "gemma3"), "contexts of gpt_oss are as short as a chunk and a window"
    told = f", {report.window_tokens:,} in windows" if report.window_tokens else ""
    assert f"KV tokens   about {report.kv_tokens:,} fit{told}\n" in command.described(report)


def test_states_take_their_part() -> None:
    machine = Machine("A GPU", 5 << 20, is_gpu=True)
    report = inspect(GOLDENS / "qwen3_next", machine=machine, data_type="float32")
    spec = read_model_config(GOLDENS / "qwen3_next")
    assert report.state_bytes == StatePool.place_bytes(spec, torch.float32)
    room = machine.kv_room(report.weight_bytes, 0.93)
    assert report.sequences == room // 2 // report.state_bytes - 1 < 256
    assert report.kv_tokens * report.kv_bytes_per_token < room // 2
    assert report.problems == []
    assert "states      16.5 KiB per sequence, of" in command.described(report)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "no weights found"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not a whole safetensors file"),
        (lambda path: path.write_bytes(bytes(8)), "not a whole safetensors file"),
        (lambda path: path.write_bytes(b"\xff" * 64), "not a whole safetensors file"),
    ],
)
def test_weights_that_cannot_be_used(folder, spoil, said: str) -> None:
    path = folder("llama")
    spoil(path / "model.safetensors")
    assert any(said in problem for problem in look(path).problems)


def test_weights_of_another_shape(folder) -> None:
    path = folder("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9, "auto_map": {"a": "b"}}))
    report = look(path)
    assert any("missing tensor model.layers.3" in problem for problem in report.problems)
    assert "the Python code of the folder is not used" in report.notes


def test_the_command(capsys: pytest.CaptureFixture[str], folder) -> None:
    path = folder("internlm2_reward")
    assert main.main(["inspect", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["family"], said["kind"], said["problems"]) == ("internlm2", "reward", [])
    assert main.main(["inspect", str(path)]) == 0
    table = capsys.readouterr().out
    assert "internlm2 (InternLM2ForRewardModel), reward model" in table
    (path / "model.safetensors").unlink()
    assert main.main(["inspect", str(path)]) == 1
    assert "PROBLEM" in capsys.readouterr().out


def test_what_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        main.COMMANDS["inspect"]([str(tmp_path / "none")])
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(ModelError, match="'other' is not supported"):
        main.COMMANDS["inspect"]([str(tmp_path)])


def test_without_torch() -> None:
    code = (
        "import sys; from lightllm_mp.cli.main import main; "
        "main(['inspect', sys.argv[1]]); print('torch' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(GOLDENS / "llama")], capture_output=True, text=True, timeout=60
    )
    assert ended.stdout.splitlines()[-1] == "False"


def test_the_flag_names_every_type_that_the_report_knows() -> None:
    assert ("auto", *report.WIDTHS) == command.DATA_TYPES
