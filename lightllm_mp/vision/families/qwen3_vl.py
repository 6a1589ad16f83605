"""The vision half of Qwen3-VL, with DeepStack, and of Qwen3.5, without. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import linear
from lightllm_mp.vision.preprocessor_config import dynamic_preprocess, video_sampling
from lightllm_mp.vision.spec import ImageTags, VisionModel, VisionSpec, tower_activation
from lightllm_mp.vision.tower_rules import TowerSection, VisionFamily, norm


def read_hf(config: dict[str, Any], folder: Path) -> VisionModel:
    vision = config["vision_config"]
    start, end = int(config.get("vision_start_token_id", 151652)), int(config.get("vision_end_token_id", 151653))
    spec = VisionSpec(
        kind="qwen3_vl",
        width=int(vision["hidden_size"]),
        layers=int(vision["depth"]),
        heads=int(vision["num_heads"]),
        intermediate=int(vision["intermediate_size"]),
        patch=int(vision["patch_size"]),
        out=int(vision["out_hidden_size"]),
        norm_eps=1e-6,
        preprocess=dynamic_preprocess(folder),
        tags=ImageTags(style="vision", before=(start,), after=(end,), marker=int(config.get("image_token_id", 151655))),
        temporal=int(vision.get("temporal_patch_size", 2)),
        video=video_sampling(folder),
        activation=tower_activation(vision.get("hidden_act", "gelu_pytorch_tanh")),
        positions=int(vision["num_position_embeddings"]),
        merge=int(vision.get("spatial_merge_size", 2)),
        deepstack=tuple(int(layer) for layer in vision.get("deepstack_visual_indexes") or ()),
    )
    return VisionModel(spec, "qwen3_vl", folder, folder)


def hf_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    s = model.spec
    kernel = (s.width, 3, s.temporal, s.patch, s.patch)
    params = [
        Param("patch", (Piece("patch_embed.proj.weight", kernel),)),
        Param("patch.bias", (Piece("patch_embed.proj.bias", (s.width,)),)),
        Param("positions", (Piece("pos_embed.weight", (s.positions, s.width)),)),
    ]
    for i in range(s.layers):
        at, to = f"blocks.{i}.", f"layers.{i}."
        params += [
            *norm(to + "input_norm", at + "norm1", s.width),
            *linear(to + "qkv", at, (("attn.qkv", 3 * s.width),), s.width, True),
            *linear(to + "o", at, (("attn.proj", s.width),), s.width, True),
            *norm(to + "post_norm", at + "norm2", s.width),
            *linear(to + "up", at, (("mlp.linear_fc1", s.intermediate),), s.width, True),
            *linear(to + "down", at, (("mlp.linear_fc2", s.width),), s.intermediate, True),
        ]
    params += _merger(s, "merge_", "merger.", s.width)
    for i in range(len(s.deepstack)):
        params += _merger(s, f"deep.{i}.", f"deepstack_merger_list.{i}.", s.width * s.merge * s.merge)
    return (TowerSection(model.folder, ("model.visual.", "visual."), tuple(params)),)


def _merger(s: VisionSpec, to: str, at: str, norm_width: int) -> list[Param]:
    joined = s.width * s.merge * s.merge
    return [
        *norm(to + "norm", at + "norm", norm_width),
        *linear(to + "up", at, (("linear_fc1", joined),), joined, True),
        *linear(to + "down", at, (("linear_fc2", s.out),), joined, True),
    ]


QWEN3_VL = VisionFamily(read_hf=read_hf, hf_weights=hf_weights)
