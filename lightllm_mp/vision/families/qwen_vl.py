"""The vision half of Qwen-VL: a CLIP-like tower and a resampler to 256 slots per image. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import heads_apart, linear
from lightllm_mp.vision.spec import ImageTags, Preprocess, VisionModel, VisionSpec
from lightllm_mp.vision.tower_rules import TowerSection, VisionFamily, norm

RESAMPLER_QUERIES = 256
RESAMPLER_HEAD = 128
"""Components of a head in the resampler; its number of heads follows from it."""


def read_hf(config: dict[str, Any], folder: Path) -> VisionModel:
    """The MLP's width is truncated to an integer, as in Qwen-VL's visual.py."""
    visual = config["visual"]
    width, out, start = int(visual["width"]), int(visual["output_dim"]), int(visual["image_start_id"])
    spec = VisionSpec(
        kind="qwen_vl",
        width=width,
        layers=int(visual["layers"]),
        heads=int(visual["heads"]),
        intermediate=int(width * float(visual["mlp_ratio"])),
        patch=int(visual["patch_size"]),
        out=out,
        norm_eps=1e-6,
        preprocess=Preprocess(mode="stretch", size=int(visual["image_size"])),
        tags=ImageTags(style="img", before=(start,), after=(start + 1,)),
        positions=256,
        queries=int(visual.get("n_queries", RESAMPLER_QUERIES)),
        query_heads=out // RESAMPLER_HEAD,
    )
    return VisionModel(spec, "qwen_vl", folder, folder)


def hf_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    params = (*_tower(model.spec), *_resampler(model.spec))
    return (TowerSection(model.folder, ("transformer.visual.",), params),)


def _tower(s: VisionSpec) -> list[Param]:
    params = [
        Param("patch", (Piece("conv1.weight", (s.width, 3, s.patch, s.patch)),)),
        Param("positions", (Piece("positional_embedding", (s.positions, s.width)),)),
        *norm("pre_norm", "ln_pre", s.width),
    ]
    by_head = {"attn.in_proj": heads_apart(s.heads)}
    for i in range(s.layers):
        at, to = f"transformer.resblocks.{i}.", f"layers.{i}."
        params += [
            *norm(to + "input_norm", at + "ln_1", s.width),
            *linear(to + "qkv", at, (("attn.in_proj", 3 * s.width),), s.width, True, by_head),
            *linear(to + "o", at, (("attn.out_proj", s.width),), s.width, True),
            *norm(to + "post_norm", at + "ln_2", s.width),
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
        *norm("query_norm", at + "ln_q", s.out),
        *norm("kv_norm", at + "ln_kv", s.out),
        Param("in", (Piece(at + "attn.in_proj_weight", (3 * s.out, s.out)),)),
        Param("in.bias", (Piece(at + "attn.in_proj_bias", (3 * s.out,)),)),
        *linear("out", at, (("attn.out_proj", s.out),), s.out, True),
        *norm("final_norm", "ln_post", s.out),
        Param("final", (Piece("proj", (s.out, s.out), lambda tensor: tensor.T),)),
    ]


QWEN_VL = VisionFamily(read_hf=read_hf, hf_weights=hf_weights)
