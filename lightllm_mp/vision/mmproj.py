"""The `mmproj` file of llama.cpp: vision tower and projector as GGUF, beside the GGUF file of a language model.

Keys are those of the `gguf` library (`clip.*`). Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.gguf_header import read_header
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys
from lightllm_mp.vision.spec import RGB, ImageTags, Preprocess, VisionModel, VisionSpec

ARCHITECTURE = "clip"
CLIP, QWEN2_5_VL = "mlp", "qwen2.5vl_merger"
"""Values of `clip.projector_type`."""
WINDOW, MERGE, TEMPORAL = 112, 2, 2
"""Of all released Qwen2.5-VL: pixels, patches and frames."""
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def beside(model: Path) -> Path | None:
    """The one GGUF file in the folder of `model` whose name says mmproj. ModelError where there are several."""
    files = sorted(file for file in model.parent.glob("*mmproj*.gguf") if file.name != model.name)
    if len(files) > 1:
        raise ModelError(f"{model.parent}: {len(files)} mmproj files, of which it is not known which to take")
    return files[0] if files else None


def read_mmproj(file: Path, model: Path) -> VisionModel:
    """What `file` says about pictures for the language model in `model`."""
    from lightllm_mp.models.checkpoint.gguf import read_gguf  # brings the gguf library along

    keys = GGUFKeys(read_gguf(file))
    if (found := keys.file.metadata.get("general.architecture")) != ARCHITECTURE:
        raise ModelError(f"GGUF architecture {found!r} is no vision tower")
    kind = keys.get("projector_type") or keys.get("vision.projector_type") or CLIP
    if kind not in (CLIP, QWEN2_5_VL):
        raise ModelError(f"projector {kind!r} is not supported (supported: {CLIP}, {QWEN2_5_VL})")
    text = _Language(model)
    spec = _clip(keys, text) if kind == CLIP else _qwen2_5_vl(keys, text)
    if spec.out != text.hidden:
        raise ModelError(f"it gives embeddings of {spec.out}, the language model takes {text.hidden}")
    return VisionModel(spec, "mmproj_swapped" if _swapped(keys, spec) else "mmproj", file, file)


class _Language:
    """Width and tokens of the language model."""

    def __init__(self, path: Path) -> None:
        wanted = ("general.architecture", ".embedding_length", "tokenizer.ggml.tokens")
        header = read_header(path, wanted=lambda key: key.endswith(wanted))
        self.hidden = int(header[f"{header['general.architecture']}.embedding_length"])
        self._tokens = header.get("tokenizer.ggml.tokens") or []

    def find(self, token: str) -> int | None:
        return self._tokens.index(token) if token in self._tokens else None


def _swapped(keys: GGUFKeys, spec: VisionSpec) -> bool:
    """The converter of LLaVA calls the two projections of the MLP by each other's names."""
    down = keys.file.tensors.get("v.blk.0.ffn_down.weight")
    return down is not None and down.shape[0] == spec.intermediate and spec.intermediate != spec.width


def _clip(keys: GGUFKeys, text: _Language) -> VisionSpec:
    """The file ends with the layer whose output counts, or says which it is."""
    if keys.get("vision.image_grid_pinpoints") is not None:
        raise ModelError("pictures cut into tiles (LLaVA 1.6) are not supported")
    features = keys.get("vision.feature_layer")
    layers = [keys.count("vision.block_count")] if features is None else [int(i) for i in features]
    if len(layers) != 1:
        raise ModelError(f"features of {len(layers)} layers are not supported")
    size, patch = keys.integer("vision.image_size"), keys.integer("vision.patch_size")
    ratio = keys.get("vision.image_aspect_ratio") or "pad"
    if ratio not in ("pad", "square"):
        raise ModelError(f"image_aspect_ratio {ratio!r} is not supported (supported: pad, square)")
    mean, std = _normalisation(keys)
    return _spec(
        keys,
        kind="clip",
        layers=layers[0],
        out=_rows(keys, "mm.2.weight" if keys.has("mm.2.weight") else "mm.0.weight"),
        preprocess=Preprocess(mode="crop", size=size, edge=size, pad=ratio == "pad", mean=mean, std=std),
        tags=ImageTags(style="image", marker=text.find("<image>")),
        activation=_activation(keys, "quick_gelu"),
        positions=(size // patch) ** 2,
        class_token=True,
        projector_layers=1 + keys.has("mm.2.weight"),
    )


def _qwen2_5_vl(keys: GGUFKeys, text: _Language) -> VisionSpec:
    start, end, pad = (text.find(token) for token in VISION_TOKENS)
    if start is None or end is None or pad is None:
        raise ModelError(f"the language model lacks one of the tokens {', '.join(VISION_TOKENS)}")
    layers, patch = keys.count("vision.block_count"), keys.integer("vision.patch_size")
    merge = keys.integer("vision.spatial_merge_size", MERGE)
    listed, period = keys.get("vision.fullatt_block_indexes"), keys.get("vision.n_wa_pattern")
    if listed is None and period is None:
        raise KeyError("clip.vision.n_wa_pattern")
    mean, std = _normalisation(keys)
    low, high = Preprocess(mode="dynamic").min_pixels, Preprocess(mode="dynamic").max_pixels
    return _spec(
        keys,
        kind="qwen2_5_vl",
        layers=layers,
        out=_rows(keys, "mm.2.weight"),
        preprocess=Preprocess(
            mode="dynamic",
            mean=mean,
            std=std,
            min_pixels=keys.integer("vision.image_min_pixels", low),
            max_pixels=keys.integer("vision.image_max_pixels", high),
        ),
        tags=ImageTags(style="vision", before=(start,), after=(end,), marker=pad),
        temporal=TEMPORAL,
        norm="rms",
        activation=_activation(keys, "silu"),
        gated=True,
        window=keys.integer("vision.window_size", WINDOW) // merge // patch,
        full_layers=tuple(range(layers)[period - 1 :: period]) if listed is None else tuple(int(i) for i in listed),
        merge=merge,
    )


def _spec(keys: GGUFKeys, **fields: Any) -> VisionSpec:
    return VisionSpec(
        width=keys.integer("vision.embedding_length"),
        heads=keys.integer("vision.attention.head_count"),
        intermediate=keys.integer("vision.feed_forward_length"),
        patch=keys.integer("vision.patch_size"),
        norm_eps=keys.number("vision.attention.layer_norm_epsilon"),
        **fields,
    )


def _rows(keys: GGUFKeys, name: str) -> int:
    if not keys.has(name):
        raise ModelError(f"missing tensor {name}")
    return keys.file.tensors[name].shape[0]


Activation = Literal["quick_gelu", "gelu", "silu"]


def _activation(keys: GGUFKeys, default: Activation) -> Activation:
    if keys.get("use_silu"):
        return "silu"
    return "gelu" if keys.get("use_gelu") else default


def _normalisation(keys: GGUFKeys) -> tuple[RGB, RGB]:
    found = []
    for name in ("vision.image_mean", "vision.image_std"):
        if (values := keys.get(name)) is None:
            raise KeyError(f"clip.{name}")
        red, green, blue = (float(x) for x in values)
        found.append((red, green, blue))
    return found[0], found[1]
