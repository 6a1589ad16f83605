"""What a vision tower is, as data: sizes and options that the encoder obeys, and how pictures become its input.

This module imports no torch: the tokenizer and the front read specs too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from lightllm_mp.errors import ModelError

Kind = Literal["clip", "qwen_vl", "qwen2_5_vl"]
TowerActivation = Literal["quick_gelu", "gelu", "gelu_tanh", "silu"]
RGB = tuple[float, float, float]

CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
IMAGE_ID = -200
"""What stands for an image in a prompt that comes as token ids (LLaVA's IMAGE_TOKEN_INDEX)."""
BICUBIC = 3
"""Pillow's number of the filter that all families resize with."""


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """How an RGB picture becomes numbers: resized, scaled to 0..1, and normalised per channel."""

    mode: Literal["crop", "stretch", "dynamic"]
    """crop: the shorter edge becomes `edge`, the middle square of `size` is kept. stretch: a square of `size`, whatever
    the shape was. dynamic: both edges are rounded to whole merged patches within `min_pixels` and `max_pixels`."""
    size: int = 0
    """Edge of the square in pixels (crop and stretch)."""
    edge: int = 0
    """crop: what the shorter edge becomes first."""
    pad: bool = False
    """crop: the picture is first centred on a square of the mean colour, so that nothing is cut off."""
    mean: RGB = CLIP_MEAN
    std: RGB = CLIP_STD
    scale: float = 1 / 255
    resample: int = BICUBIC
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280


class ImageTags(msgspec.Struct, frozen=True, kw_only=True):
    """Where a picture stands in a prompt."""

    style: Literal["image", "img", "vision"]
    """image: `<image>`. img: `<img>...</img>`. vision: `<|vision_start|><|image_pad|><|vision_end|>`."""
    before: tuple[int, ...] = ()
    """Token ids that text prompts get before a picture's slots, in place of the tag."""
    after: tuple[int, ...] = ()
    marker: int | None = None
    """Id of the tokenizer's own token for a picture, where there is one."""


class VisionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A vision transformer and what brings its output to the language model. Sizes are counts of elements."""

    kind: Kind
    width: int
    layers: int
    """Layers that are computed: those above the chosen feature layer are left out."""
    heads: int
    intermediate: int
    patch: int
    """Edge of a patch in pixels."""
    out: int
    """Hidden size of the language model."""
    norm_eps: float
    preprocess: Preprocess
    tags: ImageTags

    temporal: int = 1
    """Frames that one patch spans; a still picture is repeated."""
    norm: Literal["layer", "rms"] = "layer"
    activation: TowerActivation = "gelu"
    gated: bool = False
    """The MLP is down(activation(gate x) * up x)."""
    positions: int = 0
    """Lines of the learned position table, without the class token's; 0: the heads are rotated (2-D rotary)."""
    class_token: bool = False
    keep_class: bool = False
    """The class token is passed on to the language model, before the patches."""
    rope_theta: float = 10000.0
    window: int = 0
    """Edge of an attention window in merged patches; 0: every patch sees its whole picture."""
    full_layers: tuple[int, ...] = ()
    """Layers that `window` does not concern."""

    projector_layers: int = 2
    """clip: linear layers of the projector, with gelu between them."""
    projector_bias: bool = True
    queries: int = 0
    """qwen_vl: slots that the resampler gives."""
    query_heads: int = 0
    merge: int = 1
    """qwen2_5_vl: merge x merge neighbouring patches become one slot."""

    @property
    def grid(self) -> int:
        """Patches along an edge, where the size is fixed."""
        return self.preprocess.size // self.patch

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def patch_values(self) -> int:
        """Numbers that one patch consists of."""
        return 3 * self.temporal * self.patch * self.patch


@dataclass(frozen=True, slots=True)
class VisionModel:
    """The vision half of a model."""

    spec: VisionSpec
    family: str
    """Name of the family in the registry (`lightllm_mp.models.families`)."""
    folder: Path
    """Or the GGUF file."""
    tower: Path
    """Folder of the tower's weights: another one than `folder` where the configuration names a tower."""
    layout: Literal["hf", "mmproj", "mmproj_swapped"] = "hf"
    """How the weights are named: as in the family's Hugging Face folder, or as in an mmproj file (see mmproj.py)."""


def tower_activation(name: Any) -> TowerActivation:
    """An activation by the name that configurations give it."""
    kinds: dict[str, TowerActivation] = {
        "quick_gelu": "quick_gelu",
        "gelu": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "silu": "silu",
    }
    if name not in kinds:
        raise ModelError(f"activation {name!r} of the vision tower is not supported")
    return kinds[name]
