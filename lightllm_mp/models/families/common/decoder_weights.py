"""Weight rules that families share: projections, norms, the plain decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.spec import ModelSpec

Transform = Callable[[Any], Any]
WITHOUT_HEAD = tuple((name, "model." + name) for name in ("embed_tokens.", "layers.", "norm."))
"""`Family.spellings` for files that hold a decoder without its head (embedding models)."""


def linear(
    target: str,
    at: str,
    parts: tuple[tuple[str, int], ...],
    columns: int,
    bias: bool,
    transforms: Mapping[str, Transform] | None = None,
) -> list[Param]:
    """One projection: parts (name, rows) of `columns` inputs stacked, and their biases; `transforms` by part name."""
    by = transforms or {}
    weight = Param(target, tuple(Piece(f"{at}{n}.weight", (rows, columns), by.get(n)) for n, rows in parts))
    if not bias:
        return [weight]
    return [
        weight,
        Param(target + ".bias", tuple(Piece(f"{at}{n}.bias", (r,), by.get(n)) for n, r in parts)),
    ]


def norm(target: str, name: str, spec: ModelSpec) -> list[Param]:
    """A norm over the hidden size, with its bias where the model's norms have one."""
    params = [Param(target, (Piece(name + ".weight", (spec.hidden,)),))]
    if spec.norm_bias:
        params.append(Param(target + ".bias", (Piece(name + ".bias", (spec.hidden,)),)))
    return params


def ends(
    spec: ModelSpec, *, embed: str, norm_name: str, head: str, transforms: Mapping[str, Transform] | None = None
) -> list[Param]:
    """Embedding, final norm and, unless it is tied, the head; names without `.weight`."""
    params = linear("embed", "", ((embed, spec.vocab),), spec.hidden, False) + norm("norm", norm_name, spec)
    if spec.tied:
        return params
    return params + linear("head", "", ((head, spec.vocab),), spec.hidden, spec.head_bias, transforms)


@dataclass(frozen=True, slots=True)
class TensorNames:
    """A family's names of the parts of a decoder, without `.weight` and `.bias`; the defaults are Llama's."""

    embed: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    layer: str = "model.layers.{}."
    """Prefix of all names below, formatted with the layer's number."""
    input_norm: str = "input_layernorm"
    post_norm: str = "post_attention_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    """Three projections, or a fused one."""
    o: str = "self_attn.o_proj"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """Gate and up, a fused projection of both, or the only one of an MLP without gate."""
    down: str = "mlp.down_proj"


def decoder(spec: ModelSpec, names: TensorNames, transforms: Mapping[str, Transform] | None = None) -> list[Param]:
    """All parameters of a decoder with plain attention and MLP; `transforms` by part name reorder rows."""
    s, by = spec, transforms or {}
    params = ends(s, embed=names.embed, norm_name=names.norm, head=names.head, transforms=by)
    for i in range(s.layers):
        params += _layer(s.at(i), names, names.layer.format(i), f"layers.{i}.", by)
    return params


def _layer(s: ModelSpec, names: TensorNames, at: str, to: str, by: Mapping[str, Transform]) -> list[Param]:
    params = norm(to + "input_norm", at + names.input_norm, s)
    if not s.parallel:
        params += norm(to + "post_norm", at + names.post_norm, s)
    up = s.intermediate * (2 if s.gated else 1)
    return [
        *params,
        *linear(to + "qkv", at, _parts(names.qkv, (s.q_size, s.kv_size, s.kv_size)), s.hidden, s.qkv_bias, by),
        *linear(to + "o", at, ((names.o, s.hidden),), s.q_size, s.o_bias, by),
        *linear(
            to + ("gate_up" if s.gated else "up"),
            at,
            tuple((name, up // len(names.up)) for name in names.up),
            s.hidden,
            s.mlp_bias,
            by,
        ),
        *linear(to + "down", at, ((names.down, s.hidden),), s.intermediate, s.mlp_bias, by),
    ]


def _parts(names: tuple[str, ...], rows: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    return ((names[0], sum(rows)),) if len(names) == 1 else tuple(zip(names, rows, strict=True))


def qk_norms(spec: ModelSpec) -> list[Param]:
    """Norms of queries and keys under Llama's names, where the model has them."""
    widths = {"q_norm": spec.q_size, "k_norm": spec.kv_size} if spec.each_head_norm else {}
    return [
        Param(f"layers.{i}.{n}", (Piece(f"model.layers.{i}.self_attn.{n}.weight", (widths.get(n, spec.head_dim),)),))
        for i in range(spec.layers if spec.head_norm else 0)
        for n in ("q_norm", "k_norm")
    ]


def heads_apart(heads: int) -> Transform:
    """For files that store query, key and value head by head: all queries first, then all keys, then all values."""

    def reorder(tensor: Any) -> Any:
        dim = tensor.shape[0] // heads // 3
        return tensor.reshape(heads, 3, dim, *tensor.shape[1:]).swapaxes(0, 1).reshape(tensor.shape)

    return reorder
