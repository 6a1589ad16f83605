"""Encoders: BERT, RoBERTa and XLM-RoBERTa, NomicBert. Every token sees all others, and norms stand behind the sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import linear, norm
from lightllm_mp.models.families.common.family import Family, activation, file_dtype, refuse
from lightllm_mp.models.families.common.pooling import classifier, classifies
from lightllm_mp.models.spec import ModelSpec, PoolingSpec, RopeSpec, Take

UNUSED = (r"^cls\.", r"^lm_head\.", r"^pooler\.", r"^classifier\.", r"(^|\.)position_ids$", r"\.inv_freq$")
"""Heads that embeddings do not need, and buffers."""

FIRST_POSITION = 2
"""RoBERTa's first used row of the table of positions."""


@dataclass(frozen=True, slots=True)
class EncoderNames:
    """Names of the parts of an encoder, without `.weight` and `.bias`; the defaults are BERT's."""

    embed_norm: str = "embeddings.LayerNorm"
    layer: str = "encoder.layer.{}."
    qkv: tuple[str, ...] = ("attention.self.query", "attention.self.key", "attention.self.value")
    o: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: tuple[str, ...] = ("intermediate.dense",)
    down: str = "output.dense"
    mlp_norm: str = "output.LayerNorm"


def read_hf(config: dict[str, Any]) -> ModelSpec:
    refuse(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    return _spec(config, "bert", positions=int(config["max_position_embeddings"]), take="cls")


def read_roberta(config: dict[str, Any]) -> ModelSpec:
    """Positions count from the padding id + 1: the rows of the table before are not used."""
    refuse(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False, pad_token_id=1)
    positions = int(config["max_position_embeddings"]) - FIRST_POSITION
    return _spec(config, "roberta", positions=positions, take="cls")


def read_nomic(config: dict[str, Any]) -> ModelSpec:
    """Keys of transformers, or GPT-2's as in the first folders. Those were trained on fewer positions than they allow
    with another rotary scaling."""
    refuse(config, rotary_emb_interleaved=False, prenorm=False, qkv_proj_bias=False, mlp_fc1_bias=False)
    refuse(config, mlp_fc2_bias=False, use_rms_norm=False, activation_function="swiglu", num_experts=0)
    heads = int(config.get("num_attention_heads") or config["n_head"])
    hidden = int(config.get("hidden_size") or config["n_embd"])
    share = float(config.get("rotary_emb_fraction", 1.0))
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or config.get("rotary_emb_base") or 1000
    longest = int(config.get("max_trained_positions") or config.get("max_position_embeddings") or config["n_positions"])
    renamed = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": config.get("num_hidden_layers") or config.get("n_layer"),
        "intermediate_size": config.get("intermediate_size") or config.get("n_inner"),
        "layer_norm_eps": config.get("layer_norm_eps") or config.get("layer_norm_epsilon"),
        "hidden_act": config.get("hidden_act", "silu"),
        "max_position_embeddings": longest,
    }
    return _spec(
        {**config, **renamed},
        "nomic_bert",
        take="mean",
        rope=RopeSpec(theta=float(theta), dim=int(hidden // heads * share)),
        gated=True,
        bias=False,
    )


def _spec(
    config: dict[str, Any],
    family: str,
    *,
    take: Take,
    positions: int = 0,
    rope: RopeSpec | None = None,
    gated: bool = False,
    bias: bool = True,
) -> ModelSpec:
    """`take`: the hidden state of an embedding, if the folder does not name one."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    if classifies(config):
        pooling = classifier(config, head="tanh", take="cls", pairs="tokenizer")
    else:
        pooling = PoolingSpec(task="embed", width=hidden, take=take, normalize=True)
    return ModelSpec(
        family=family,
        vocab=int(config["vocab_size"]),
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=int(config["intermediate_size"]),
        norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        rope=rope,
        max_context=positions or int(config["max_position_embeddings"]),
        eos_ids=(),
        file_dtype=file_dtype(config),
        tied=True,
        pooling=pooling,
        learned_positions=positions,
        token_types=int(config.get("type_vocab_size", 2)),
        norm="layer",
        norm_bias=True,
        post_norm=True,
        causal=False,
        qkv_bias=bias,
        o_bias=bias,
        gated=gated,
        activation=activation(config.get("hidden_act", "gelu")),
        mlp_bias=bias,
    )


def hf_weights(spec: ModelSpec) -> list[Param]:
    return _weights(spec, EncoderNames()) + _score(spec, "pooler.dense", "classifier")


def roberta_weights(spec: ModelSpec) -> list[Param]:
    params = _weights(spec, EncoderNames(), skipped=FIRST_POSITION)
    return params + _score(spec, "classifier.dense", "classifier.out_proj")


def nomic_weights(spec: ModelSpec) -> list[Param]:
    names = EncoderNames(
        embed_norm="emb_ln",
        layer="encoder.layers.{}.",
        qkv=("attn.Wqkv",),
        o="attn.out_proj",
        attention_norm="norm1",
        up=("mlp.fc12", "mlp.fc11"),
        down="mlp.fc2",
        mlp_norm="norm2",
    )
    return _weights(spec, names)


def _weights(spec: ModelSpec, names: EncoderNames, skipped: int = 0) -> list[Param]:
    """`skipped`: rows of the table of positions before the first used one."""
    s, at = spec, "embeddings."
    params = linear("embed", at, (("word_embeddings", s.vocab),), s.hidden, False)
    params += linear("types", at, (("token_type_embeddings", s.token_types),), s.hidden, False)
    if s.learned_positions:
        shape = (s.learned_positions, s.hidden)
        stored = (s.learned_positions + skipped, s.hidden)
        piece = Piece(at + "position_embeddings.weight", shape, lambda table: table[skipped:], stored=stored)
        params.append(Param("positions", (piece,)))
    norms = [names.embed_norm, *(names.layer.format(i) + names.mlp_norm for i in range(s.layers))]
    for i, name in enumerate(norms):
        params += norm(f"layers.{i}.input_norm" if i < s.layers else "norm", name, s)
    qkv = (s.q_size + 2 * s.kv_size) // len(names.qkv)
    for i in range(s.layers):
        at, to = names.layer.format(i), f"layers.{i}."
        up = tuple((name, s.intermediate) for name in names.up)
        params += [
            *norm(to + "post_norm", at + names.attention_norm, s),
            *linear(to + "qkv", at, tuple((name, qkv) for name in names.qkv), s.hidden, s.qkv_bias),
            *linear(to + "o", at, ((names.o, s.hidden),), s.q_size, s.o_bias),
            *linear(to + ("gate_up" if s.gated else "up"), at, up, s.hidden, s.mlp_bias),
            *linear(to + "down", at, ((names.down, s.hidden),), s.intermediate, s.mlp_bias),
        ]
    return params


def _score(spec: ModelSpec, inner: str, outer: str) -> list[Param]:
    if spec.pooling is None or spec.pooling.task != "score":
        return []
    return linear("score_in", "", ((inner, spec.hidden),), spec.hidden, True) + linear(
        "score", "", ((outer, 1),), spec.hidden, True
    )


BERT = Family(
    name="bert",
    models="BERT encoders: bge, e5, gte, MiniLM; cross-encoders",
    model_types=("bert",),
    read_hf=read_hf,
    hf_weights=hf_weights,
    ignore=UNUSED,
    spellings=(("bert.", ""),),
)

ROBERTA = Family(
    name="roberta",
    models="XLM-RoBERTa and RoBERTa encoders: bge-m3, multilingual-e5; bge-reranker",
    model_types=("xlm-roberta", "roberta"),
    read_hf=read_roberta,
    hf_weights=roberta_weights,
    ignore=UNUSED,
    spellings=(("roberta.", ""),),
)

NOMIC_BERT = Family(
    name="nomic_bert",
    models="NomicBert encoders: nomic-embed-text",
    model_types=("nomic_bert",),
    read_hf=read_nomic,
    hf_weights=nomic_weights,
    ignore=UNUSED,
    spellings=(("bert.", ""), ("nomic_bert.", "")),
)
