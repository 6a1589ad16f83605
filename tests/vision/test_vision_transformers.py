"""Against transformers with shapes that the goldens do not have, saved the way its newest release names tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.header import read_header
from lightllm_mp.vision.preprocess import Preprocessed, preprocess
from lightllm_mp.vision.sizing import PatchGrid, budget_resize, edge_resize, smart_resize
from lightllm_mp.vision.tower.tower_loader import load_encoder
from lightllm_mp.vision.vision_config import VisionModel, read_vision
from tests.vision.vision_golden import image_bytes, model, with_preprocess

transformers = pytest.importorskip("transformers")
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}


def saved(model_class: str, config: Any, folder: Path) -> tuple[Any, VisionModel]:
    torch.manual_seed(3)
    upstream = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in upstream.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (1.0 if parameter.ndim == 1 else 0.0))
    upstream.save_pretrained(folder)
    found = read_vision(folder)
    assert found is not None
    return upstream, found


def test_smart_resize() -> None:
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as upstream

    for width, height in np.random.default_rng(5).integers(1, 6000, (300, 2)).tolist():
        for low, high in ((56 * 56, 28 * 28 * 1280), (1024, 6400), (4 * 28 * 28, 16384 * 28 * 28)):
            if max(width, height) <= 200 * min(width, height):
                rows, columns = upstream.smart_resize(height, width, 28, low, high)
                assert smart_resize(width, height, 28, low, high) == (columns, rows)


def test_sizes_of_pixtral_and_gemma4() -> None:
    from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size
    from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

    for width, height in np.random.default_rng(5).integers(32, 4000, (200, 2)).tolist():
        rows, columns = get_aspect_ratio_preserving_size(height, width, 16, 280 * 9, 3)
        assert budget_resize(width, height, 48, 280 * 48 * 48) == (columns, rows)
        image = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (3, height, width))
        rows, columns = get_resize_output_image_size(image, (1540, 1540), (28, 28))
        assert edge_resize(width, height, 28, 1540) == (columns, rows)
    assert edge_resize(1, 9000, 28, 1540) == (28, 1540)
    assert budget_resize(1, 9000, 48, 280 * 48 * 48) == (48, 280 * 48)


def test_qwen2_5_vl_windows_of_every_shape(tmp_path: Path) -> None:
    """Windows of 3 x 3 blocks, grids that they do not divide, a grid smaller than one; heads of 12."""
    vision = {"depth": 3, "hidden_size": 48, "intermediate_size": 40, "num_heads": 4, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "window_size": 24, "fullatt_block_indexes": [1], "hidden_act": "silu"}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config={**TEXT, "num_key_value_heads": 2, "rope_parameters": rope}
    )
    upstream, found = saved("Qwen2_5_VLForConditionalGeneration", config, tmp_path)
    grids = [PatchGrid(1, 14, 10), PatchGrid(1, 2, 2), PatchGrid(1, 6, 12), PatchGrid(1, 14, 10), PatchGrid(1, 4, 18)]
    values = np.random.default_rng(1)
    images = [Preprocessed(values.standard_normal((g.patches, 96), dtype=np.float32), g) for g in grids]
    with torch.no_grad():
        pixels = torch.from_numpy(np.concatenate([image.pixels for image in images]))
        expected = upstream.model.visual(pixels, grid_thw=torch.tensor(grids)).pooler_output
    got = torch.cat(load_encoder(found, dtype=torch.float32).encode(images))
    assert got.shape == expected.shape == (107, 32)
    assert (got - expected).abs().max().item() < 1e-4 * expected.abs().max().item()


@pytest.mark.parametrize(("layer", "strategy"), [(-2, "default"), (-1, "full"), (2, "default")])
def test_llava_feature_layers(tmp_path: Path, layer: int, strategy: str) -> None:
    vision = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=42, patch_size=14, hidden_act="gelu"),
        text_config=transformers.LlamaConfig(**TEXT),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    upstream, found = saved("LlavaForConditionalGeneration", config, tmp_path)
    pixels = np.random.default_rng(2).standard_normal((2, 3, 42, 42), dtype=np.float32)
    with torch.no_grad():
        features = upstream.model.get_image_features(torch.from_numpy(pixels)).pooler_output
    got = load_encoder(found, dtype=torch.float32).encode([Preprocessed(image, PatchGrid(1, 3, 3)) for image in pixels])
    for one, expected in zip(got, features, strict=True):
        assert one.shape == expected.shape == (10 if strategy == "full" else 9, 32)
        assert (one - expected).abs().max().item() < 1e-4 * expected.abs().max().item()


@pytest.mark.parametrize("name", ["wide", "tall"])
@pytest.mark.parametrize("low", [1024, 40_000])
def test_qwen2_vl_processor(name: str, low: int) -> None:
    """The real sizes: patches of 14, two of them merged."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    data = image_bytes("qwen2_5_vl", name)
    picture = decode(data, read_header(data))
    upstream = Qwen2VLImageProcessorPil(size={"shortest_edge": low, "longest_edge": 50_000})(
        picture, return_tensors="np"
    )
    spec = with_preprocess(model("qwen2_5_vl").spec, min_pixels=low, max_pixels=50_000)
    got = preprocess(picture, type(spec)(**{**{f: getattr(spec, f) for f in spec.__struct_fields__}, "patch": 14}))
    assert list(got.grid) == upstream["image_grid_thw"][0].tolist()
    assert np.abs(got.pixels - upstream["pixel_values"]).max() < 1e-5
