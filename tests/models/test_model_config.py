"""Configurations become specs; wrong ones are refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lightllm_mp.errors import ModelError
from lightllm_mp.models.model_config import read_model_config
from tests.models.golden import GOLDENS

LLAMA1 = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 144,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-6,
    "vocab_size": 256,
    "torch_dtype": "float16",
    "eos_token_id": 2,
}


def spec_of(tmp_path, **changes):
    config = {key: value for key, value in {**LLAMA1, **changes}.items() if value != "absent"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_model_config(tmp_path)


def test_llama_1_defaults(tmp_path):
    spec = spec_of(tmp_path)
    assert (spec.kv_heads, spec.head_dim, spec.rope.theta, spec.rope.dim) == (4, 16, 10000.0, 16)
    assert (spec.eos_ids, spec.bos_id, spec.tied, spec.window) == ((2,), None, False, None)
    assert spec.file_dtype == "float16"


def test_explicit_head_dim_and_llama3_scaling():
    spec = read_model_config(GOLDENS / "llama3")
    assert (spec.head_dim, spec.kv_heads, spec.rope.scaling, spec.rope.factor) == (32, 1, "llama3", 8.0)
    assert spec.rope.original_context == 128
    assert spec.max_context == 8192


def test_stretched_contexts(tmp_path):
    assert spec_of(tmp_path, rope_scaling={"type": "linear", "factor": 4.0}).max_context == 8192
    assert spec_of(tmp_path, rope_scaling={"type": "dynamic", "factor": 2.0}).max_context == 4096
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    assert spec_of(tmp_path, rope_scaling=yarn).max_context == 8192


def test_newer_rope_parameters_key(tmp_path):
    spec = spec_of(tmp_path, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    assert (spec.rope.theta, spec.rope.scaling, spec.rope.factor) == (5e5, "linear", 2.0)


def test_window_is_mistrals_only(tmp_path):
    assert spec_of(tmp_path, model_type="mistral", sliding_window=4096).window == 4096
    assert spec_of(tmp_path, model_type="mistral", sliding_window=None).window is None
    assert spec_of(tmp_path, sliding_window=4096).window is None


def test_end_ids_of_both_files(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 9]}))
    assert spec_of(tmp_path).eos_ids == (2, 7, 9)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported"),
        ({"model_type": "absent"}, "None is not supported"),
        ({"hidden_size": "absent"}, "key 'hidden_size' is missing"),
        ({"hidden_size": "wide"}, "cannot be used"),
        ({"hidden_size": -64}, "must be positive"),
        ({"num_attention_heads": 0}, "cannot be used"),
        ({"num_key_value_heads": 3}, "not a multiple of 3"),
        ({"head_dim": 15}, "rotary dimension 15"),
        ({"hidden_act": "gelu"}, "'gelu' is not supported"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "'longrope' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised checkpoints"),
    ],
)
def test_refused(tmp_path, changes, part):
    with pytest.raises(ModelError, match=part) as caught:
        spec_of(tmp_path, **changes)
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_unreadable_json(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match="JSON"):
        read_model_config(tmp_path)


def test_no_such_path(tmp_path):
    with pytest.raises(ModelError, match="no such model"):
        read_model_config(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"config\.json"):
        read_model_config(tmp_path)


def test_reading_a_spec_imports_no_torch():
    code = f"""
import sys
from lightllm_mp.models.model_config import read_model_config
assert read_model_config({str(GOLDENS / "llama")!r}).layers == 3
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
