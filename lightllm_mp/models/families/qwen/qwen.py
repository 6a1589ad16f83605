"""Qwen, first version: dynamic NTK by the length of the prompt, and log n attention."""

from __future__ import annotations

from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import ends, linear, norm
from lightllm_mp.models.families.common.family import Family, bos_id, eos_ids, file_dtype
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec, plain_weights
from lightllm_mp.models.families.common.text_half import EACH, END_EACH, Backend, ModelFolder, TextHalf
from lightllm_mp.models.spec import ModelSpec, RopeSpec

END_OF_TEXT, IM_START, IM_END = 151643, 151644, 151645
"""Ids in all released checkpoints; base models end with the first, chat models with the others too."""
CHAT = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + EACH
    + "{{ '<|im_start|>' ~ role ~ '\n' ~ content ~ '<|im_end|>\n' }}"
    + END_EACH
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """`intermediate_size` is twice the MLP's width; `seq_length` is the training length."""
    heads, head_dim, vocab = (int(config[name]) for name in ("num_attention_heads", "kv_channels", "vocab_size"))
    trained, bias = int(config["seq_length"]), not config.get("no_bias", True)
    return ModelSpec(
        family="qwen",
        vocab=vocab,
        hidden=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        intermediate=int(config["intermediate_size"]) // 2,
        norm_eps=float(config["layer_norm_epsilon"]),
        rope=RopeSpec(
            theta=float(config.get("rotary_emb_base", 10000)),
            dim=int(head_dim * float(config.get("rotary_pct", 1.0))),
            scaling="qwen" if config.get("use_dynamic_ntk") else "default",
            original_context=trained,
        ),
        max_context=int(config.get("max_position_embeddings") or trained),
        eos_ids=_eos_ids(config, vocab),
        bos_id=bos_id(config),
        file_dtype=file_dtype(config),
        tied=bool(config.get("tie_word_embeddings", False)),
        log_n_scale=trained if config.get("use_logn_attn") else 0,
        qkv_bias=True,
        o_bias=bias,
        mlp_bias=bias,
    )


def _eos_ids(config: dict[str, Any], vocab: int) -> tuple[int, ...]:
    """The ids of the files, else the family's; a chat model also ends with a turn."""
    found = eos_ids(config) or (END_OF_TEXT,)
    if config.get("generation_config", {}).get("chat_format") == "chatml":
        found += (IM_END, IM_START)
    return tuple(i for i in dict.fromkeys(found) if i < vocab)


def hf_weights(spec: ModelSpec) -> list[Param]:
    s = spec
    params = ends(s, embed="transformer.wte", norm_name="transformer.ln_f", head="lm_head")
    for i in range(s.layers):
        at, to = f"transformer.h.{i}.", f"layers.{i}."
        gate_up = (("mlp.w2", s.intermediate), ("mlp.w1", s.intermediate))
        params += [
            *norm(to + "input_norm", at + "ln_1", s),
            *norm(to + "post_norm", at + "ln_2", s),
            *linear(to + "qkv", at, (("attn.c_attn", s.q_size + 2 * s.kv_size),), s.hidden, True),
            *linear(to + "o", at, (("attn.c_proj", s.hidden),), s.q_size, s.o_bias),
            *linear(to + "gate_up", at, gate_up, s.hidden, s.mlp_bias),
            *linear(to + "down", at, (("mlp.c_proj", s.hidden),), s.intermediate, s.mlp_bias),
        ]
    return params


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    """The file has neither dynamic NTK, log n attention nor the training length; it is served without, as by
    llama.cpp."""
    return gguf_spec(keys, family="qwen", intermediate=keys.integer("feed_forward_length") // 2)


def template(backend: Backend, folder: ModelFolder) -> str | None:
    return CHAT if folder.generation.get("chat_format", "chatml") == "chatml" else None


QWEN = Family(
    name="qwen",
    models="Qwen 1.8B to 72B (dynamic NTK, log n)",
    model_types=("qwen",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("qwen",),
    read_gguf=read_gguf,
    gguf_weights=plain_weights,
    text=TextHalf(tokenizer_classes=("QWenTokenizer",), template=template, ends=("<|im_end|>", "<|im_start|>")),
)
