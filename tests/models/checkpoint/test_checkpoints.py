"""Good and bad checkpoint folders: shards, `.bin` files, and an error of one clear line for each fault."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.checkpoint.preflight import check_weights
from tests.models.golden import GOLDENS, check_prompt, prompts
from tests.models.runner import Runner


@pytest.fixture
def folder(tmp_path):
    """A copy of the llama folder without its weights, and the weights."""
    shutil.copy(GOLDENS / "llama" / "config.json", tmp_path)
    return tmp_path, load_file(GOLDENS / "llama" / "model.safetensors")


def load(path):
    return load_model(path, dtype=torch.float32)


def refusal(path) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert "\n" not in caught.value.message
    return caught.value.message


def works(path) -> None:
    runner, golden = Runner(load(path)), prompts("llama")[3]
    check_prompt(golden, runner.prefill(runner.sequence(), golden.ids))


def test_progress_counts_bytes_up_to_the_total():
    seen = []
    load_model(GOLDENS / "llama", dtype=torch.float32, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {seen[-1][0]}


def test_bin_file(folder):
    path, tensors = folder
    torch.save(tensors, path / "pytorch_model.bin")
    works(path)


def test_other_bin_files_are_no_weights(folder, capsys):
    path, tensors = folder
    torch.save(tensors, path / "pytorch_model.bin")
    torch.save(Planted(), path / "training_args.bin")
    torch.save(Planted(), path / "optimizer.bin")
    works(path)
    assert "planted" not in capsys.readouterr().out


def test_old_format_bin_file(folder):
    path, tensors = folder
    torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    works(path)


def test_sharded_bin_files(folder):
    path, tensors = folder
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: tensors[name] for name in part}, path / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    works(path)


class Planted:
    """Runs code if a reader that allows it unpickles it."""

    def __reduce__(self):
        return (print, ("planted",))


def test_bin_file_with_code_is_refused(folder, capsys):
    path, tensors = folder
    torch.save({**tensors, "planted": Planted()}, path / "pytorch_model.bin")
    assert "pytorch_model.bin: not a readable weight file" in refusal(path)
    assert "planted" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04" + bytes(100)])
def test_corrupt_bin_file(folder, content):
    path, _ = folder
    (path / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin: not a readable weight file" in refusal(path)


def test_one_other_safetensors_file(folder):
    path, tensors = folder
    save_file(tensors, path / "weights.safetensors")
    works(path)


def test_shards_without_index(folder):
    path, tensors = folder
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, path / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[1::2]}, path / "model-00002-of-00002.safetensors")
    works(path)


def test_no_weights(folder):
    assert "no weights found" in refusal(folder[0])


def test_missing_tensor(folder):
    path, tensors = folder
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors")
    assert "missing tensor model.layers.1.mlp.up_proj.weight" in refusal(path)


def test_surplus_tensor(folder):
    path, tensors = folder
    tensors["model.layers.0.mlp.extra.weight"] = torch.zeros(2)
    save_file(tensors, path / "model.safetensors")
    assert "unexpected tensor model.layers.0.mlp.extra.weight" in refusal(path)


def test_misshaped_tensor(folder):
    path, tensors = folder
    tensors["model.norm.weight"] = torch.ones(63)
    save_file(tensors, path / "model.safetensors")
    assert "model.norm.weight has shape [63], the configuration says [64]" in refusal(path)


def test_tensor_of_integers(folder):
    path, tensors = folder
    tensors["model.norm.weight"] = torch.ones(64, dtype=torch.int8)
    save_file(tensors, path / "model.safetensors")
    assert "model.norm.weight is stored as I8" in refusal(path)


def test_tensor_in_two_shards(folder):
    path, tensors = folder
    save_file(tensors, path / "model-00001-of-00002.safetensors")
    save_file({"model.norm.weight": torch.ones(64)}, path / "model-00002-of-00002.safetensors")
    assert "model.norm.weight is in another file too" in refusal(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: struct.pack("<Q", 1 << 62) + data[8:],
        lambda data: struct.pack("<Q", len(data)) + data[8:],
        lambda data: data[:8] + b"[" * 64 + data[72:],
    ],
    ids=["half", "cut in the length", "empty", "absurd header", "header past the end", "header no JSON"],
)
def test_corrupt_safetensors(folder, spoil):
    path, _ = folder
    data = (GOLDENS / "llama" / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(spoil(data))
    assert "model.safetensors: not a whole safetensors file" in refusal(path)


@pytest.mark.parametrize("name", ["model-00009-of-00009.safetensors", "../model.safetensors", "/etc/passwd"])
def test_index_naming_an_absent_file(folder, name):
    path, _ = folder
    index = {"weight_map": {"model.norm.weight": name}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(path)
    assert "model.safetensors.index.json: names" in message
    assert name in message


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', "nothing"])
def test_broken_index(folder, content):
    path, _ = folder
    (path / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(path)


def test_tied_head_needs_no_head(folder):
    path, tensors = folder
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    head = tensors.pop("lm_head.weight")
    save_file(tensors, path / "model.safetensors")
    tied = load(path)
    hidden = torch.randn(3, 64)
    expected = hidden @ tensors["model.embed_tokens.weight"].float().T
    assert (tied.logits(hidden) - expected).abs().max() < 1e-4
    assert not torch.equal(head, tensors["model.embed_tokens.weight"])


def test_old_yi_names(tmp_path):
    tensors = load_file(GOLDENS / "yi" / "model.safetensors")
    config = json.loads((GOLDENS / "yi" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "Yi"}))
    rename = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
    for old, new in rename.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    runner, golden = Runner(load(tmp_path)), prompts("yi")[3]
    check_prompt(golden, runner.prefill(runner.sequence(), golden.ids))


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
def test_layers_that_predict_further_tokens_are_read_past(tmp_path, name):
    """They follow the last layer. In a family without them the layer is surplus."""
    assert check_weights(GOLDENS / name).layers == 3
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDENS / "qwen3" / file, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.99.enorm.weight"] = torch.zeros(4)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"unexpected tensor model\.layers\.99\.enorm"):
        check_weights(tmp_path)


def test_bin_files_are_looked_at_before_anything_starts(folder):
    path, tensors = folder
    file = path / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    check_weights(path)
    torch.save(tensors, file)
    check_weights(path)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"not a whole \.bin file"):
        check_weights(path)
