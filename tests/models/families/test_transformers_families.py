"""Variants and families without goldens, against transformers on tiny random models."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lightllm_mp.models.checkpoint.loader import load_model
from tests.models.families.test_transformers import SIZES, compare
from tests.models.golden import Prompt, Slots
from tests.models.runner import Runner

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

LONG = {**SIZES, "max_position_embeddings": 256}


@pytest.fixture
def tokens():
    return torch.randint(3, 256, (100,), generator=torch.Generator().manual_seed(5)).tolist()


def eager(model_class, config):
    config._attn_implementation = "eager"
    return model_class(config).eval()


def test_bloom_with_six_heads_and_prefixed_names(tmp_path, tokens):
    config = transformers.BloomConfig(vocab_size=256, hidden_size=96, n_layer=2, n_head=6)
    compare(eager(transformers.BloomForCausalLM, config), tmp_path, tokens, feed=50)


@pytest.mark.parametrize("multi_query", [True, False])
def test_starcoder(tmp_path, tokens, multi_query):
    sizes = {"vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    config = transformers.GPTBigCodeConfig(**sizes, multi_query=multi_query)
    compare(eager(transformers.GPTBigCodeForCausalLM, config), tmp_path, tokens, feed=50)


@pytest.mark.parametrize("window", [None, 20])
def test_starcoder2(tmp_path, tokens, window):
    config = transformers.Starcoder2Config(**{**LONG, "tie_word_embeddings": True}, sliding_window=window)
    compare(eager(transformers.Starcoder2ForCausalLM, config), tmp_path, tokens, feed=50)


def test_stablelm_12b(tmp_path, tokens):
    config = transformers.StableLmConfig(**LONG, use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=False)
    compare(eager(transformers.StableLmForCausalLM, config), tmp_path, tokens, feed=50)


def test_gemma(tmp_path, tokens):
    sizes = {**LONG, "head_dim": 32, "tie_word_embeddings": True}
    compare(eager(transformers.GemmaForCausalLM, transformers.GemmaConfig(**sizes)), tmp_path, tokens, feed=50)


def test_gemma3_scaled_globally_and_not_locally(tmp_path, tokens):
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    sizes = {**LONG, "head_dim": 32, "num_hidden_layers": 4, "tie_word_embeddings": True}
    config = transformers.Gemma3TextConfig(**sizes, sliding_window=16, sliding_window_pattern=3, rope_parameters=rope)
    compare(eager(transformers.Gemma3ForCausalLM, config), tmp_path, tokens, feed=50)


@pytest.mark.parametrize("mixture", [False, True])
def test_gemma4_whose_keys_are_values(tmp_path, tokens, mixture):
    """Global layers have fewer key-value heads, and the layers no per-layer embeddings; with experts beside the MLP."""
    experts = {"num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 24} if mixture else {}
    config = transformers.Gemma4TextConfig(
        **{**LONG, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4},
        head_dim=16,
        global_head_dim=32,
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=20,
        hidden_size_per_layer_input=0,
        enable_moe_block=mixture,
        **experts,
    )
    model = eager(transformers.Gemma4ForCausalLM, config)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("layer_scalar", "router.scale", "per_expert_scale")):
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    compare(model, tmp_path, tokens, feed=50)


def test_gemma4_images_see_themselves_in_layers_with_a_window(tmp_path, tokens):
    text = transformers.Gemma4TextConfig(
        **{**LONG, "num_hidden_layers": 4, "num_key_value_heads": 1, "tie_word_embeddings": True},
        head_dim=16,
        global_head_dim=32,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=20,
        use_bidirectional_attention="vision",
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=256,
    )
    config = transformers.Gemma4Config(text_config=text, vision_config=None, audio_config=None, image_token_id=255)
    theirs = eager(transformers.Gemma4ForConditionalGeneration, config)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    shown, embeds = [i % 255 for i in tokens], torch.randn(40, 64)
    ids = torch.tensor([[255 if 30 <= i < 70 else token for i, token in enumerate(shown)]])
    images = {"image": SimpleNamespace(pooler_output=[embeds], get=None)}
    with torch.inference_mode():
        types = (ids == 255).long()
        expected = theirs(ids, mm_token_type_ids=types, mm_encoder_outputs=images).logits[0]
    slots, pseudo = (Slots(30, 70, embeds),), [256 + i if 30 <= i < 70 else token for i, token in enumerate(shown)]
    none = torch.empty(0)
    prompt = Prompt(pseudo, [], (0, 0), none, none, none, slots=slots)
    runner = Runner(load_model(tmp_path, dtype=torch.float32))
    for chunk in (100, 17):
        mine = runner.prefill(runner.sequence(prompt), prompt.ids, chunk)
        assert (mine - expected).abs().max() < 5e-4


@pytest.mark.parametrize("grouped", [False, True])
def test_deepseek_v2_with_low_rank_queries(tmp_path, tokens, grouped):
    config = transformers.DeepseekV2Config(
        **{**LONG, "num_key_value_heads": 4, "num_hidden_layers": 3},
        first_k_dense_replace=1,
        kv_lora_rank=32,
        q_lora_rank=48,
        moe_intermediate_size=24,
        n_routed_experts=8,
        n_shared_experts=2,
        num_experts_per_tok=3,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        routed_scaling_factor=16.0,
        topk_method="group_limited_greedy" if grouped else "greedy",
        n_group=4 if grouped else 1,
        topk_group=2 if grouped else 1,
        v_head_dim=24,
    )
    compare(eager(transformers.DeepseekV2ForCausalLM, config), tmp_path, tokens, feed=50)


MOE = {"moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 1}
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24}
DEEPSEEK = {**LONG, **MOE, **LATENT, "num_key_value_heads": 4, "num_hidden_layers": 3}


def corrected(model):
    """With biases of the experts' choice, which `compare` does not change: they are no parameters."""
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.arange(len(buffer)).sin() * 0.5)
    return model


@pytest.mark.parametrize("kind", ["kimi_k2", "adjacent halves"])
def test_deepseek_v3(tmp_path, tokens, kind):
    """Kimi-K2 has one group of experts and its yarn corrects both sides alike."""
    if kind == "kimi_k2":
        rope = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0}
        rope |= {"mscale_all_dim": 1.0, "original_max_position_embeddings": 32, "rope_theta": 5e4}
        more = {"n_group": 1, "topk_group": 1, "rope_parameters": rope, "max_position_embeddings": 1024}
    else:
        more = {"n_group": 2, "topk_group": 1, "rope_interleave": False, "q_lora_rank": None, "norm_topk_prob": False}
    config = transformers.DeepseekV3Config(**{**DEEPSEEK, **more}, first_k_dense_replace=1)
    model = corrected(eager(transformers.DeepseekV3ForCausalLM, config))
    compare(model, tmp_path, tokens, feed=50, model_type="kimi_k2" if kind == "kimi_k2" else None)


def test_glm4_moe_with_head_norms(tmp_path, tokens):
    sizes = {**LONG, **MOE, "head_dim": 32, "num_hidden_layers": 3, "routed_scaling_factor": 2.5}
    config = transformers.Glm4MoeConfig(**sizes, use_qk_norm=True, attention_bias=True, first_k_dense_replace=1)
    compare(corrected(eager(transformers.Glm4MoeForCausalLM, config)), tmp_path, tokens, feed=50)


@pytest.mark.parametrize("layers", [None, ["sparse", "dense", "sparse"]])
def test_glm4_moe_lite(tmp_path, tokens, layers):
    config = transformers.Glm4MoeLiteConfig(**DEEPSEEK, mlp_layer_types=layers, routed_scaling_factor=1.8)
    compare(corrected(eager(transformers.Glm4MoeLiteForCausalLM, config)), tmp_path, tokens, feed=50)


def test_minimax_m2(tmp_path, tokens):
    sizes = {**LONG, "num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 32, "rotary_dim": 16}
    config = transformers.MiniMaxM2Config(**sizes)
    compare(corrected(eager(transformers.MiniMaxM2ForCausalLM, config)), tmp_path, tokens, feed=50)


@pytest.mark.parametrize("feed", [30, 50], ids=["short", "long"])
def test_phi3_with_two_sets_of_rope_factors(tmp_path, tokens, feed):
    """Upstream changes the frequencies when the answer grows beyond the trained length and keeps the old keys, so the
    short prompt's answer stays short here."""
    factors = torch.linspace(1.0, 4.0, 8).tolist()
    scaling = {"rope_type": "longrope", "short_factor": factors, "long_factor": [2 * x for x in factors]}
    config = transformers.Phi3Config(
        **LONG,
        original_max_position_embeddings=40,
        rope_parameters={**scaling, "rope_theta": 10000.0, "original_max_position_embeddings": 40},
        pad_token_id=0,
        sliding_window=None,
    )
    tokens = tokens if feed > 40 else tokens[:40]
    compare(eager(transformers.Phi3ForCausalLM, config), tmp_path, tokens, feed=feed)


def test_phi(tmp_path, tokens):
    config = transformers.PhiConfig(**LONG, partial_rotary_factor=0.5)
    compare(eager(transformers.PhiForCausalLM, config), tmp_path, tokens, feed=50)
