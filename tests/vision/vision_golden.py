"""The vision goldens: folders, images and what upstream made of them (tests/goldens/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.header import read_header
from lightllm_mp.vision.preprocess import Preprocessed, patches, preprocess
from lightllm_mp.vision.sizing import PatchGrid, grid_tokens, patch_grid
from lightllm_mp.vision.spec import VisionSpec
from lightllm_mp.vision.vision_config import VisionModel, read_vision
from tests.paths import GOLDENS

FOLDERS = (
    *("llava_orig", "llava_hf", "qwen_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    *("mistral3", "pixtral", "gemma3_vl", "gemma4"),
)


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


def upstream_pixels(case: Case) -> np.ndarray:
    """In the layout of `Preprocessed.pixels`."""
    pixels = tensors(case.folder)[case.key + ".pixels"]
    if case.spec.kind == "gemma4":
        return gemma4_pixels(pixels, tensors(case.folder)[case.key + ".patch_xy"], case.spec)
    if case.spec.kind != "pixtral":
        return pixels
    grid = PatchGrid(1, pixels.shape[1] // case.spec.patch, pixels.shape[2] // case.spec.patch)
    return patches([pixels], grid, case.spec)


def gemma4_pixels(pixels: np.ndarray, places: np.ndarray, spec: VisionSpec) -> np.ndarray:
    """Patches row by row in 0..1 with the channel last -> our blocks, in -1..1."""
    columns, rows = (places.max(0) + 1).tolist()
    whole = pixels.reshape(rows, columns, spec.patch, spec.patch, 3).transpose(4, 0, 2, 1, 3)
    whole = whole.reshape(3, rows * spec.patch, columns * spec.patch)
    return 2 * patches([whole], PatchGrid(1, rows, columns), spec) - 1


def upstream_embeddings(case: Case) -> torch.Tensor:
    """[slots, hidden], of a Pixtral image with the embeddings of its break and end tokens."""
    found, ends = torch.from_numpy(tensors(case.folder)[case.key + ".embeds"]), case.spec.row_ends
    if not ends:
        return found
    weights = load_torch(GOLDENS / case.folder / "model.safetensors")
    between, last = weights["language_model.model.embed_tokens.weight"][list(ends)].float()
    rows = int(tensors(case.folder)[case.key + ".size_hw"][0]) // case.spec.patch // case.spec.merge
    closed = [torch.cat([row, between.unsqueeze(0)]) for row in found.chunk(rows)]
    return torch.cat([*closed[:-1], closed[-1][:-1], last.unsqueeze(0)])


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
