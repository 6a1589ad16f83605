"""Weight rules of the vision towers: which tensors of which files make up which parameter. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.weight_rules import heads_apart, linear
from lightllm_mp.vision.spec import VisionModel, VisionSpec


@dataclass(frozen=True, slots=True)
class TowerSection:
    """Tensors of one folder whose names share a prefix, which `params` and `ignore` leave out. Of `prefixes` that one
    counts under which the first of `params` is found: releases of one layout differ there.

    Targets: `patch` [width, 3, (temporal,) patch, patch], `class` [width], `positions` [lines, width], `pre_norm`; of
    layer i under `layers.<i>.`: input_norm, qkv, o, post_norm, up or gate_up, down. clip: `projector.<i>`. qwen_vl:
    query, query_positions, kv, query_norm, kv_norm, in [3 * out, out] (query, key, value), out, final_norm, final.
    qwen2_5_vl: merge_norm, merge_up, merge_down. `.bias` is appended for biases.
    """

    folder: Path
    prefixes: tuple[str, ...]
    params: tuple[Param, ...]
    ignore: tuple[str, ...] = ()


def sections(model: VisionModel) -> tuple[TowerSection, ...]:
    """All that the vision half of a model folder consists of."""
    spec, folder = model.spec, model.folder
    if model.layout in ("mmproj", "mmproj_swapped"):
        return _mmproj(model)
    if model.layout == "qwen_vl":
        return (TowerSection(folder, ("transformer.visual.",), (*_qwen_vl_tower(spec), *_resampler(spec))),)
    if model.layout == "qwen2_5_vl":
        return (TowerSection(folder, ("visual.", "model.visual."), (*_qwen2_5_vl_tower(spec), *_merger(spec))),)
    tower, unused = tuple(_clip_tower(spec)), _clip_unused(spec)
    if model.layout == "llava_orig":
        names = ("",) if spec.projector_layers == 1 else tuple(f".{2 * i}" for i in range(spec.projector_layers))
        return (
            TowerSection(model.tower, ("vision_model.", ""), tower, (*unused, *BESIDE_CLIP)),
            TowerSection(folder, ("model.mm_projector", "mm_projector"), tuple(_projector(spec, names))),
        )
    inner = ("vision_tower.vision_model.", "vision_tower.")
    outer, names = ("multi_modal_projector.", "model.multi_modal_projector."), ("linear_1", "linear_2")
    return (
        TowerSection(folder, (*inner, *("model." + name for name in inner)), tower, unused),
        TowerSection(folder, outer, tuple(_projector(spec, names))),
    )


def _mmproj(model: VisionModel) -> tuple[TowerSection, ...]:
    """Both parts of one GGUF file."""
    spec, file = model.spec, model.folder
    if spec.kind == "clip":
        projector = _projector(spec, ("0", "2")[: spec.projector_layers])
        unused = (*_unused_layers(spec, r"blk\."), r"^post_ln\.", r"position_ids$", r"^image_newline$")
    else:
        joined = spec.width * spec.merge * spec.merge
        projector = linear("merge_up", "", (("0", joined),), joined, True)
        projector += linear("merge_down", "", (("2", spec.out),), joined, True)
        unused = ()
    tower = _mmproj_tower(spec, swapped=model.layout == "mmproj_swapped")
    return (TowerSection(file, ("v.",), tuple(tower), unused), TowerSection(file, ("mm.",), tuple(projector)))


def _mmproj_tower(s: VisionSpec, *, swapped: bool) -> list[Param]:
    """`swapped`: the two projections of the MLP have each other's names. A kernel for each frame of a patch stands in a
    tensor of its own: they are stacked along the first dimension here."""
    kernel, layers = (s.width, 3, s.patch, s.patch), s.norm == "layer"
    names = ("patch_embd.weight", *(f"patch_embd.weight.{i}" for i in range(1, s.temporal)))
    params = [Param("patch", tuple(Piece(name, kernel) for name in names))]
    if s.class_token:
        params.append(Param("class", (Piece("class_embd", (s.width,)),)))
        params.append(Param("positions", (Piece("position_embd.weight", (s.positions + 1, s.width)),)))
        params += _norm("pre_norm", "pre_ln", s.width)
    else:
        params += _norm("merge_norm", "post_ln", s.width, False)
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    for i in range(s.layers):
        at, to = f"blk.{i}.", f"layers.{i}."
        wide = tuple((name, s.intermediate) for name in (("ffn_gate", up) if s.gated else (up,)))
        params += [
            *_norm(to + "input_norm", at + "ln1", s.width, layers),
            *linear(to + "qkv", at, tuple((f"attn_{name}", s.width) for name in "qkv"), s.width, True),
            *linear(to + "o", at, (("attn_out", s.width),), s.width, True),
            *_norm(to + "post_norm", at + "ln2", s.width, layers),
            *linear(to + ("gate_up" if s.gated else "up"), at, wide, s.width, True),
            *linear(to + "down", at, ((down, s.width),), s.intermediate, True),
        ]
    return params


def _unused_layers(s: VisionSpec, at: str) -> tuple[str, ...]:
    """The layers above the chosen one."""
    used = "|".join(str(i) for i in range(s.layers))
    return (rf"^{at}(?!(?:{used})\.)\d+\.",)


BESIDE_CLIP = (r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_scale$")
"""What a CLIP folder holds besides the vision model."""


def _norm(target: str, name: str, width: int, bias: bool = True) -> list[Param]:
    weight = Param(target, (Piece(name + ".weight", (width,)),))
    return [weight, Param(target + ".bias", (Piece(name + ".bias", (width,)),))] if bias else [weight]


def _clip_tower(s: VisionSpec) -> list[Param]:
    table = "embeddings.position_embedding.weight"
    params = [
        Param("patch", (Piece("embeddings.patch_embedding.weight", (s.width, 3, s.patch, s.patch)),)),
        Param("class", (Piece("embeddings.class_embedding", (s.width,)),)),
        Param("positions", (Piece(table, (s.positions + 1, s.width)),)),
        *_norm("pre_norm", "pre_layrnorm", s.width),
    ]
    for i in range(s.layers):
        at, to = f"encoder.layers.{i}.", f"layers.{i}."
        qkv = tuple((f"self_attn.{name}_proj", s.width) for name in "qkv")
        params += [
            *_norm(to + "input_norm", at + "layer_norm1", s.width),
            *linear(to + "qkv", at, qkv, s.width, True),
            *linear(to + "o", at, (("self_attn.out_proj", s.width),), s.width, True),
            *_norm(to + "post_norm", at + "layer_norm2", s.width),
            *linear(to + "up", at, (("mlp.fc1", s.intermediate),), s.width, True),
            *linear(to + "down", at, (("mlp.fc2", s.width),), s.intermediate, True),
        ]
    return params


def _clip_unused(s: VisionSpec) -> tuple[str, ...]:
    """The layers above the chosen one, what follows them, and a buffer of old files."""
    return (*_unused_layers(s, r"encoder\.layers\."), r"^post_layernorm\.", r"position_ids$")


def _projector(s: VisionSpec, names: tuple[str, ...]) -> list[Param]:
    params, columns = [], s.width
    for i, name in enumerate(names):
        params += linear(f"projector.{i}", "", ((name, s.out),), columns, s.projector_bias)
        columns = s.out
    return params


def _qwen_vl_tower(s: VisionSpec) -> list[Param]:
    params = [
        Param("patch", (Piece("conv1.weight", (s.width, 3, s.patch, s.patch)),)),
        Param("positions", (Piece("positional_embedding", (s.positions, s.width)),)),
        *_norm("pre_norm", "ln_pre", s.width),
    ]
    by_head = {"attn.in_proj": heads_apart(s.heads)}
    for i in range(s.layers):
        at, to = f"transformer.resblocks.{i}.", f"layers.{i}."
        params += [
            *_norm(to + "input_norm", at + "ln_1", s.width),
            *linear(to + "qkv", at, (("attn.in_proj", 3 * s.width),), s.width, True, by_head),
            *linear(to + "o", at, (("attn.out_proj", s.width),), s.width, True),
            *_norm(to + "post_norm", at + "ln_2", s.width),
            *linear(to + "up", at, (("mlp.c_fc", s.intermediate),), s.width, True),
            *linear(to + "down", at, (("mlp.c_proj", s.width),), s.intermediate, True),
        ]
    return params


def _resampler(s: VisionSpec) -> list[Param]:
    at = "attn_pool."
    kv = linear("kv", at, (("kv_proj", s.out),), s.width, False) if s.width != s.out else []
    return [
        Param("query", (Piece(at + "query", (s.queries, s.out)),)),
        Param("query_positions", (Piece(at + "pos_embed", (s.queries, s.out)),)),
        *kv,
        *_norm("query_norm", at + "ln_q", s.out),
        *_norm("kv_norm", at + "ln_kv", s.out),
        Param("in", (Piece(at + "attn.in_proj_weight", (3 * s.out, s.out)),)),
        Param("in.bias", (Piece(at + "attn.in_proj_bias", (3 * s.out,)),)),
        *linear("out", at, (("attn.out_proj", s.out),), s.out, True),
        *_norm("final_norm", "ln_post", s.out),
        Param("final", (Piece("proj", (s.out, s.out), lambda tensor: tensor.T),)),
    ]


def _qwen2_5_vl_tower(s: VisionSpec) -> list[Param]:
    shape = (s.width, 3, s.temporal, s.patch, s.patch)
    params = [Param("patch", (Piece("patch_embed.proj.weight", shape),))]
    for i in range(s.layers):
        at, to = f"blocks.{i}.", f"layers.{i}."
        params += [
            *_norm(to + "input_norm", at + "norm1", s.width, False),
            *linear(to + "qkv", at, (("attn.qkv", 3 * s.width),), s.width, True),
            *linear(to + "o", at, (("attn.proj", s.width),), s.width, True),
            *_norm(to + "post_norm", at + "norm2", s.width, False),
            *linear(
                to + "gate_up",
                at,
                (("mlp.gate_proj", s.intermediate), ("mlp.up_proj", s.intermediate)),
                s.width,
                True,
            ),
            *linear(to + "down", at, (("mlp.down_proj", s.width),), s.intermediate, True),
        ]
    return params


def _merger(s: VisionSpec) -> list[Param]:
    joined = s.width * s.merge * s.merge
    return [
        *_norm("merge_norm", "merger.ln_q", s.width, False),
        *linear("merge_up", "merger.", (("mlp.0", joined),), joined, True),
        *linear("merge_down", "merger.", (("mlp.2", s.out),), joined, True),
    ]
