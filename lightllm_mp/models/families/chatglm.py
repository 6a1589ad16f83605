"""ChatGLM2 and 3 (and GLM-4 9B's first form): half of each head is rotated, in neighbouring pairs."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder
from lightllm_mp.models.families.common.family import Family, bos_id, eos_ids, file_dtype, refuse
from lightllm_mp.models.families.common.gguf_rules import (
    GGUFKeys,
    gguf_rope,
    gguf_spec,
    plain_weights,
)
from lightllm_mp.models.families.common.text_half import EACH, NO_OTHER, SYSTEM_FIRST, Backend, ModelFolder, TextHalf
from lightllm_mp.models.spec import ModelSpec, RopeSpec

NAMES = TensorNames(
    embed="transformer.embedding.word_embeddings",
    norm="transformer.encoder.final_layernorm",
    head="transformer.output_layer",
    layer="transformer.encoder.layers.{}.",
    qkv=("self_attention.query_key_value",),
    o="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
)
THETA = 10000.0

SOP, EOP = "<|sop|>", "<|eop|>"
"""Our names for "sop" and "eop", syllables of ordinary words that upstream never reads as these tokens."""
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", SOP, EOP)
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

CHATGLM2 = (
    "{{ '[gMASK]<|sop|>' }}{% set ns = namespace(round=0) %}"
    + EACH
    + "{% if role == 'user' %}{% set ns.round = ns.round + 1 %}"
    + "{{ '[Round ' ~ ns.round ~ ']\n\n问：' ~ content ~ '\n\n答：' }}"
    + "{% elif role == 'assistant' %}{{ content ~ '\n\n' }}"
    + (SYSTEM_FIRST + "{{ content ~ '\n\n' }}")
    + NO_OTHER
)

# The space is the one that SentencePiece adds before a content that upstream encodes on its own.
CHATGLM3 = (
    "{{ '[gMASK]<|sop|>' }}"
    + EACH
    + "{% if role in ['system', 'user', 'assistant', 'observation', 'tool'] %}"
    + "{{ '<|' ~ role.replace('tool', 'observation') ~ '|>' ~ (message['metadata'] or '') ~ '\n' }}"
    + "{% if content %}{{ ' ' ~ content }}{% endif %}"
    + NO_OTHER
    + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """`kv_channels` is the width of a head; the heads together may be narrower than the hidden state."""
    if "kv_channels" not in config:
        raise ModelError("ChatGLM of the first generation is not supported")
    refuse(config, apply_residual_connection_post_layernorm=False, post_layer_norm=True)
    heads, head_dim = int(config["num_attention_heads"]), int(config["kv_channels"])
    bias = bool(config.get("add_bias_linear", False))
    return ModelSpec(
        family="chatglm",
        vocab=int(config["padded_vocab_size"]),
        hidden=int(config["hidden_size"]),
        layers=int(config["num_layers"]),
        heads=heads,
        kv_heads=int(config["multi_query_group_num"]) if config.get("multi_query_attention") else heads,
        head_dim=head_dim,
        intermediate=int(config["ffn_hidden_size"]),
        norm_eps=float(config.get("layernorm_epsilon", 1e-5)),
        rope=_rope(config, head_dim // 2),
        max_context=int(config["seq_length"]),
        eos_ids=eos_ids(config),
        bos_id=bos_id(config),
        file_dtype=file_dtype(config),
        tied=bool(config.get("tie_word_embeddings", False)),
        norm="rms" if config.get("rmsnorm", True) else "layer",
        norm_bias=not config.get("rmsnorm", True),
        qkv_bias=bias or bool(config.get("add_qkv_bias", False)),
        o_bias=bias,
        mlp_bias=bias,
    )


def _rope(config: dict[str, Any], dim: int) -> RopeSpec:
    """`rope_ratio` divides positions in ChatGLM2-32k, which only its name identifies, and multiplies the base in later
    models."""
    ratio = float(config.get("rope_ratio") or 1.0)
    if ratio != 1.0 and "chatglm2" in str(config.get("_name_or_path", "")).lower():
        return RopeSpec(theta=THETA, dim=dim, interleaved=True, scaling="linear", factor=ratio)
    return RopeSpec(theta=THETA * ratio, dim=dim, interleaved=True)


def hf_weights(spec: ModelSpec) -> list[Param]:
    return decoder(spec, NAMES)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    rope = gguf_rope(keys, dim=keys.head_dim // 2)
    return gguf_spec(keys, family="chatglm", rope=msgspec.structs.replace(rope, interleaved=True))


def complete(backend: Backend, folder: ModelFolder) -> dict[int, str]:
    """The special tokens follow the vocabulary, and "[gMASK] sop" begins every text."""
    from tokenizers import AddedToken, processors

    if backend.token_to_id("[gMASK]") is None:
        first = backend.get_vocab_size()
        names = SPECIAL + (ROLES if _is_glm3(folder) else ())
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        if [backend.token_to_id(name) for name in names] != list(range(first, first + len(names))):
            raise ModelError("a special token of ChatGLM is an ordinary token of tokenizer.model")
    mask, sop, eop = (backend.token_to_id(name) for name in ("[gMASK]", SOP, EOP))
    if mask is None or sop is None or eop is None:
        return {}
    begin = processors.TemplateProcessing(single="GMASK:0 SOP:0 $A:0", special_tokens=[("GMASK", mask), ("SOP", sop)])
    backend.post_processor = begin
    return {sop: "sop", eop: "eop"}


def _is_glm3(folder: ModelFolder) -> bool:
    names = f"{folder.model.get('_name_or_path', '')} {folder.path.name}".lower()
    files = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenization_chatglm.py")
    return "chatglm3" in names or any(folder.mentions(file, "<|observation|>") for file in files)


def template(backend: Backend, folder: ModelFolder) -> str | None:
    """ChatGLM3's chat format where its role tokens exist, else ChatGLM2's."""
    found = CHATGLM2 if backend.token_to_id("<|observation|>") is None else CHATGLM3
    return found if backend.token_to_id(SOP) is not None else found.replace(SOP, "sop")


CHATGLM = Family(
    name="chatglm",
    models="ChatGLM2, ChatGLM3",
    model_types=("chatglm",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("chatglm",),
    read_gguf=read_gguf,
    gguf_weights=plain_weights,
    ignore=(r"rotary_pos_emb\.inv_freq$",),
    text=TextHalf(
        tokenizer_classes=("ChatGLMTokenizer",),
        template=template,
        complete=complete,
        ends=("<|user|>", "<|observation|>"),
        rewrite={"[gMASK]sop": f"[gMASK]{SOP}"},
        gguf_names={"sop": SOP, "eop": EOP},
    ),
)
