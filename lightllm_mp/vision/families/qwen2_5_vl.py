"""The vision half of Qwen2.5-VL: windowed attention, 2-D rotary, patches merged two by two. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import linear
from lightllm_mp.vision.mmproj import MmprojFile, tower_params
from lightllm_mp.vision.preprocessor_config import dynamic_preprocess
from lightllm_mp.vision.spec import ImageTags, Preprocess, VisionModel, VisionSpec, tower_activation
from lightllm_mp.vision.tower_rules import TowerSection, VisionFamily, norm

WINDOW, MERGE, TEMPORAL = 112, 2, 2
"""Values of all released models, in pixels, patches and frames."""
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def read_hf(config: dict[str, Any], folder: Path) -> VisionModel:
    vision = config["vision_config"]
    patch, merge = int(vision.get("patch_size", 14)), int(vision.get("spatial_merge_size", 2))
    start, end = int(config.get("vision_start_token_id", 151652)), int(config.get("vision_end_token_id", 151653))
    spec = VisionSpec(
        kind="qwen2_5_vl",
        width=int(vision["hidden_size"]),
        layers=int(vision.get("depth", 32)),
        heads=int(vision.get("num_heads", 16)),
        intermediate=int(vision["intermediate_size"]),
        patch=patch,
        out=int(vision["out_hidden_size"]),
        norm_eps=1e-6,
        preprocess=dynamic_preprocess(folder),
        tags=ImageTags(style="vision", before=(start,), after=(end,), marker=int(config.get("image_token_id", 151655))),
        temporal=int(vision.get("temporal_patch_size", 2)),
        norm="rms",
        activation=tower_activation(vision.get("hidden_act", "silu")),
        gated=True,
        window=int(vision.get("window_size", 112)) // merge // patch,
        full_layers=tuple(int(i) for i in vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
        merge=merge,
    )
    return VisionModel(spec, "qwen2_5_vl", folder, folder)


def gguf_tags(file: MmprojFile) -> ImageTags:
    start, end, pad = (file.token(token) for token in VISION_TOKENS)
    if start is None or end is None or pad is None:
        raise ModelError(f"the language model lacks one of the tokens {', '.join(VISION_TOKENS)}")
    return ImageTags(style="vision", before=(start,), after=(end,), marker=pad)


def read_gguf(file: MmprojFile) -> VisionModel:
    layers, patch = file.count("vision.block_count"), file.integer("vision.patch_size")
    merge = file.integer("vision.spatial_merge_size", MERGE)
    listed, period = file.get("vision.fullatt_block_indexes"), file.get("vision.n_wa_pattern")
    if listed is None and period is None:
        raise KeyError("clip.vision.n_wa_pattern")
    usual = Preprocess(mode="dynamic")
    spec = file.spec(
        kind="qwen2_5_vl",
        layers=layers,
        out=file.rows("mm.2.weight"),
        preprocess=file.dynamic_preprocess(usual.min_pixels, usual.max_pixels),
        tags=gguf_tags(file),
        temporal=TEMPORAL,
        norm="rms",
        activation=file.activation("silu"),
        gated=True,
        window=file.integer("vision.window_size", WINDOW) // merge // patch,
        full_layers=tuple(range(layers)[period - 1 :: period]) if listed is None else tuple(int(i) for i in listed),
        merge=merge,
    )
    return file.model(spec, "qwen2_5_vl")


def hf_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    s = model.spec
    params = (*_tower(s), *norm("merge_norm", "merger.ln_q", s.width, False), *_projector(s, "merger.mlp."))
    return (TowerSection(model.folder, ("visual.", "model.visual."), params),)


def gguf_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    projector = _projector(model.spec, "")
    return (TowerSection(model.folder, ("v.",), tower_params(model)), TowerSection(model.folder, ("mm.",), projector))


def _tower(s: VisionSpec) -> list[Param]:
    shape = (s.width, 3, s.temporal, s.patch, s.patch)
    params = [Param("patch", (Piece("patch_embed.proj.weight", shape),))]
    for i in range(s.layers):
        at, to = f"blocks.{i}.", f"layers.{i}."
        params += [
            *norm(to + "input_norm", at + "norm1", s.width, False),
            *linear(to + "qkv", at, (("attn.qkv", 3 * s.width),), s.width, True),
            *linear(to + "o", at, (("attn.proj", s.width),), s.width, True),
            *norm(to + "post_norm", at + "norm2", s.width, False),
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


def _projector(s: VisionSpec, at: str) -> tuple[Param, ...]:
    """The two linear layers after the merge of patches."""
    joined = s.width * s.merge * s.merge
    return (
        *linear("merge_up", at, (("0", joined),), joined, True),
        *linear("merge_down", at, (("2", s.out),), joined, True),
    )


QWEN2_5_VL = VisionFamily(
    read_hf=read_hf,
    hf_weights=hf_weights,
    projector_types=("qwen2.5vl_merger",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
)
