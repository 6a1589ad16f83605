"""The configurations of published models: sizes that their papers and cards give follow from them."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp.vision.spec import VideoSampling
from lightllm_mp.vision.tower_rules import sections
from lightllm_mp.vision.vision_config import VisionModel, read_vision
from tests.vision.vision_golden import image_tokens

CLIP = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16}
CLIP |= {"num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "model_type": "clip_vision_model"}
LLAVA = {"model_type": "llava_llama", "hidden_size": 4096, "image_aspect_ratio": "pad", "mm_hidden_size": 1024}
LLAVA |= {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2}
LLAVA |= {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_use_im_start_end": False}
VISUAL = {"heads": 16, "image_size": 448, "image_start_id": 151857, "layers": 48, "mlp_ratio": 4.9231}
VISUAL |= {"output_dim": 4096, "patch_size": 14, "width": 1664}
QWEN2_5 = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
QWEN2_5 |= {"patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "temporal_patch_size": 2}
QWEN2_5 |= {"fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu"}
QWEN3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096}
QWEN3 |= {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304}
QWEN3 |= {"deepstack_visual_indexes": [8, 16, 24], "hidden_act": "gelu_pytorch_tanh"}


def written(folder: Path, config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> VisionModel:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    found = read_vision(folder)
    assert found is not None
    return found


def parameters(model: VisionModel) -> int:
    return sum(prod(param.shape) for section in sections(model) for param in section.params)


def test_llava_1_5_7b(tmp_path: Path) -> None:
    tower = tmp_path / "clip-vit-large-patch14-336"
    tower.mkdir()
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": CLIP}))
    model = written(tmp_path / "llava-v1.5-7b", LLAVA)
    assert model.tower == tower
    assert (model.spec.layers, model.spec.head_dim, model.spec.preprocess.pad) == (23, 64, True)
    assert image_tokens(model.spec, 640, 480) == 576
    # ViT-L/14-336 has 304 million, of which the last layer (12.6) and the last norm are left out; the projector has 21.
    assert parameters(model) / 1e6 == pytest.approx(304.0 - 12.6 + 21.0, abs=1)


def test_llava_1_5_7b_hf(tmp_path: Path) -> None:
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
    model = written(tmp_path, {"model_type": "llava", "vision_config": CLIP, "text_config": text})
    assert image_tokens(model.spec, 640, 480) == 576
    assert (model.spec.out, model.spec.tags.marker, model.spec.preprocess.pad) == (4096, 32000, False)


def test_qwen_vl(tmp_path: Path) -> None:
    model = written(tmp_path, {"model_type": "qwen", "visual": VISUAL})
    assert (model.spec.intermediate, model.spec.grid, model.spec.query_heads) == (8192, 32, 32)
    assert (model.spec.tags.before, model.spec.tags.after) == ((151857,), (151858,))
    assert image_tokens(model.spec, 640, 480) == 256
    # The paper gives 1.9 billion and 0.08 billion for the adapter, without its projection.
    assert parameters(model) / 1e9 == pytest.approx(1.94, abs=0.03)


def test_qwen2_5_vl_7b(tmp_path: Path) -> None:
    config = {"model_type": "qwen2_5_vl", "vision_config": QWEN2_5, "image_token_id": 151655}
    limits = {"min_pixels": 3136, "max_pixels": 12845056}
    model = written(tmp_path, config, limits)
    assert (model.spec.window, model.spec.head_dim, model.spec.tags.marker) == (4, 80, 151655)
    assert image_tokens(model.spec, 640, 480) == 23 * 17
    assert image_tokens(model.spec, 8000, 6000) <= 16384
    assert parameters(model) / 1e6 == pytest.approx(676.6, abs=1)
    sizes = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}}
    assert written(tmp_path, config, sizes).spec == model.spec


def test_qwen3_vl_8b(tmp_path: Path) -> None:
    config = {"model_type": "qwen3_vl", "vision_config": QWEN3, "image_token_id": 151655}
    limits = {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    model = written(tmp_path, config, limits)
    spec = model.spec
    assert (spec.window, spec.head_dim, spec.positions, spec.slot_values) == (0, 72, 48 * 48, 4 * 4096)
    assert image_tokens(spec, 640, 480) == 20 * 15
    assert image_tokens(spec, 8000, 6000) <= 16384
    assert parameters(model) / 1e6 == pytest.approx(576, abs=1)  # 8.77 billion less 8.19 of Qwen3-8B
    assert spec.video == VideoSampling(fps=2.0, min_frames=4, max_frames=768, min_pixels=4096, max_pixels=25165824)
