"""MXFP4 folders: their values, and errors."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels.quantised import BlockRows, BlockWeight
from lightllm_mp.kernels.reference.quantised import expanded
from lightllm_mp.models.checkpoint.files import open_folder
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.checkpoint.mxfp4 import Mxfp4Checkpoint
from lightllm_mp.models.checkpoint.preflight import check_weights
from lightllm_mp.models.model_config import read_model_config
from tests.models.golden import GOLDENS

FOLDER = GOLDENS / "gpt_oss_mxfp4"
STEM = "model.layers.1.mlp.experts.gate_up_proj"
VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "copy")
    return tmp_path / "copy"


def change(folder, **tensors: torch.Tensor | None) -> None:
    """Replaces parts of one weight, or leaves them out."""
    stored = load_file(folder / "model.safetensors")
    for part, tensor in tensors.items():
        stored.pop(f"{STEM}_{part}")
        if tensor is not None:
            stored[f"{STEM}_{part}"] = tensor
    save_file(stored, folder / "model.safetensors")


def test_blocks_are_those_of_ggml():
    files = load_file(FOLDER / "model.safetensors")
    blocks, scales = files[STEM + "_blocks"].int(), files[STEM + "_scales"].int()
    codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
    expected = (VALUES[codes] * torch.exp2(scales - 127.0)[..., None]).flatten(-2)
    checkpoint = Mxfp4Checkpoint(open_folder(FOLDER), "here")
    ((name, rows),) = checkpoint.stream({STEM})
    assert name == STEM
    assert isinstance(rows, BlockRows)
    assert rows.type == GGMLQuantizationType.MXFP4
    assert torch.equal(expanded(BlockWeight((rows,)), torch.float32), expected)
    assert checkpoint.sizes[STEM] == rows.rows.nbytes == expected.numel() // 32 * 17


def test_a_whole_folder_passes_the_check_before_start():
    assert check_weights(FOLDER).file_dtype == "mxfp4"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"scales": None}, "gate_up_proj_blocks is .*, but its scales are missing"),
        ({"scales": torch.zeros(6, 64, 3, dtype=torch.uint8)}, r"its scales are \[6, 64, 3\]"),
        ({"blocks": torch.zeros(6, 64, 2, 15, dtype=torch.uint8)}, r"gate_up_proj_blocks is \[6, 64, 2, 15\]"),
        ({"blocks": None}, "missing tensor model.layers.1.mlp.experts.gate_up_proj"),
    ],
)
def test_parts_that_do_not_fit(folder, tensors, words):
    change(folder, **tensors)
    for read in (check_weights, lambda path: load_model(path, dtype=torch.float32)):
        with pytest.raises(ModelError, match=words):
            read(folder)


def test_parts_of_another_type(folder):
    change(folder, blocks=torch.zeros(6, 64, 2, 16))
    with pytest.raises(ModelError, match="gate_up_proj_blocks is stored as floating point numbers, expected is U8"):
        load_model(folder, dtype=torch.float32)


def test_other_families_have_none(tmp_path):
    config = json.loads((GOLDENS / "llama" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(ModelError, match="quant_method 'mxfp4' is not supported for the family llama"):
        read_model_config(tmp_path)


def test_another_limit_of_the_activation_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "swiglu_limit": 5.0}))
    with pytest.raises(ModelError, match=r"swiglu_limit 5\.0 is not supported"):
        read_model_config(folder)


def test_random_weights_stay_in_blocks(tmp_path):
    shutil.copy(FOLDER / "config.json", tmp_path)
    made = load_model(tmp_path, dtype=torch.bfloat16, dummy=True)
    assert made.weight_bytes == load_model(FOLDER, dtype=torch.bfloat16).weight_bytes
