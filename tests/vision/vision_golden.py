"""The vision goldens: folders, images and what upstream made of them (tests/goldens/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load_file

from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.header import read_header
from lightllm_mp.vision.preprocess import Preprocessed, preprocess
from lightllm_mp.vision.sizing import grid_tokens, patch_grid
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.vision_config import VisionModel, read_vision
from tests.paths import GOLDENS

FOLDERS = ("llava_orig", "llava_hf", "qwen_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")


@dataclass(frozen=True)
class Case:
    """One image under one preprocessing; `key` begins the names of its tensors."""

    folder: str
    image: str
    key: str
    spec: VisionSpec


@cache
def facts(folder: str) -> dict[str, Any]:
    return json.loads((GOLDENS / folder / "golden.json").read_text())


@cache
def tensors(folder: str) -> dict[str, np.ndarray]:
    return load_file(GOLDENS / folder / "golden.safetensors")


@cache
def model(folder: str) -> VisionModel:
    found = read_vision(GOLDENS / folder)
    assert found is not None
    return found


def cases(folder: str) -> list[Case]:
    """All images of a folder; LLaVA's both padded, as its configuration says, and cropped."""
    spec, names = model(folder).spec, list(facts(folder)["images"])
    if folder != "llava_orig":
        return [Case(folder, name, f"img.{name}", spec) for name in names]
    found = []
    for pad in (True, False):
        variant = with_preprocess(spec, pad=pad)
        found += [Case(folder, name, f"img.{name}.{'pad' if pad else 'crop'}", variant) for name in names]
    return [case for case in found if case.key + ".pixels" in tensors(folder)]


def with_preprocess(spec: VisionSpec, **changes: Any) -> VisionSpec:
    steps = msgspec.structs.replace(spec.preprocess, **changes)
    return msgspec.structs.replace(spec, preprocess=steps)


def image_bytes(folder: str, image: str) -> bytes:
    return (GOLDENS / folder / "images" / f"{image}.png").read_bytes()


def prepared(case: Case) -> Preprocessed:
    data = image_bytes(case.folder, case.image)
    return preprocess(decode(data, read_header(data)), case.spec)


def image_tokens(spec: VisionSpec, width: int, height: int) -> int:
    """Slots of an image of width x height pixels as displayed."""
    return grid_tokens(spec, patch_grid(spec, width, height))
