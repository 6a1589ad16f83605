"""Llama 1, 2 and 3, and what shares its network: Yi, Mistral, SmolLM."""

from __future__ import annotations

from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families.base import INV_FREQ, Family, bos_id, eos_ids, file_dtype, rope_spec, stretched_context
from lightllm_mp.models.families.rules import linear
from lightllm_mp.models.gguf import GGUFFile
from lightllm_mp.models.spec import ModelSpec, RopeSpec
from lightllm_mp.models.weights import Param, Piece


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """Spec of a `config.json` with `model_type` llama or mistral. Llama 1 lacks the kv head count and theta."""
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"activation {config['hidden_act']!r} is not supported for this family")
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    rope = rope_spec(config, dim=head_dim)
    attention_bias = bool(config.get("attention_bias", False))
    window = config.get("sliding_window") if config["model_type"] == "mistral" else None
    return ModelSpec(
        family="llama",
        vocab=int(config["vocab_size"]),
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        intermediate=int(config["intermediate_size"]),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=rope,
        max_context=stretched_context(config, rope),
        eos_ids=eos_ids(config),
        bos_id=bos_id(config),
        tied=bool(config.get("tie_word_embeddings", False)),
        window=None if window is None else int(window),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        file_dtype=file_dtype(config),
    )


def hf_weights(spec: ModelSpec, *, input_norm: str = "input_layernorm", post_norm: str = "post_attention_layernorm"):
    """Weight rules under the Hugging Face names."""
    s = spec
    params = [
        Param("embed", (Piece("model.embed_tokens.weight", (s.vocab, s.hidden)),)),
        Param("norm", (Piece("model.norm.weight", (s.hidden,)),)),
    ]
    if not s.tied:
        params.append(Param("head", (Piece("lm_head.weight", (s.vocab, s.hidden)),)))
    for i in range(s.layers):
        at, to = f"model.layers.{i}.", f"layers.{i}."
        qkv = (("self_attn.q_proj", s.q_size), ("self_attn.k_proj", s.kv_size), ("self_attn.v_proj", s.kv_size))
        params += [
            Param(to + "input_norm", (Piece(f"{at}{input_norm}.weight", (s.hidden,)),)),
            Param(to + "post_norm", (Piece(f"{at}{post_norm}.weight", (s.hidden,)),)),
            *linear(to + "qkv", at, qkv, s.hidden, s.qkv_bias),
            *linear(to + "o", at, (("self_attn.o_proj", s.hidden),), s.q_size, s.o_bias),
            *linear(
                to + "gate_up",
                at,
                (("mlp.gate_proj", s.intermediate), ("mlp.up_proj", s.intermediate)),
                s.hidden,
                s.mlp_bias,
            ),
            *linear(to + "down", at, (("mlp.down_proj", s.hidden),), s.intermediate, s.mlp_bias),
        ]
    return params


def read_gguf(file: GGUFFile) -> ModelSpec:
    """Spec of a GGUF file of architecture `llama`, which also holds Mistral and SmolLM."""
    get = file.metadata.get
    heads, hidden = int(file.metadata["llama.attention.head_count"]), int(file.metadata["llama.embedding_length"])
    head_dim = int(get("llama.attention.key_length") or hidden // heads)
    context = int(file.metadata["llama.context_length"])
    eos = (get("tokenizer.ggml.eos_token_id"), get("tokenizer.ggml.eot_token_id"))
    bos = get("tokenizer.ggml.bos_token_id")
    if get("llama.expert_count"):
        raise ModelError("mixtures of experts are not supported for this family")
    return ModelSpec(
        family="llama",
        vocab=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        hidden=hidden,
        layers=int(file.metadata["llama.block_count"]),
        heads=heads,
        kv_heads=int(get("llama.attention.head_count_kv") or heads),
        head_dim=head_dim,
        intermediate=int(file.metadata["llama.feed_forward_length"]),
        norm_eps=float(file.metadata["llama.attention.layer_norm_rms_epsilon"]),
        rope=_gguf_rope(file, head_dim, context),
        max_context=context,
        eos_ids=tuple(dict.fromkeys(int(i) for i in eos if i is not None)),
        bos_id=None if bos is None else int(bos),
        tied="output.weight" not in file.tensors,
        window=int(get("llama.attention.sliding_window") or 0) or None,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        o_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        file_dtype=file.most_common_type(),
    )


def _gguf_rope(file: GGUFFile, head_dim: int, context: int) -> RopeSpec:
    get = file.metadata.get
    theta = float(get("llama.rope.freq_base") or 10000.0)
    dim = int(get("llama.rope.dimension_count") or head_dim)
    kind = get("llama.rope.scaling.type") or "none"
    if "rope_freqs.weight" in file.tensors:
        divisors = tuple(float(x) for x in file.read("rope_freqs.weight").reshape(-1))
        if len(divisors) != dim // 2:
            raise ModelError(f"tensor rope_freqs.weight has {len(divisors)} values, {dim // 2} are expected")
        return RopeSpec(theta=theta, dim=dim, divisors=divisors)
    if kind == "none":
        return RopeSpec(theta=theta, dim=dim)
    config = {
        "rope_theta": theta,
        "max_position_embeddings": context,
        "rope_scaling": {
            "type": kind,
            "factor": get("llama.rope.scaling.factor"),
            "original_max_position_embeddings": get("llama.rope.scaling.original_context_length"),
        },
    }
    return rope_spec(config, dim=dim)


def gguf_weights(spec: ModelSpec) -> list[Param]:
    """Weight rules under the GGUF names."""
    s = spec
    params = [
        Param("embed", (Piece("token_embd.weight", (s.vocab, s.hidden)),)),
        Param("norm", (Piece("output_norm.weight", (s.hidden,)),)),
    ]
    if not s.tied:
        params.append(Param("head", (Piece("output.weight", (s.vocab, s.hidden)),)))
    unpermute = {"attn_q": _half_rotation_rows(s.heads), "attn_k": _half_rotation_rows(s.kv_heads)}
    qkv = (("attn_q", s.q_size), ("attn_k", s.kv_size), ("attn_v", s.kv_size))
    for i in range(s.layers):
        at, to = f"blk.{i}.", f"layers.{i}."
        params += [
            Param(to + "input_norm", (Piece(at + "attn_norm.weight", (s.hidden,)),)),
            Param(to + "post_norm", (Piece(at + "ffn_norm.weight", (s.hidden,)),)),
            *linear(to + "qkv", at, qkv, s.hidden, s.qkv_bias, unpermute),
            *linear(to + "o", at, (("attn_output", s.hidden),), s.q_size, s.o_bias),
            *linear(
                to + "gate_up", at, (("ffn_gate", s.intermediate), ("ffn_up", s.intermediate)), s.hidden, s.mlp_bias
            ),
            *linear(to + "down", at, (("ffn_down", s.hidden),), s.intermediate, s.mlp_bias),
        ]
    return params


def _half_rotation_rows(heads: int):
    """Undoes the row order of llama.cpp's converter, which puts the two members of a rotary pair side by side."""

    def reorder(tensor: Any) -> Any:
        pairs = tensor.shape[0] // heads // 2
        return tensor.reshape(heads, pairs, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)

    return reorder


def _yi_old_weights(spec: ModelSpec) -> list[Param]:
    return hf_weights(spec, input_norm="ln1", post_norm="ln2")


LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral"),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("llama",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
    ignore=(INV_FREQ, r"^rope_freqs\.weight$"),
)

YI_OLD = Family(name="yi", model_types=("Yi",), read_hf=read_hf, hf_weights=_yi_old_weights)
"""Yi's first releases: Llama under other norm names."""
