"""Shapes that upstream never tried: preprocessing stays small and sensible."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.vision import preprocess as module
from lightllm_mp.vision.preprocess import preprocess
from lightllm_mp.vision.spec import VisionSpec
from tests.vision.image_files import noise
from tests.vision.vision_golden import FOLDERS, model, with_preprocess

TWO_STEPS = 2.01 / 255 / 0.26
"""How far two pixels are apart whose 8-bit values differ by two."""
LARGE = with_preprocess(model("llava_orig").spec, size=336, edge=336)


def specs() -> list[VisionSpec]:
    return [with_preprocess(model(folder).spec, pad=False) for folder in FOLDERS] + [with_preprocess(LARGE, pad=False)]


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2)])
@pytest.mark.parametrize("spec", specs(), ids=lambda spec: f"{spec.kind}-{spec.preprocess.size}")
def test_one_colour_stays_one_colour(spec: VisionSpec, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (255, 0, 128))
    found = preprocess(picture, spec).pixels
    steps = spec.preprocess
    wanted = (np.array((255, 0, 128)) / 255 - steps.mean) / steps.std
    by_channel = found.reshape(found.shape[0], 3, -1).swapaxes(0, 1) if steps.mode == "dynamic" else found
    assert np.abs(by_channel.reshape(3, -1) - wanted[:, None]).max() < 1e-5


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 60_000)])
@pytest.mark.parametrize("pad", [True, False])
def test_lines_do_not_become_huge(size: tuple[int, int], pad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    resize = Image.Image.resize

    def watched(self: Image.Image, wanted: tuple[int, int], *args: object, **options: object) -> Image.Image:
        nonlocal largest
        largest = max(largest, wanted[0] * wanted[1], self.size[0] * self.size[1])
        return resize(self, wanted, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    found = preprocess(Image.new("RGB", size, "white"), with_preprocess(LARGE, pad=pad))
    assert found.pixels.shape == (3, 336, 336)
    assert 0 < largest <= module.LARGEST
    assert np.isfinite(found.pixels).all()


def test_a_line_is_refused_where_the_shape_is_kept() -> None:
    with pytest.raises(InvalidRequest, match="longer than 200 times"):
        preprocess(Image.new("RGB", (1, 5000)), model("qwen2_5_vl").spec)


def test_the_way_for_thin_pictures_makes_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ((40, 900), (700, 50), (100, 100), (35, 34))
    pictures = [noise(6, 6).resize(size, Image.Resampling.BICUBIC) for size in sizes]
    spec = with_preprocess(LARGE, pad=False)
    usual = [preprocess(picture, spec).pixels for picture in pictures]
    monkeypatch.setattr(module, "LARGEST", 0)
    for picture, wanted in zip(pictures, usual, strict=True):
        assert np.abs(preprocess(picture, spec).pixels - wanted).max() < TWO_STEPS


def test_a_padded_picture_may_be_shrunk_first(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (100, 2000), (255, 0, 0))
    usual = preprocess(picture, LARGE).pixels
    monkeypatch.setattr(module, "LARGEST", 1_000_000)
    found = preprocess(picture, LARGE).pixels
    assert np.abs(found - usual).mean() < 0.01
