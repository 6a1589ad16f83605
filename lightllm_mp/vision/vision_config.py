"""Finds out whether a model folder takes pictures, and how. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.gguf_header import is_gguf
from lightllm_mp.models.model_config import read_json
from lightllm_mp.vision.mmproj import beside, read_mmproj
from lightllm_mp.vision.preprocessor_config import clip_preprocess, dynamic_preprocess
from lightllm_mp.vision.spec import ImageTags, Preprocess, VisionSpec
from lightllm_mp.vision.spec import VisionModel as VisionModel

RESAMPLER_QUERIES = 256
RESAMPLER_HEAD = 128
"""Components of a head in Qwen-VL's resampler; its number of heads follows from it."""


def read_vision(path: Path | str) -> VisionModel | None:
    """What a Hugging Face folder says about pictures, or the mmproj file beside a GGUF file; None for a model of text
    only.

    Raises ModelError for a configuration that cannot be served.
    """
    path = Path(path)
    if path.is_dir():
        config = read_json(path / "config.json")
        reader = _reader(config)
        return None if reader is None else _checked(lambda: reader(config, path), path)
    file = beside(path) if is_gguf(path) else None
    return None if file is None else _checked(lambda: read_mmproj(file, path), file)


def _checked(read: Callable[[], VisionModel], where: Path) -> VisionModel:
    """Whatever is absent or of a wrong type becomes one clear line."""
    try:
        model = read()
    except ModelError as error:
        raise ModelError(f"{where}: {error.message}") from error
    except KeyError as error:
        raise ModelError(f"{where}: key {error} of the vision tower is missing") from error
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(f"{where}: a value of the vision tower cannot be used ({error})") from error
    _check(model.spec, str(where))
    return model


def _reader(config: dict[str, Any]) -> Callable[[dict[str, Any], Path], VisionModel] | None:
    kind = config.get("model_type")
    if config.get("mm_vision_tower"):
        return _llava_orig
    if kind == "llava":
        return _llava_hf
    if kind == "qwen" and "visual" in config:
        return _qwen_vl
    return _qwen2_5_vl if kind == "qwen2_5_vl" else None


def _llava_orig(config: dict[str, Any], folder: Path) -> VisionModel:
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
    """`./x` and `../x` are relative to the model folder; the tower of a hub name is looked for inside and beside it."""
    last = Path(name).name
    for place in (folder / name, folder / last, folder.parent / name, folder.parent / last):
        if (place / "config.json").is_file():
            return place
    raise ModelError(
        f"the vision tower {name!r} (mm_vision_tower) is not there: put its folder inside or beside the model folder"
    )


def _projector_layers(kind: str) -> int:
    """LLaVA's names: `linear`, or `mlp<n>x_gelu` with n linear layers."""
    depth = kind.removeprefix("mlp").removesuffix("x_gelu")
    if kind == "linear":
        return 1
    if kind == f"mlp{depth}x_gelu" and depth.isdecimal() and int(depth) > 0:
        return int(depth)
    raise ModelError(f"mm_projector_type {kind!r} is not supported")


def _llava_hf(config: dict[str, Any], folder: Path) -> VisionModel:
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
    """Keys that are missing have the values of CLIP ViT-L/14-336, as in transformers' LlavaConfig."""
    size, layers = int(vision.get("image_size", 336)), int(vision.get("num_hidden_layers", 24))
    patch = int(vision.get("patch_size", 14))
    computed = layers + 1 + select if select < 0 else select
    if not 1 <= computed <= layers:
        raise ModelError(f"feature layer {select} is none of a tower of {layers} layers")
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
        activation=_activation(vision.get("hidden_act", "quick_gelu")),
        positions=(size // patch) ** 2,
        class_token=True,
        keep_class=keep_class,
        projector_layers=projector_layers,
        projector_bias=projector_bias,
    )


def _activation(name: Any) -> Any:
    kinds = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}
    if name not in kinds:
        raise ModelError(f"activation {name!r} of the vision tower is not supported")
    return kinds[name]


def _qwen_vl(config: dict[str, Any], folder: Path) -> VisionModel:
    """The MLP's width is cut to a whole number, as Qwen-VL's visual.py does it."""
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


def _qwen2_5_vl(config: dict[str, Any], folder: Path) -> VisionModel:
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
        activation=_activation(vision.get("hidden_act", "silu")),
        gated=True,
        window=int(vision.get("window_size", 112)) // merge // patch,
        full_layers=tuple(int(i) for i in vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
        merge=merge,
    )
    return VisionModel(spec, "qwen2_5_vl", folder, folder)


def _check(spec: VisionSpec, where: str) -> None:
    for name in ("width", "layers", "heads", "intermediate", "patch", "out", "merge", "temporal"):
        if getattr(spec, name) < 1:
            raise ModelError(f"{where}: {name} of the vision tower must be positive, it is {getattr(spec, name)}")
    if spec.width % spec.heads:
        raise ModelError(f"{where}: a vision tower {spec.width} wide cannot have {spec.heads} heads")
    fixed = spec.preprocess.mode != "dynamic"
    if fixed and (spec.preprocess.size < spec.patch or spec.preprocess.size % spec.patch):
        raise ModelError(f"{where}: images of {spec.preprocess.size} pixels are not cut into patches of {spec.patch}")
    if spec.queries and (spec.query_heads < 1 or spec.out % spec.query_heads):
        raise ModelError(f"{where}: a resampler {spec.out} wide cannot have {spec.query_heads} heads")
    if not fixed and (spec.window < 1 or spec.head_dim % 4):
        raise ModelError(f"{where}: window or head size of the vision tower does not fit its patches")
