"""A vision tower as data: its sizes and options, and how images are preprocessed and placed in prompts.

Imports no torch: the tokenizer and the front read specs too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from lightllm_mp.errors import ModelError

Kind = Literal["clip", "qwen_vl", "qwen2_5_vl", "qwen3_vl", "pixtral", "siglip", "gemma4"]
TowerActivation = Literal["quick_gelu", "gelu", "gelu_tanh", "silu"]
RGB = tuple[float, float, float]

CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
IMAGE_ID = -200
"""Placeholder of an image in a prompt of token ids (LLaVA's IMAGE_TOKEN_INDEX)."""
BICUBIC = 3
"""Pillow's number of the resize filter of all families."""


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """Preprocessing of an RGB image: resize, scale to 0..1, normalise per channel."""

    mode: Literal["crop", "stretch", "dynamic"]
    """crop: the shorter edge is resized to `edge`, the middle square of `size` is kept. stretch: resized to a square of
    `size`. dynamic: both edges are rounded to whole merged patches, with an area of `min_pixels` to `max_pixels`."""
    size: int = 0
    """Edge of the square in pixels (crop and stretch)."""
    edge: int = 0
    """crop: length of the shorter edge before the crop. dynamic, fit edge: the longest edge."""
    pad: bool = False
    """crop: the image is first centred on a square of the mean colour, so nothing is cut off."""
    mean: RGB = CLIP_MEAN
    std: RGB = CLIP_STD
    scale: float = 1 / 255
    resample: int = BICUBIC
    fit: Literal["area", "edge", "budget"] = "area"
    """dynamic. area: see `mode`. edge: shrunk until no edge is longer than `edge`, then rounded up (Pixtral). budget:
    stretched to an area of `max_pixels`, then rounded down (Gemma 4)."""
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280


class VideoSampling(msgspec.Struct, frozen=True, kw_only=True):
    """Which frames of a video a model sees, and at which size."""

    fps: float = 2.0
    """Frames of a second."""
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int
    """Of all frames together, after resizing."""
    max_pixels: int


class ImageTags(msgspec.Struct, frozen=True, kw_only=True):
    """How a prompt names an image."""

    style: Literal["image", "img", "vision", "bracket", "turn", "pipes"]
    """image: `<image>`. img: `<img>...</img>`. vision: `<|vision_start|><|image_pad|><|vision_end|>`, and for a video
    the same with `<|video_pad|>`. bracket: `[IMG]`. turn: `<start_of_image>`. pipes: `<|image|>`."""
    before: tuple[int, ...] = ()
    """Token ids before an image's slots, in place of the tag in a text prompt."""
    after: tuple[int, ...] = ()
    marker: int | None = None
    """Id of the tokenizer's own token for an image, if it has one."""


class VisionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A vision transformer and its projector. Sizes are counts of elements."""

    kind: Kind
    width: int
    layers: int
    """Computed layers: those above the chosen feature layer are left out."""
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
    """Frames of one patch; a still image is repeated."""
    video: VideoSampling | None = None
    """None: the model takes no videos."""
    norm: Literal["layer", "rms"] = "layer"
    activation: TowerActivation = "gelu"
    gated: bool = False
    """The MLP is down(activation(gate x) * up x)."""
    positions: int = 0
    """Rows of the learned position table, without the class token's; 0: none. With a dynamic size there is a 2-D rotary
    embedding besides, and the table is resampled to each image's patches."""
    class_token: bool = False
    keep_class: bool = False
    """The language model gets the class token, before the patches."""
    rope_theta: float = 10000.0
    rope_stagger: bool = False
    """The frequencies of columns lie between those of rows (Pixtral); else they are equal."""
    window: int = 0
    """Edge of an attention window in merged patches; 0: every patch sees its whole image."""
    full_layers: tuple[int, ...] = ()
    """Layers without `window`."""

    projector_layers: int = 2
    """clip: linear layers of the projector, with gelu between them."""
    projector_bias: bool = True
    queries: int = 0
    """qwen_vl: slots per image, the resampler's output."""
    query_heads: int = 0
    projector_eps: float = 1e-6
    """pixtral: epsilon of the norm before the merge of patches."""
    clipped: bool = False
    """gemma4: inputs and outputs of linear layers are clamped to bounds that the file has."""
    standardize: bool = False
    """gemma4: slots are shifted and scaled, before the projector's norm, by vectors that the file has."""
    merge: int = 1
    """dynamic sizes, siglip: merge x merge neighbouring patches become one slot."""
    row_ends: tuple[int, ...] = ()
    """pixtral: ids of the language model's tokens whose embeddings follow each row of slots, and the last row."""
    vocab: int = 0
    """pixtral: rows of the language model's embedding, which has those of `row_ends`."""
    plain_positions: bool = False
    """dynamic sizes: slots have positions like text, one after another, and not by row and column (mrope)."""
    deepstack: tuple[int, ...] = ()
    """DeepStack (arXiv 2406.04334): layers whose outputs are merged too. A slot has a plane of embeddings for each, and
    the decoder adds these to its hidden states after its first layers."""

    @property
    def grid(self) -> int:
        """Patches along an edge, where the size is fixed."""
        return self.preprocess.size // self.patch

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def slot_values(self) -> int:
        """Numbers of one slot's embeddings, in all planes."""
        return self.out * (1 + len(self.deepstack))

    @property
    def patch_values(self) -> int:
        """Numbers of one patch."""
        return 3 * self.temporal * self.patch * self.patch


@dataclass(frozen=True, slots=True)
class VisionModel:
    """The vision half of a model."""

    spec: VisionSpec
    family: str
    """Name of the family in the registry (`lightllm_mp.models.families`)."""
    folder: Path
    """The model folder, or the mmproj file."""
    tower: Path
    """Folder of the tower's weights; differs from `folder` where the configuration names a tower."""
    layout: Literal["hf", "mmproj", "mmproj_swapped"] = "hf"
    """Tensor names: as in the family's Hugging Face folder, or as in an mmproj file (see mmproj.py)."""


def tower_activation(name: Any) -> TowerActivation:
    """An activation by its name in configurations."""
    kinds: dict[str, TowerActivation] = {
        "quick_gelu": "quick_gelu",
        "gelu": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "silu": "silu",
    }
    if name not in kinds:
        raise ModelError(f"activation {name!r} of the vision tower is not supported")
    return kinds[name]
