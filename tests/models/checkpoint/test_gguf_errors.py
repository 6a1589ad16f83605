"""GGUF files of all families that cannot be served are refused with one line that gives the reason."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint import gguf
from lightllm_mp.models.checkpoint.gguf import read_gguf
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.checkpoint.weight_rules import check_names
from lightllm_mp.models.model_config import gguf_model
from tests.models.checkpoint.gguf_file import write_gguf
from tests.models.checkpoint.test_gguf_families import SAID_BY_KEYS


@pytest.mark.parametrize(
    ("folder", "keys", "message"),
    [
        ("deepseek_v2", {"expert_gating_func": 3}, "deepseek2.expert_gating_func 3 is not supported"),
        ("deepseek_v2", {"attention.kv_lora_rank": None}, "key 'deepseek2.attention.kv_lora_rank' is missing"),
        ("qwen3", {"attention.causal": False}, "qwen3.attention.causal False is not supported"),
        ("qwen2", {"attention.head_count": None}, "key 'qwen2.attention.head_count' is missing"),
        ("qwen2", {"attention.head_count": "four"}, "a value cannot be used"),
        ("qwen2", {"attention.head_count": [4, 4, 4]}, "a value cannot be used"),
        ("qwen2", {"attention.head_count": 0}, "a value cannot be used"),
        ("qwen2", {"rope.scaling.type": "longrope"}, "rope scaling 'longrope' is not supported"),
        ("qwen2", {"attention.value_length": 8}, "qwen2.attention.value_length 8 is not supported"),
        ("qwen2_5_vl", {"rope.dimension_sections": None}, "mrope_section is missing"),
        ("qwen2_5_vl", {"rope.dimension_sections": [2, 3, 2, 1]}, "does not make up 8 rotary pairs"),
        ("gemma3", {"attention.sliding_window_pattern": [1, 0]}, "2 values for 4 layers"),
        ("baichuan_7b", {"attention.max_alibi_bias": 4.0}, "baichuan.attention.max_alibi_bias 4.0 is not supported"),
        ("minicpm", {"expert_count": 8}, "minicpm.expert_count 8 is not supported"),
        ("minicpm", {"logit_scale": 0.0}, "a value cannot be used"),
        ("mixtral", {"expert_used_count": None}, "key 'llama.expert_used_count' is missing"),
        ("mixtral", {"feed_forward_length": 64}, "has shape"),
        ("bloom", {"attention.layer_norm_epsilon": None}, "key 'bloom.attention.layer_norm_epsilon' is missing"),
    ],
)
def test_refused_in_one_line(tmp_path, folder, keys, message):
    path = tmp_path / "model.gguf"
    write_gguf(path, folder, keys=keys)
    with pytest.raises(ModelError) as caught:
        load_model(path, dtype=torch.float32)
    assert message in caught.value.message
    assert path.name in caught.value.message
    assert "\n" not in caught.value.message


ODD = (0, -1, 3, 2**32 - 1, 2**63, "x", np.array([1, 2, 3]), np.array([], np.float32), math.nan, math.inf, 1e-300)


@pytest.mark.parametrize("folder", ["deepseek_v2", "gemma3", "qwen3_moe", "chatglm2"])
def test_no_value_of_a_key_is_more_than_an_error(tmp_path, folder, monkeypatch):
    """Every key with every odd value: the file is refused, or the value does not matter to the tensors."""
    path, start = tmp_path / "model.gguf", time.monotonic()
    write_gguf(path, folder, keys=SAID_BY_KEYS.get(folder))
    file = read_gguf(path)
    shapes, told = {name: tensor.shape for name, tensor in file.tensors.items()}, dict(file.metadata)
    monkeypatch.setattr(gguf, "read_gguf", lambda path: file)
    messages = []
    for key, value in itertools.product(told, ODD):
        file.metadata = told | {key: value}
        try:
            family, spec, keys = gguf_model(path)
            assert family.gguf_weights is not None
            check_names(family.gguf_weights(spec, keys), shapes, family.gguf_ignore, str(path))
        except ModelError as error:
            messages.append(error.message)
    assert len(messages) > len(told)
    assert not any("\n" in message for message in messages)
    assert time.monotonic() - start < 60


def test_a_part_of_a_file_is_refused(tmp_path):
    path = tmp_path / "model-00001-of-00003.gguf"
    write_gguf(path, "qwen2", general={"split.count": 3})
    with pytest.raises(ModelError, match="one of 3 parts"):
        load_model(path, dtype=torch.float32)
