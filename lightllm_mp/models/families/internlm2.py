"""InternLM2 and 2.5, and their reward models: the rows of one fused QKV projection come group by group."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.decoder_weights import linear, norm
from lightllm_mp.models.families.common.family import Family
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys, gguf_spec
from lightllm_mp.models.families.common.text_half import EACH, END_EACH, Backend, ModelFolder, TextHalf
from lightllm_mp.models.spec import ModelSpec, PoolingSpec

TURN_TOKENS = (("<|im_start|>", "<|im_end|>"), ("[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"))
"""Start and end of a turn. Early releases name the two tokens by their places in the vocabulary."""
CHAT = (
    "{{ bos_token }}"
    + EACH
    + "{{ 'START' ~ role ~ '\n' ~ content ~ 'END\n' }}"
    + END_EACH
    + "{% if add_generation_prompt %}{{ 'STARTassistant\n' }}{% endif %}"
)


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """`bias` concerns attention. `architectures` identifies a reward model."""
    bias = bool(config.get("bias", False))
    token = config.get("reward_token_id")
    token = None if token is None else int(token)
    score = PoolingSpec(task="score", width=1, head="linear", end_token=token)
    return msgspec.structs.replace(
        llama.read_hf(config),
        family="internlm2",
        qkv_bias=bias,
        o_bias=bias,
        pooling=score if "RewardModel" in "".join(config.get("architectures") or ()) else None,
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    s, sort = spec, {"attention.wqkv": _by_kind(spec)}
    params = [Param("embed", (Piece("model.tok_embeddings.weight", (s.vocab, s.hidden)),))]
    params += norm("norm", "model.norm", s)
    if s.pooling is not None and s.pooling.task == "score":
        params.append(Param("score", (Piece("v_head.weight", (1, s.hidden)),)))
    elif not s.tied:
        params.append(Param("head", (Piece("output.weight", (s.vocab, s.hidden)),)))
    for i in range(s.layers):
        at, to = f"model.layers.{i}.", f"layers.{i}."
        mlp = (("feed_forward.w1", s.intermediate), ("feed_forward.w3", s.intermediate))
        params += [
            *norm(to + "input_norm", at + "attention_norm", s),
            *norm(to + "post_norm", at + "ffn_norm", s),
            *linear(to + "qkv", at, (("attention.wqkv", s.q_size + 2 * s.kv_size),), s.hidden, s.qkv_bias, sort),
            *linear(to + "o", at, (("attention.wo", s.hidden),), s.q_size, s.o_bias),
            *linear(to + "gate_up", at, mlp, s.hidden, False),
            *linear(to + "down", at, (("feed_forward.w2", s.hidden),), s.intermediate, False),
        ]
    return params


def _by_kind(spec: ModelSpec):
    """The file has queries, key and value head by key-value head; the decoder groups them by kind."""
    group, dim = spec.heads // spec.kv_heads, spec.head_dim
    blocks = [kv * (group + 2) + j for kv in range(spec.kv_heads) for j in range(group)]
    blocks += [kv * (group + 2) + group + j for j in range(2) for kv in range(spec.kv_heads)]

    def reorder(tensor: Any) -> Any:
        return tensor.reshape(-1, dim, *tensor.shape[1:])[blocks].reshape(tensor.shape)

    return reorder


def read_gguf(keys: GGUFKeys) -> ModelSpec:
    return gguf_spec(keys, family="internlm2")


def template(backend: Backend, folder: ModelFolder) -> str | None:
    for start, end in TURN_TOKENS:
        if backend.token_to_id(start) is not None and backend.token_to_id(end) is not None:
            return CHAT.replace("START", start).replace("END", end)
    return None


INTERNLM2 = Family(
    name="internlm2",
    models="InternLM2, InternLM2-reward",
    model_types=("internlm2",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    gguf_architectures=("internlm2",),
    read_gguf=read_gguf,
    gguf_weights=llama.gguf_weights,
    text=TextHalf(
        tokenizer_classes=("InternLM2Tokenizer", "InternLM2TokenizerFast"),
        template=template,
        ends=tuple(end for _, end in TURN_TOKENS),
    ),
)
