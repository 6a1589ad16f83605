"""Llama 1, 2 and 3, and what shares its network: Yi, SmolLM, and Mistral as a GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families.base import INV_FREQ, Family, rope_spec, standard_spec
from lightllm_mp.models.families.rules import Names, decoder
from lightllm_mp.models.spec import ModelSpec, RopeSpec
from lightllm_mp.models.weights import Param

if TYPE_CHECKING:
    from lightllm_mp.models.gguf import GGUFFile


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """Spec of a `config.json` under Llama's keys. Llama 1 lacks the kv head count and theta."""
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"activation {config['hidden_act']!r} is not supported for this family")
    bias = bool(config.get("attention_bias", False))
    mlp_bias = bool(config.get("mlp_bias", False))
    return standard_spec(config, family="llama", qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)


def hf_weights(spec: ModelSpec) -> list[Param]:
    """Weight rules under the Hugging Face names."""
    return decoder(spec, Names())


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


GGUF_NAMES = Names(
    embed="token_embd",
    norm="output_norm",
    head="output",
    layer="blk.{}.",
    input_norm="attn_norm",
    post_norm="ffn_norm",
    qkv=("attn_q", "attn_k", "attn_v"),
    o="attn_output",
    up=("ffn_gate", "ffn_up"),
    down="ffn_down",
)


def gguf_weights(spec: ModelSpec) -> list[Param]:
    """Weight rules under the GGUF names."""
    unpermute = {"attn_q": _half_rotation_rows(spec.heads), "attn_k": _half_rotation_rows(spec.kv_heads)}
    return decoder(spec, GGUF_NAMES, unpermute)


def _half_rotation_rows(heads: int):
    """Undoes the row order of llama.cpp's converter, which puts the two members of a rotary pair side by side."""

    def reorder(tensor: Any) -> Any:
        pairs = tensor.shape[0] // heads // 2
        return tensor.reshape(heads, pairs, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)

    return reorder


def _yi_old_weights(spec: ModelSpec) -> list[Param]:
    return decoder(spec, Names(input_norm="ln1", post_norm="ln2"))


LLAMA = Family(
    name="llama",
    model_types=("llama",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("llama",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
    ignore=(INV_FREQ, r"^rope_freqs\.weight$"),
)

YI_OLD = Family(name="yi", model_types=("Yi",), read_hf=read_hf, hf_weights=_yi_old_weights)
"""Yi's first releases: Llama under other norm names."""
