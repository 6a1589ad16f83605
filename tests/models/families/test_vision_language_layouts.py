"""The language halves of vision-language folders in every layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.vision.preprocess import Preprocessed
from lightllm_mp.vision.sizing import PatchGrid
from lightllm_mp.vision.tower.tower_loader import load_encoder
from lightllm_mp.vision.vision_config import read_vision
from tests.models.golden import GOLDENS, Prompt, Slots, check_prompt, prompts
from tests.models.runner import Runner


def config_of(folder: str) -> dict[str, Any]:
    return json.loads((GOLDENS / folder / "config.json").read_text())


def rewritten(source: str, folder: Path, config: dict[str, Any], names: dict[str, str]) -> Path:
    """A golden folder with another configuration and other prefixes of tensor names."""
    tensors = {}
    for name, tensor in load_file(GOLDENS / source / "model.safetensors").items():
        old = next((old for old in names if name.startswith(old)), None)
        tensors[name if old is None else names[old] + name.removeprefix(old)] = tensor
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def check(source: str, folder: Path) -> None:
    runner, prompt = Runner(load_model(folder, dtype=torch.float32)), prompts(source)[2]
    check_prompt(prompt, runner.prefill(runner.sequence(prompt), prompt.ids))


def test_qwen2_5_vl_of_newer_releases(tmp_path: Path) -> None:
    """Nested configuration, names under model.language_model and model.visual."""
    config = config_of("qwen2_5_vl")
    outer = {"model_type", "architectures", "vision_config", "image_token_id", "tie_word_embeddings"}
    text = {key: value for key, value in config.items() if key not in outer and key != "rope_scaling"}
    text |= {"model_type": "qwen2_5_vl_text", "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    config = {key: value for key, value in config.items() if key in outer} | {"text_config": text}
    names = {"model.": "model.language_model.", "visual.": "model.visual."}
    check("qwen2_5_vl", rewritten("qwen2_5_vl", tmp_path, config, names))


def test_llava_of_newer_releases(tmp_path: Path) -> None:
    names = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }
    check("llava_hf", rewritten("llava_hf", tmp_path, config_of("llava_hf"), names))


@pytest.mark.parametrize("model_type", ["llava", "llava_llama", "llama"])
def test_original_llava_is_told_by_its_tower(tmp_path: Path, model_type: str) -> None:
    """With every name of the type; the file may contain the tower, which is read from elsewhere."""
    folder = rewritten("llava_orig", tmp_path, {**config_of("llava_orig"), "model_type": model_type}, {})
    tensors = load_file(folder / "model.safetensors")
    tensors["model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight"] = torch.ones(32)
    tensors["model.image_newline"] = torch.ones(64)
    save_file(tensors, folder / "model.safetensors")
    check("llava_orig", folder)


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    folder = rewritten("qwen2_5_vl", tmp_path, config_of("qwen2_5_vl"), {})
    tensors = load_file(folder / "model.safetensors")
    tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match="two spellings"):
        load_model(folder, dtype=torch.float32)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (None, "mrope_section is missing"),
        ({"type": "mrope"}, "'mrope' is not supported"),
        ({"type": "mrope", "mrope_section": [2, 3]}, "does not make up"),
        ({"type": "mrope", "mrope_section": [2, 3, 4]}, "does not make up"),
        ({"type": "mrope", "mrope_section": [9, -4, 3]}, "does not make up"),
    ],
)
def test_sections_that_do_not_fit(tmp_path: Path, scaling: dict[str, Any] | None, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**config_of("qwen2_5_vl"), "rope_scaling": scaling}))
    with pytest.raises(ModelError, match=message):
        read_model_config(tmp_path)


def test_sections_beside_another_scaling(tmp_path: Path) -> None:
    """What Qwen recommends for long texts."""
    scaling = {"type": "yarn", "mrope_section": [2, 3, 3], "factor": 4, "original_max_position_embeddings": 32768}
    (tmp_path / "config.json").write_text(json.dumps({**config_of("qwen2_5_vl"), "rope_scaling": scaling}))
    rope = read_model_config(tmp_path).rope
    assert rope is not None
    assert (rope.scaling, rope.sections, rope.factor) == ("yarn", (2, 3, 3), 4.0)


def test_llava_around_another_language_model(tmp_path: Path) -> None:
    config = config_of("llava_hf")
    config["text_config"]["model_type"] = "mistral"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="language model of type 'mistral'"):
        read_model_config(tmp_path)


def test_llava_of_defaults(tmp_path: Path) -> None:
    """llava-1.5-7b-hf says little more than this about its language model."""
    text = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text, "vision_config": {}}))
    spec = read_model_config(tmp_path)
    assert (spec.vocab, spec.hidden, spec.layers, spec.heads, spec.intermediate) == (32064, 4096, 32, 32, 11008)
    assert (spec.max_context, spec.norm_eps, spec.eos_ids, spec.tied) == (4096, 1e-5, (2,), False)


TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
TEXT |= {"max_position_embeddings": 128, "num_key_value_heads": 1}


@pytest.mark.slow
def test_qwen2_5_vl_against_transformers(tmp_path: Path) -> None:
    """Saved by the newest release: a prompt with two images, from pixels to logits."""
    transformers = pytest.importorskip("transformers")
    vision = {"depth": 2, "hidden_size": 48, "intermediate_size": 40, "num_heads": 4, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "window_size": 24, "fullatt_block_indexes": [1], "hidden_act": "silu"}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    ids = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    config = transformers.Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": rope}, **ids)
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    upstream = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    upstream.save_pretrained(tmp_path)
    grids = [PatchGrid(1, 6, 10), PatchGrid(1, 8, 4)]
    random = np.random.default_rng(1)
    images = [Preprocessed(random.standard_normal((g.patches, 96), dtype=np.float32), g) for g in grids]
    spots = [(3, 18), (22, 30)]
    prompt = random.integers(3, 60, 36)
    for start, end in spots:
        prompt[start:end], prompt[start - 1], prompt[end] = 60, 62, 63
    given = torch.from_numpy(prompt)[None]
    with torch.no_grad():
        expected = upstream(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            mm_token_type_ids=(given == 60).int(),
            pixel_values=torch.from_numpy(np.concatenate([image.pixels for image in images])),
            image_grid_thw=torch.tensor(grids),
        ).logits[0]
    found = read_vision(tmp_path)
    assert found is not None
    seen = load_encoder(found, dtype=torch.float32).encode(images)
    slots = tuple(Slots(a, b, e, tuple(g)) for (a, b), e, g in zip(spots, seen, grids, strict=True))
    nothing = torch.empty(0)
    delta = sum(max(g.rows, g.columns) // 2 - (b - a) for (a, b), g in zip(spots, grids, strict=True))
    ours = Prompt(prompt.tolist(), [], (0, 36), expected, nothing, nothing, slots=slots, rope_delta=delta)
    runner = Runner(load_model(tmp_path, dtype=torch.float32))
    check_prompt(ours, runner.prefill(runner.sequence(ours), ours.ids, 7))


@pytest.mark.slow
def test_llava_against_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    vision = {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "hidden_size": 32}
    vision |= {"intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": 16}
    text = {**TEXT, "model_type": "llama"}
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=60)
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    upstream = transformers.LlavaForConditionalGeneration(config).eval()
    upstream.save_pretrained(tmp_path)
    shutil.copy(GOLDENS / "llava_hf" / "preprocessor_config.json", tmp_path)
    steps = json.loads((tmp_path / "preprocessor_config.json").read_text())
    steps["crop_size"], steps["size"] = {"height": 28, "width": 28}, {"shortest_edge": 28}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(steps))
    pixels = np.random.default_rng(2).standard_normal((3, 28, 28), dtype=np.float32)
    prompt = np.array([1, 5, 60, 60, 60, 60, 9, 33])
    with torch.no_grad():
        expected = upstream(
            input_ids=torch.from_numpy(prompt)[None], pixel_values=torch.from_numpy(pixels)[None]
        ).logits[0]
    found = read_vision(tmp_path)
    assert found is not None
    seen = load_encoder(found, dtype=torch.float32).encode([Preprocessed(pixels, PatchGrid(1, 2, 2))])
    nothing = torch.empty(0)
    ours = Prompt(prompt.tolist(), [], (0, 8), expected, nothing, nothing, slots=(Slots(2, 6, seen[0]),))
    runner = Runner(load_model(tmp_path, dtype=torch.float32))
    check_prompt(ours, runner.prefill(runner.sequence(ours), ours.ids, 3))
