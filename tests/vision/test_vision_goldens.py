"""Pixels and embeddings of all golden images equal upstream's."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import PIL
import pytest
import torch

from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.sizing import grid_tokens
from lightllm_mp.vision.tower.encoder import VisionEncoder
from lightllm_mp.vision.tower.tower_loader import load_encoder, load_weights
from lightllm_mp.vision.tower.tower_ops import TORCH
from tests.vision.vision_golden import (
    FOLDERS,
    Case,
    cases,
    facts,
    model,
    prepared,
    tensors,
    upstream_embeddings,
    upstream_pixels,
)

PIXELS, EMBEDS = 1e-5, 5e-4
LOW_PRECISION = {torch.bfloat16: 0.04, torch.float16: 0.005}
"""Largest error, as a share of the largest embedding."""
SENSITIVE = {"pixtral": 2.5}
"""Folders whose towers move more than others: factor on that share."""


def most_apart(folder: str, dtype: torch.dtype, wanted: torch.Tensor) -> float:
    return LOW_PRECISION[dtype] * SENSITIVE.get(folder, 1.0) * wanted.abs().max().item()


def all_cases() -> list[Case]:
    return [case for folder in FOLDERS for case in cases(folder)]


@pytest.fixture(scope="module", params=FOLDERS)
def encoder(request: pytest.FixtureRequest) -> tuple[str, VisionEncoder]:
    return request.param, load_encoder(model(request.param), dtype=torch.float32)


def expected(folder: str) -> list[torch.Tensor]:
    """Of each case, [tokens, out], or with DeepStack [1 + levels, tokens, out]."""
    found = tensors(folder)
    embeds = [upstream_embeddings(case) for case in cases(folder)]
    deep = [found.get(case.key + ".deepstack") for case in cases(folder)]
    return [
        x if planes is None else torch.cat((x[None], torch.from_numpy(planes)))
        for x, planes in zip(embeds, deep, strict=True)
    ]


def recorded(case: Case) -> Preprocessed:
    """With upstream's own pixels, which a Pillow other than the goldens' makes a little otherwise."""
    return replace(prepared(case), pixels=upstream_pixels(case))


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: f"{case.folder}-{case.key}")
def test_pixels(case: Case) -> None:
    if case.image == "tall" and case.folder.startswith("qwen") and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 resizes a tall picture's rows first, the goldens' Pillow its columns")
    image = prepared(case)
    wanted = upstream_pixels(case)
    assert image.pixels.dtype == np.float32
    assert image.pixels.shape == wanted.shape
    assert np.abs(image.pixels - wanted).max() < PIXELS
    if case.key + ".grid_thw" in tensors(case.folder):
        assert list(image.grid) == tensors(case.folder)[case.key + ".grid_thw"].tolist()


def test_every_variant_is_there() -> None:
    counts = [len(cases(folder)) for folder in FOLDERS]
    assert counts == [8, 5, 5, 5, 4, 2, 2, 1, 3, 3, 3, 1]


def test_embeddings_in_one_batch(encoder: tuple[str, VisionEncoder]) -> None:
    folder, tower = encoder
    found = tower.encode([recorded(case) for case in cases(folder)])
    for case, got, wanted in zip(cases(folder), found, expected(folder), strict=True):
        assert got.shape == wanted.shape
        assert got.shape[-2:] == (grid_tokens(case.spec, prepared(case).grid), case.spec.out)
        assert (got - wanted).abs().max().item() < EMBEDS


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION], ids=str)
@pytest.mark.parametrize("folder", FOLDERS)
def test_embeddings_with_the_ops_of_a_gpu(folder: str, dtype: torch.dtype) -> None:
    tower = VisionEncoder(model(folder).spec, load_weights(model(folder), dtype=dtype), TORCH)
    for got, wanted in zip(tower.encode([recorded(case) for case in cases(folder)]), expected(folder), strict=True):
        most = EMBEDS if dtype == torch.float32 else most_apart(folder, dtype, wanted)
        assert (got.float() - wanted).abs().max().item() < most


def test_an_image_does_not_feel_its_companions(encoder: tuple[str, VisionEncoder]) -> None:
    folder, tower = encoder
    shown = cases(folder)
    shown += [replace(shown[0], folder="pixtral", image="tall")] if len(shown) == 1 else []
    images = [prepared(case) for case in shown]
    shuffled = [images[-1], images[0], images[-1], images[1]]
    for image, together in zip(shuffled, tower.encode(shuffled), strict=True):
        alone = tower.encode([image])[0]
        assert (alone - together).abs().max().item() < 1e-4
        if tower.ops.exact_rows:
            assert torch.equal(alone, together)


def test_no_images(encoder: tuple[str, VisionEncoder]) -> None:
    assert encoder[1].encode([]) == []


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
@pytest.mark.parametrize("folder", FOLDERS)
def test_low_precision(folder: str, dtype: torch.dtype) -> None:
    tower = load_encoder(model(folder), dtype=dtype)
    for got, wanted in zip(tower.encode([recorded(case) for case in cases(folder)]), expected(folder), strict=True):
        assert got.dtype == dtype
        assert (got.float() - wanted).abs().max().item() < most_apart(folder, dtype, wanted)


def test_the_tower_before_the_projector() -> None:
    """An identity in place of LLaVA's projector shows the tower's own features."""
    folder = "llava_orig"
    weights = load_weights(model(folder), dtype=torch.float32)
    spec = msgspec.structs.replace(model(folder).spec, projector_layers=1)
    width = spec.width
    bare = VisionEncoder(spec, {**weights, "projector.0": torch.eye(width), "projector.0.bias": torch.zeros(width)})
    for case, got in zip(cases(folder), bare.encode([recorded(case) for case in cases(folder)]), strict=True):
        wanted = torch.from_numpy(tensors(folder)[case.key + ".clip_features"])
        assert (got - wanted).abs().max().item() < 1e-4


@pytest.mark.parametrize("folder", FOLDERS)
def test_slots_are_as_many_as_in_the_prompts(folder: str) -> None:
    by_image = {case.image: grid_tokens(case.spec, prepared(case).grid) for case in cases(folder)}
    slots = [slot for prompt in facts(folder)["prompts"] for slot in prompt["image_slots"]]
    assert slots
    assert all(end - start == by_image[image] for start, end, image, *_ in slots)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("folder", FOLDERS)
def test_embeddings_on_a_gpu(folder: str) -> None:
    images = [recorded(case) for case in cases(folder)]
    exact = load_encoder(model(folder), device="cuda", dtype=torch.float32).encode(images)
    half = load_encoder(model(folder), device="cuda", dtype=torch.bfloat16).encode(images)
    for got, rough, wanted in zip(exact, half, expected(folder), strict=True):
        assert got.device.type == "cuda"
        assert (got.cpu() - wanted).abs().max().item() < EMBEDS
        assert (rough.cpu().float() - wanted).abs().max().item() < most_apart(folder, torch.bfloat16, wanted)
