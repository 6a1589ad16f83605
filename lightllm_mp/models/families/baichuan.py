"""Baichuan 7B and 13B, Baichuan2 7B and 13B: Llama with one projection for queries, keys and values.

All four say `model_type` baichuan. The 13B ones, told by their width or by having no `max_position_embeddings`, have
alibi in place of rope. The second generation, told by its vocabulary or else by its tokenizer's class, normalises the
head's rows.
"""

from __future__ import annotations

import re
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.decoder_weights import TensorNames, decoder
from lightllm_mp.models.families.common.family import Family, activation, rope_spec, standard_spec
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_rope, gguf_spec
from lightllm_mp.models.families.common.text_half import EACH, NO_OTHER, SYSTEM_FIRST, Backend, ModelFolder, TextHalf
from lightllm_mp.models.spec import ModelSpec

NAMES = TensorNames(qkv=("self_attn.W_pack",))
WIDTH_13B = 5120
LAYERS_13B = 40
ALIBI_BIAS = 8.0
FIRST_VOCAB, SECOND_VOCAB = 64000, 125696

USER_ID, ASSISTANT_ID = 195, 196
"""Role tokens of a chat, unless generation_config.json names others."""
RESERVED = re.compile(r"<reserved_\d+>")
CHAT = (
    EACH
    + "{% if role == 'user' %}{{ 'USER' ~ content }}"
    + "{% elif role == 'assistant' %}{{ 'ASSISTANT' ~ content ~ END }}"
    + (SYSTEM_FIRST + "{{ content }}")
    + NO_OTHER
    + "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ 'ASSISTANT' }}{% endif %}"
)


def read_hf(config: dict[str, Any]) -> ModelSpec:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    alibi = hidden == WIDTH_13B or "max_position_embeddings" not in config
    rope = None if alibi else rope_spec(config, dim=hidden // heads)
    return standard_spec(
        config,
        family="baichuan2" if _second(config) else "baichuan",
        rope=rope,
        alibi=alibi,
        max_context=int(config.get("max_position_embeddings") or config["model_max_length"]),
        activation=activation(config.get("hidden_act", "silu")),
    )


def _second(config: dict[str, Any]) -> bool:
    if config["vocab_size"] in (FIRST_VOCAB, SECOND_VOCAB):
        return bool(config["vocab_size"] == SECOND_VOCAB)
    return config.get("tokenizer_class") == "BaichuanTokenizer"


def hf_weights(spec: ModelSpec) -> list[Param]:
    return decoder(spec, NAMES, {NAMES.head: _unit_rows} if spec.family == "baichuan2" else {})


def _unit_rows(tensor: Any) -> Any:
    """Scales each row of the head to length 1 (`NormHead`); the file holds them as trained."""
    rows = tensor.float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    """The first generation only: files of the second do not say whether their head is normalised."""
    keys.refuse_unless("attention.max_alibi_bias", ALIBI_BIAS)
    alibi = keys.count("block_count") == LAYERS_13B or keys.get("attention.max_alibi_bias") is not None
    rope = None if alibi else gguf_rope(keys, dim=keys.head_dim)
    spec = gguf_spec(keys, family="baichuan", rope=rope, alibi=alibi)
    if spec.vocab == SECOND_VOCAB:
        raise ModelError("Baichuan2 is not supported as GGUF: the file does not say whether its head is normalised")
    return spec


def complete(backend: Backend, folder: ModelFolder) -> dict[int, str]:
    """Makes the role tokens split text, because upstream encodes each message on its own."""
    from tokenizers import AddedToken

    roles = _roles(backend, folder)
    if roles is not None:
        backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in roles])
    return {}


def template(backend: Backend, folder: ModelFolder) -> str | None:
    """The chat format. Only the first generation ends an answer with the end-of-sequence token."""
    roles = _roles(backend, folder)
    if roles is None:
        return None
    user, assistant = roles
    end = "eos_token" if user == "<reserved_102>" else "''"
    return CHAT.replace("END", end).replace("USER", user).replace("ASSISTANT", assistant)


def _roles(backend: Backend, folder: ModelFolder) -> tuple[str, str] | None:
    """The tokens before a message of the user and of the assistant; None for a base model."""
    if folder.generation and "user_token_id" not in folder.generation:
        return None
    ids = (
        folder.generation.get("user_token_id", USER_ID),
        folder.generation.get("assistant_token_id", ASSISTANT_ID),
    )
    user, assistant = (backend.id_to_token(id_) if isinstance(id_, int) and id_ >= 0 else None for id_ in ids)
    if user is None or assistant is None or not (RESERVED.fullmatch(user) and RESERVED.fullmatch(assistant)):
        return None
    return user, assistant


BAICHUAN = Family(
    name="baichuan",
    models="Baichuan 7B and 13B, Baichuan2 7B and 13B",
    model_types=("baichuan",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("baichuan",),
    read_gguf=read_gguf,
    gguf_weights=llama.gguf_weights,
    text=TextHalf(tokenizer_classes=("BaichuanTokenizer", "BaiChuanTokenizer"), template=template, complete=complete),
)
