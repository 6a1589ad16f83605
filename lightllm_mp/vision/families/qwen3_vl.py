"""The vision half of Qwen3-VL, with DeepStack, and of Qwen3.5, without. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import linear
from lightllm_mp.vision.families.qwen2_5_vl import MERGE, TEMPORAL, gguf_tags
from lightllm_mp.vision.mmproj import MmprojFile
from lightllm_mp.vision.preprocessor_config import dynamic_preprocess, video_sampling
from lightllm_mp.vision.spec import ImageTags, VisionModel, VisionSpec, tower_activation
from lightllm_mp.vision.tower_rules import TowerSection, VisionFamily, norm

MIN_PIXELS, MAX_PIXELS = 65536, 16777216
"""Areas of images of all released models, which an mmproj file does not give."""


class TowerNames(NamedTuple):
    """Names of the parts of a layer, and of a merger's two projections."""

    layer: str
    norms: tuple[str, str]
    qkv: str
    o: str
    up: str
    down: str
    merger: tuple[str, str]


HF = TowerNames(
    "blocks.{}.",
    ("norm1", "norm2"),
    *("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"),
    ("linear_fc1", "linear_fc2"),
)
GGUF = TowerNames("blk.{}.", ("ln1", "ln2"), "attn_qkv", "attn_out", "ffn_up", "ffn_down", ("fc1", "fc2"))


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


def read_gguf(file: MmprojFile) -> VisionModel:
    """`use_gelu` stands for the tanh form here."""
    taps = file.get("vision.is_deepstack_layers")
    spec = file.spec(
        kind="qwen3_vl",
        layers=file.count("vision.block_count"),
        out=file.rows("mm.2.weight"),
        preprocess=file.dynamic_preprocess(MIN_PIXELS, MAX_PIXELS),
        tags=gguf_tags(file),
        temporal=TEMPORAL,
        video=video_sampling(file.path.parent),
        activation="gelu_tanh",
        positions=file.rows("v.position_embd.weight"),
        merge=file.integer("vision.spatial_merge_size", MERGE),
        deepstack=() if taps is None else tuple(layer for layer, tapped in enumerate(taps) if tapped),
    )
    return file.model(spec, "qwen3_vl")


def hf_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    s = model.spec
    kernel = (s.width, 3, s.temporal, s.patch, s.patch)
    params = [
        Param("patch", (Piece("patch_embed.proj.weight", kernel),)),
        Param("patch.bias", (Piece("patch_embed.proj.bias", (s.width,)),)),
        Param("positions", (Piece("pos_embed.weight", (s.positions, s.width)),)),
        *_layers(s, HF),
        *norm("merge_norm", "merger.norm", s.width),
        *_merger(s, "merge_", "merger.", HF.merger),
    ]
    for i in range(len(s.deepstack)):
        params += _deep_merger(s, i, f"deepstack_merger_list.{i}.", HF.merger)
    return (TowerSection(model.folder, ("model.visual.", "visual."), tuple(params)),)


def gguf_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    """The kernels of a patch's frames are separate tensors; DeepStack's mergers have the numbers of their layers."""
    s = model.spec
    names = ("patch_embd.weight", *(f"patch_embd.weight.{i}" for i in range(1, s.temporal)))
    params = [
        Param("patch", tuple(Piece(name, (s.width, 3, s.patch, s.patch)) for name in names)),
        Param("patch.bias", (Piece("patch_embd.bias", (s.width,)),)),
        Param("positions", (Piece("position_embd.weight", (s.positions, s.width)),)),
        *_layers(s, GGUF),
        *norm("merge_norm", "post_ln", s.width),
    ]
    for i, layer in enumerate(s.deepstack):
        params += _deep_merger(s, i, f"deepstack.{layer}.", GGUF.merger)
    projector = tuple(_merger(s, "merge_", "", ("0", "2")))
    return (TowerSection(model.folder, ("v.",), tuple(params)), TowerSection(model.folder, ("mm.",), projector))


def _layers(s: VisionSpec, names: TowerNames) -> list[Param]:
    params = []
    for i in range(s.layers):
        at, to = names.layer.format(i), f"layers.{i}."
        params += [
            *norm(to + "input_norm", at + names.norms[0], s.width),
            *linear(to + "qkv", at, ((names.qkv, 3 * s.width),), s.width, True),
            *linear(to + "o", at, ((names.o, s.width),), s.width, True),
            *norm(to + "post_norm", at + names.norms[1], s.width),
            *linear(to + "up", at, ((names.up, s.intermediate),), s.width, True),
            *linear(to + "down", at, ((names.down, s.width),), s.intermediate, True),
        ]
    return params


def _deep_merger(s: VisionSpec, level: int, at: str, names: tuple[str, str]) -> list[Param]:
    """A merger whose norm is over all joined patches."""
    to = f"deep.{level}."
    return [*norm(to + "norm", at + "norm", s.width * s.merge * s.merge), *_merger(s, to, at, names)]


def _merger(s: VisionSpec, to: str, at: str, names: tuple[str, str]) -> list[Param]:
    joined = s.width * s.merge * s.merge
    return [
        *linear(to + "up", at, ((names[0], joined),), joined, True),
        *linear(to + "down", at, ((names[1], s.out),), joined, True),
    ]


QWEN3_VL = VisionFamily(
    read_hf=read_hf,
    hf_weights=hf_weights,
    projector_types=("qwen3vl_merger",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
)
