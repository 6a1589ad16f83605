"""Slots of an image by its size, and positions of prompts with images."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.vision.header import read_header
from lightllm_mp.vision.sizing import PatchGrid, PlacedImage, mrope_positions, patch_grid, smart_resize
from tests.vision.vision_golden import FOLDERS, facts, image_bytes, image_tokens, model, tensors, with_preprocess

REAL = with_preprocess(model("qwen2_5_vl").spec, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)


@pytest.mark.parametrize("folder", FOLDERS)
def test_tokens_from_the_header_alone(folder: str) -> None:
    for name, said in facts(folder)["images"].items():
        header = read_header(image_bytes(folder, name))
        wanted = said.get("tokens", facts(folder).get("tokens_per_image"))
        spec = model(folder).spec
        ends = patch_grid(spec, header.width, header.height).rows // spec.merge if spec.row_ends else 0
        assert image_tokens(spec, header.width, header.height) == wanted + ends


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (28, 28, (56, 56)),  # grown to the least area
        (1, 1, (56, 56)),
        (1000, 700, (1008, 700)),
        (42, 70, (56, 56)),  # 1.5 and 2.5 times 28: halves go to the even number
        (4000, 3000, (1148, 840)),  # shrunk to the largest area
        (5000, 25, (5012, 28)),
    ],
)
def test_smart_resize(width: int, height: int, expected: tuple[int, int]) -> None:
    assert smart_resize(width, height, 28, 56 * 56, 28 * 28 * 1280) == expected


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 201)])
def test_a_line_is_refused_where_the_shape_is_kept(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match="longer than 200 times"):
        patch_grid(REAL, *size)
    assert image_tokens(model("llava_orig").spec, *size) == 16
    assert image_tokens(model("qwen_vl").spec, *size) == 256


def placed(prompt: dict) -> list[PlacedImage]:
    images = facts("qwen2_5_vl")["images"]
    return [PlacedImage(start, PatchGrid(*images[name]["grid_thw"])) for start, _, name in prompt["image_slots"]]


def test_mrope_positions_are_upstreams() -> None:
    prompts = facts("qwen2_5_vl")["prompts"]
    assert sum(len(prompt["image_slots"]) for prompt in prompts) == 9
    for i, prompt in enumerate(prompts):
        positions, delta = mrope_positions(prompt["length"], placed(prompt), merge=2)
        assert positions.dtype == np.int32
        assert np.array_equal(positions, tensors("qwen2_5_vl")[f"p{i}.position_ids"])
        assert delta == prompt["rope_delta"]


def test_produced_tokens_go_on_by_the_delta() -> None:
    """What decoding computes from the delta is what a longer prompt has."""
    prompt = facts("qwen2_5_vl")["prompts"][6]
    _, delta = mrope_positions(prompt["length"], placed(prompt), merge=2)
    longer, same = mrope_positions(prompt["length"] + 5, placed(prompt), merge=2)
    assert same == delta
    assert (longer[:, -5:] == np.arange(prompt["length"], prompt["length"] + 5) + delta).all()


def test_text_alone_has_plain_positions() -> None:
    positions, delta = mrope_positions(7, [], merge=2)
    assert (positions == np.arange(7)).all()
    assert delta == 0
    assert mrope_positions(0, [], merge=2)[0].shape == (3, 0)


def test_slots_beyond_the_prompt_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        mrope_positions(10, [PlacedImage(8, PatchGrid(1, 4, 4))], merge=2)
    with pytest.raises(ValueError, match="do not fit"):
        mrope_positions(20, [PlacedImage(2, PatchGrid(1, 4, 4)), PlacedImage(5, PatchGrid(1, 4, 4))], merge=2)
