"""Weight rules of vision towers: the tensors and files that make up each parameter. Imports no torch.

The rules of each family are in `vision/families/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families import Family, by_name
from lightllm_mp.vision.spec import VisionModel

if TYPE_CHECKING:
    from lightllm_mp.vision.mmproj import MmprojFile


@dataclass(frozen=True, slots=True)
class TowerSection:
    """Tensors of one folder or file whose names share a prefix, which `params` and `ignore` leave out.

    Of `prefixes` the one counts under which the first of `params` is found: releases of one layout differ there.

    Targets: `patch` [width, 3, (temporal,) patch, patch], `class` [width], `positions` [rows, width], `pre_norm`; of
    layer i under `layers.<i>.`: input_norm, qkv, o, post_norm, up or gate_up, down. clip: `projector.<i>`. qwen_vl:
    query, query_positions, kv, query_norm, kv_norm, in [3 * out, out] (query, key, value), out, final_norm, final.
    qwen2_5_vl, qwen3_vl: merge_norm, merge_up, merge_down, and for the i-th plane of DeepStack deep.<i>.norm, up, down.
    pixtral: merge_norm, merge, `projector.<i>`, row_ends [2, out]. siglip: final_norm, merge_norm, `projector.0`.
    gemma4: positions [2, rows, width] (column, row), of layers q, k, v, gate and up apart, each with its bounds (see
    clipped_vit.py), q_norm, k_norm, attention_out_norm, mlp_out_norm; std_bias, std_scale, `projector.0`.
    `.bias` is appended for biases.
    """

    folder: Path
    prefixes: tuple[str, ...]
    params: tuple[Param, ...]
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionFamily:
    """The vision half of a model family. The registry, `lightllm_mp.models.families`, names it as `Family.vision`."""

    read_hf: Callable[[dict[str, Any], Path], VisionModel]
    """From a config.json and its folder. KeyError, TypeError and ValueError are reported as a bad configuration."""
    hf_weights: Callable[[VisionModel], tuple[TowerSection, ...]]
    projector_types: tuple[str, ...] = ()
    """Values of `clip.projector_type` in mmproj files."""
    read_gguf: Callable[[MmprojFile], VisionModel] | None = None
    gguf_weights: Callable[[VisionModel], tuple[TowerSection, ...]] | None = None


def vision_family(family: Family) -> VisionFamily | None:
    """Imports what `family.vision` names; None for a family of text."""
    if family.vision is None:
        return None
    module, _, name = family.vision.partition(":")
    found: VisionFamily = getattr(import_module(module), name)
    return found


def sections(model: VisionModel) -> tuple[TowerSection, ...]:
    """The weight rules of the vision half of a model."""
    family = vision_family(by_name(model.family))
    assert family is not None
    if model.layout == "hf":
        return family.hf_weights(model)
    assert family.gguf_weights is not None
    return family.gguf_weights(model)


def norm(target: str, name: str, width: int, bias: bool = True) -> list[Param]:
    """A norm over `width` and, with `bias`, its bias."""
    weight = Param(target, (Piece(name + ".weight", (width,)),))
    return [weight, Param(target + ".bias", (Piece(name + ".bias", (width,)),))] if bias else [weight]


def unused_layers(layers: int, at: str) -> tuple[str, ...]:
    """Pattern of the tensors of layers above the first `layers`; `at` is the pattern before a layer's number."""
    used = "|".join(str(i) for i in range(layers))
    return (rf"^{at}(?!(?:{used})\.)\d+\.",)
