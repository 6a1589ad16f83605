"""transformers reads the files that the tests write and computes the same logits: it confirms the layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightllm_mp.models.checkpoint.loader import load_model
from tests.models.checkpoint.gguf_file import write_gguf
from tests.models.checkpoint.test_gguf_families import RANDOM, SIZES, random_folder
from tests.models.golden import TOLERANCE
from tests.models.runner import Runner

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SAID: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 128},
    "qwen3_moe": {**RANDOM["qwen3_moe"], "head_dim": 128, "moe_intermediate_size": 768},
    "gemma2": {**RANDOM["gemma2 27b"], "num_hidden_layers": 4, "head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma3": {**RANDOM["gemma3"], "head_dim": 256, "query_pre_attn_scalar": 256, "rope_scaling": None},
    "phi3": {**RANDOM["phi3"], "vocab_size": 32064, "partial_rotary_factor": 1.0},
    "starcoder2": {**RANDOM["starcoder2"], "rope_theta": 1e4},
}
"""Sizes that transformers does not read but assumes."""


def read_by_transformers(path: Path) -> Any:
    """transformers' model of the file, built here, since its own reader needs another library."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing, surplus = model.load_state_dict({name: torch.as_tensor(x) for name, x in tensors.items()}, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not surplus
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "bloom", "stablelm", *SAID])
def test_the_same_logits(tmp_path, name):
    path, config = tmp_path / "model.gguf", SAID.get(name) or RANDOM.get(name)
    write_gguf(path, random_folder(tmp_path / "hf", {**SIZES, **config}) if config else name)
    tokens = torch.randint(3, 250, (40,), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = read_by_transformers(path)(tokens[None]).logits[0]
    runner = Runner(load_model(path, dtype=torch.float32))
    assert (runner.prefill(runner.sequence(), tokens.tolist()) - expected).abs().max() < TOLERANCE
