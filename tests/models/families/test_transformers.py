"""Options without goldens, against transformers on tiny random models: windows, dynamic rope, biases."""

from __future__ import annotations

import json

import pytest
import torch

from lightllm_mp.models.checkpoint.loader import load_model
from tests.models.runner import Runner

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def compare(theirs, path, tokens: list[int], feed: int, model_type: str | None = None) -> None:
    """Teacher-forced logits: a prompt of `feed` tokens, then the rest one by one, on both sides. `model_type` replaces
    transformers' own in the folder."""
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(path)
    if model_type is not None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    runner = Runner(load_model(path, dtype=torch.float32))
    seq = runner.sequence()
    mine = [runner.prefill(seq, tokens[:feed]), *(runner.step([(seq, [i])])[0] for i in tokens[feed:])]
    with torch.inference_mode():
        out = theirs(torch.tensor([tokens[:feed]]), use_cache=True)
        expected = [out.logits[0]]
        for i in tokens[feed:]:
            out = theirs(torch.tensor([[i]]), past_key_values=out.past_key_values, use_cache=True)
            expected.append(out.logits[0])
    assert (torch.cat(mine) - torch.cat(expected)).abs().max() < 5e-4


@pytest.fixture
def tokens():
    return torch.randint(3, 256, (100,), generator=torch.Generator().manual_seed(5)).tolist()


def test_mistral_window(tmp_path, tokens):
    config = transformers.MistralConfig(**{**SIZES, "max_position_embeddings": 512}, sliding_window=20)
    config._attn_implementation = "eager"
    compare(transformers.MistralForCausalLM(config).eval(), tmp_path, tokens, feed=50)


def test_dynamic_rope_beyond_the_trained_length(tmp_path, tokens):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = transformers.LlamaConfig(**SIZES, rope_parameters=scaling)
    compare(transformers.LlamaForCausalLM(config).eval(), tmp_path, tokens, feed=60)


def test_biases(tmp_path, tokens):
    config = transformers.LlamaConfig(**{**SIZES, "max_position_embeddings": 128}, attention_bias=True, mlp_bias=True)
    compare(transformers.LlamaForCausalLM(config).eval(), tmp_path, tokens, feed=50)


@pytest.mark.parametrize("renormalise", [True, False])
def test_qwen2_moe(tmp_path, tokens, renormalise):
    sizes = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40, "max_position_embeddings": 512}
    more = {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": renormalise, "mlp_only_layers": [1]}
    config = transformers.Qwen2MoeConfig(**{**SIZES, **sizes, "num_hidden_layers": 3}, **more)
    compare(transformers.Qwen2MoeForCausalLM(config).eval(), tmp_path, tokens, feed=50)


def test_qwen3_moe_with_dense_layers(tmp_path, tokens):
    sizes = {"moe_intermediate_size": 24, "head_dim": 32, "max_position_embeddings": 512, "num_hidden_layers": 4}
    more = {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": False, "decoder_sparse_step": 2}
    config = transformers.Qwen3MoeConfig(**{**SIZES, **sizes}, **more)
    compare(transformers.Qwen3MoeForCausalLM(config).eval(), tmp_path, tokens, feed=50)


def test_qwen2_window_from_a_layer_on(tmp_path, tokens):
    sizes = {**SIZES, "num_hidden_layers": 4, "max_position_embeddings": 512}
    window = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}
    config = transformers.Qwen2Config(**sizes, **window)
    config._attn_implementation = "eager"
    compare(transformers.Qwen2ForCausalLM(config).eval(), tmp_path, tokens, feed=50)


def test_mixtral_window(tmp_path, tokens):
    sizes = {**SIZES, "max_position_embeddings": 512, "num_local_experts": 4, "sliding_window": 20}
    config = transformers.MixtralConfig(**sizes)
    config._attn_implementation = "eager"
    compare(transformers.MixtralForCausalLM(config).eval(), tmp_path, tokens, feed=50)
