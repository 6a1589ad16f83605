"""The vision half of LLaVA 1.5: a CLIP tower and a projector of linear layers, in three layouts. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.model_source import read_json
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import linear
from lightllm_mp.vision.mmproj import MmprojFile, tower_params
from lightllm_mp.vision.preprocessor_config import clip_preprocess
from lightllm_mp.vision.spec import ImageTags, Preprocess, VisionModel, VisionSpec, tower_activation
from lightllm_mp.vision.tower_rules import TowerSection, VisionFamily, norm, unused_layers

BESIDE_CLIP = (r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_scale$")
"""Tensors of a CLIP folder beside the vision model."""


def read_original(config: dict[str, Any], folder: Path) -> VisionModel:
    ratio = config.get("image_aspect_ratio")
    if ratio not in (None, "square", "pad"):
        raise ModelError(f"image_aspect_ratio {ratio!r} is not supported (supported: pad, square)")
    if config.get("mm_use_im_start_end"):
        raise ModelError("mm_use_im_start_end is not supported")
    tower = _tower_folder(folder, str(config["mm_vision_tower"]))
    tower_config = read_json(tower / "config.json")
    spec = _clip(
        tower_config.get("vision_config") or tower_config,
        tower,
        select=int(config.get("mm_vision_select_layer", -2)),
        keep_class=_keeps_class(config.get("mm_vision_select_feature", "patch"), drop="patch", keep="cls_patch"),
        pad=ratio == "pad",
        projector_layers=_projector_layers(str(config.get("mm_projector_type", "linear"))),
        out=int(config["hidden_size"]),
    )
    return VisionModel(spec, "llava_orig", folder, tower)


def _tower_folder(folder: Path, name: str) -> Path:
    """A folder of this name (`./x`, `x`) or of the last part of a hub name (`openai/x`), inside the model folder or
    beside it. ModelError for a name that leads elsewhere."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(
            f"mm_vision_tower {name[:200]!r} leads out of the model folder: name the tower's folder without a path"
        )
    last = Path(name).name
    for place in (folder / name, folder / last, folder.parent / name, folder.parent / last):
        if (place / "config.json").is_file():
            return place
    raise ModelError(
        f"the vision tower {name!r} (mm_vision_tower) is missing: put its folder inside or beside the model folder"
    )


def _projector_layers(kind: str) -> int:
    """LLaVA's names: `linear`, or `mlp<n>x_gelu` with n linear layers."""
    depth = kind.removeprefix("mlp").removesuffix("x_gelu")
    if kind == "linear":
        return 1
    if kind == f"mlp{depth}x_gelu" and depth.isdecimal() and int(depth) > 0:
        return int(depth)
    raise ModelError(f"mm_projector_type {kind!r} is not supported")


def read_hugging_face(config: dict[str, Any], folder: Path) -> VisionModel:
    vision = config.get("vision_config") or {}
    if vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ModelError(f"a vision tower of type {vision['model_type']!r} is not supported")
    if config.get("projector_hidden_act", "gelu") != "gelu":
        raise ModelError(f"projector_hidden_act {config['projector_hidden_act']!r} is not supported")
    spec = _clip(
        vision,
        folder,
        select=int(config.get("vision_feature_layer", -2)),
        keep_class=_keeps_class(config.get("vision_feature_select_strategy", "default"), drop="default", keep="full"),
        pad=False,
        projector_layers=2,
        out=int((config.get("text_config") or {}).get("hidden_size", 4096)),
        projector_bias=bool(config.get("multimodal_projector_bias", True)),
        marker=int(config.get("image_token_index", config.get("image_token_id", 32000))),
    )
    return VisionModel(spec, "llava_hf", folder, folder)


def _keeps_class(said: Any, *, drop: str, keep: str) -> bool:
    if said not in (drop, keep):
        raise ModelError(f"feature selection {said!r} is not supported (supported: {drop}, {keep})")
    return said == keep


def _clip(
    vision: dict[str, Any],
    folder: Path,
    *,
    select: int,
    keep_class: bool,
    pad: bool,
    projector_layers: int,
    out: int,
    projector_bias: bool = True,
    marker: int | None = None,
) -> VisionSpec:
    """Missing keys have the values of CLIP ViT-L/14-336, as in transformers' LlavaConfig."""
    size, layers = int(vision.get("image_size", 336)), int(vision.get("num_hidden_layers", 24))
    patch = int(vision.get("patch_size", 14))
    computed = layers + 1 + select if select < 0 else select
    if not 1 <= computed <= layers:
        raise ModelError(f"feature layer {select} does not exist: the vision tower has {layers} layers")
    return VisionSpec(
        kind="clip",
        width=int(vision.get("hidden_size", 1024)),
        layers=computed,
        heads=int(vision.get("num_attention_heads", 16)),
        intermediate=int(vision.get("intermediate_size", 4096)),
        patch=patch,
        out=out,
        norm_eps=float(vision.get("layer_norm_eps", 1e-5)),
        preprocess=clip_preprocess(folder, size, pad=pad),
        tags=ImageTags(style="image", marker=marker),
        activation=tower_activation(vision.get("hidden_act", "quick_gelu")),
        positions=(size // patch) ** 2,
        class_token=True,
        keep_class=keep_class,
        projector_layers=projector_layers,
        projector_bias=projector_bias,
    )


def read_gguf(file: MmprojFile) -> VisionModel:
    """The file ends with the feature layer, or names it."""
    if file.get("vision.image_grid_pinpoints") is not None:
        raise ModelError("images cut into tiles (LLaVA 1.6) are not supported")
    features = file.get("vision.feature_layer")
    layers = [file.count("vision.block_count")] if features is None else [int(i) for i in features]
    if len(layers) != 1:
        raise ModelError(f"features of {len(layers)} layers are not supported")
    size, patch = file.integer("vision.image_size"), file.integer("vision.patch_size")
    ratio = file.get("vision.image_aspect_ratio") or "pad"
    if ratio not in ("pad", "square"):
        raise ModelError(f"image_aspect_ratio {ratio!r} is not supported (supported: pad, square)")
    mean, std = file.normalisation()
    spec = file.spec(
        kind="clip",
        layers=layers[0],
        out=file.rows("mm.2.weight" if file.has("mm.2.weight") else "mm.0.weight"),
        preprocess=Preprocess(mode="crop", size=size, edge=size, pad=ratio == "pad", mean=mean, std=std),
        tags=ImageTags(style="image", marker=file.token("<image>")),
        activation=file.activation("quick_gelu"),
        positions=(size // patch) ** 2,
        class_token=True,
        projector_layers=1 + file.has("mm.2.weight"),
    )
    return file.model(spec, "llava_orig")


def original_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    """Tower and projector are in two folders."""
    spec = model.spec
    names = ("",) if spec.projector_layers == 1 else tuple(f".{2 * i}" for i in range(spec.projector_layers))
    return (
        TowerSection(model.tower, ("vision_model.", ""), _tower(spec), (*_unused(spec), *BESIDE_CLIP)),
        TowerSection(model.folder, ("model.mm_projector", "mm_projector"), _projector(spec, names)),
    )


def hugging_face_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    spec, inner = model.spec, ("vision_tower.vision_model.", "vision_tower.")
    outer, names = ("multi_modal_projector.", "model.multi_modal_projector."), ("linear_1", "linear_2")
    return (
        TowerSection(model.folder, (*inner, *("model." + name for name in inner)), _tower(spec), _unused(spec)),
        TowerSection(model.folder, outer, _projector(spec, names)),
    )


def gguf_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    spec, file = model.spec, model.folder
    unused = (*unused_layers(spec.layers, r"blk\."), r"^post_ln\.", r"position_ids$", r"^image_newline$")
    return (
        TowerSection(file, ("v.",), tower_params(model), unused),
        TowerSection(file, ("mm.",), _projector(spec, ("0", "2")[: spec.projector_layers])),
    )


def _tower(s: VisionSpec) -> tuple[Param, ...]:
    table = "embeddings.position_embedding.weight"
    params = [
        Param("patch", (Piece("embeddings.patch_embedding.weight", (s.width, 3, s.patch, s.patch)),)),
        Param("class", (Piece("embeddings.class_embedding", (s.width,)),)),
        Param("positions", (Piece(table, (s.positions + 1, s.width)),)),
        *norm("pre_norm", "pre_layrnorm", s.width),
    ]
    for i in range(s.layers):
        at, to = f"encoder.layers.{i}.", f"layers.{i}."
        qkv = tuple((f"self_attn.{name}_proj", s.width) for name in "qkv")
        params += [
            *norm(to + "input_norm", at + "layer_norm1", s.width),
            *linear(to + "qkv", at, qkv, s.width, True),
            *linear(to + "o", at, (("self_attn.out_proj", s.width),), s.width, True),
            *norm(to + "post_norm", at + "layer_norm2", s.width),
            *linear(to + "up", at, (("mlp.fc1", s.intermediate),), s.width, True),
            *linear(to + "down", at, (("mlp.fc2", s.width),), s.intermediate, True),
        ]
    return tuple(params)


def _unused(s: VisionSpec) -> tuple[str, ...]:
    """The layers above the feature layer, the final norm, and a buffer of old files."""
    return (*unused_layers(s.layers, r"encoder\.layers\."), r"^post_layernorm\.", r"position_ids$")


def _projector(s: VisionSpec, names: tuple[str, ...]) -> tuple[Param, ...]:
    params: list[Param] = []
    columns = s.width
    for i, name in enumerate(names):
        params += linear(f"projector.{i}", "", ((name, s.out),), columns, s.projector_bias)
        columns = s.out
    return tuple(params)


ORIGINAL = VisionFamily(
    read_hf=read_original,
    hf_weights=original_weights,
    projector_types=("mlp",),
    read_gguf=read_gguf,
    gguf_weights=gguf_weights,
)
HUGGING_FACE = VisionFamily(read_hf=read_hugging_face, hf_weights=hugging_face_weights)
