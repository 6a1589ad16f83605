"""Dummy weights have the right shapes, need only config.json, and are the same in every process."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lightllm_mp.errors import ModelError
from lightllm_mp.kernels import reference
from lightllm_mp.kernels.quantised import ScaledWeight
from lightllm_mp.models.checkpoint.loader import load_model
from tests.models.golden import GOLDENS
from tests.models.runner import Runner


@pytest.fixture(
    params=[
        *("llama", "qwen", "qwen3_moe", "internlm2_reward", "minicpm", "deepseek_v3", "qwen3_next", "qwen3_5_moe"),
        *("gpt_oss", "gpt_oss_mxfp4"),
    ]
)
def folder(request, tmp_path):
    shutil.copy(GOLDENS / request.param / "config.json", tmp_path)
    return tmp_path


def made(path):
    return load_model(path, dtype=torch.float32, dummy=True)


def test_it_runs_and_is_the_same_each_time(folder):
    outputs = []
    for _ in range(2):
        runner = Runner(made(folder))
        outputs.append(runner.prefill(runner.sequence(), list(range(3, 40))))
    assert torch.isfinite(outputs[0]).all()
    assert torch.equal(*outputs)


def test_distribution_and_progress(tmp_path):
    shutil.copy(GOLDENS / "llama" / "config.json", tmp_path)
    seen = []
    model = load_model(tmp_path, dtype=torch.float32, dummy=True, progress=lambda *counts: seen.append(counts))
    embed = model.embedding.table
    assert abs(embed.mean()) < 1e-3
    assert abs(embed.std() - 0.02) < 1e-3
    assert torch.equal(model.norm.weight, torch.ones(64))
    assert seen[-1][0] == seen[-1][1] == model.weight_bytes


def test_what_it_needs(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        made(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"need a folder with a config\.json"):
        made(tmp_path / "model.gguf")


def test_projections_that_the_configuration_quantises(tmp_path):
    """8 bits, except the head and the modules that the configuration names."""
    config = json.loads((GOLDENS / "qwen3_moe" / "config.json").read_text())
    ignored = ["lm_head", "re:.*self_attn"]
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ignored}
    sizes = []
    for extra in ({}, {"quantization_config": quantised}):
        (tmp_path / "config.json").write_text(json.dumps(config | extra))
        model = load_model(tmp_path, dtype=torch.bfloat16, dummy=True, ops=reference.TABLE)
        sizes.append(model.weight_bytes)
        assert isinstance(model.layers[0].attention.qkv.weight, torch.Tensor)
        assert isinstance(model.layers[0].mlp.experts.down, ScaledWeight if extra else torch.Tensor)
        runner = Runner(model)
        assert torch.isfinite(runner.prefill(runner.sequence(), list(range(3, 10)))).all()
    assert sizes[1] < 0.8 * sizes[0]
