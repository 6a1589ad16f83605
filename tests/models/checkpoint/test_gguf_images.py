"""GGUF files of a language model with an mmproj file beside it: images give the golden folder's results."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightllm_mp import Config, Engine
from lightllm_mp.cli.inspect.report import inspect
from lightllm_mp.config import EngineConfig, ModelConfig, MultimodalConfig
from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.vision.decode import decode
from lightllm_mp.vision.header import read_header
from lightllm_mp.vision.preprocess import preprocess
from lightllm_mp.vision.spec import VisionModel
from lightllm_mp.vision.tower.tower_loader import load_encoder, load_weights
from lightllm_mp.vision.vision_config import read_vision
from tests.models.checkpoint.gguf_file import write_gguf
from tests.models.checkpoint.mmproj_file import QWEN3_TOKENS, QWEN_TOKENS, write_mmproj
from tests.models.golden import GOLDENS, check_greedy, check_prompt, prompts
from tests.models.runner import Runner

TOLERANCE = 5e-4
IMAGE = -200
"""Stands for an image in the ids of a request."""
QWEN_SIZES = {"vision.image_min_pixels": 1024, "vision.image_max_pixels": 6400}
"""The converter does not write it; the golden's images are tiny."""


def written(tmp_path, folder: str, *, keys=None, swapped=False, pad=True) -> VisionModel | None:
    keys = {**(QWEN_SIZES if folder == "qwen2_5_vl" else {}), **(keys or {})}
    if not pad:
        keys["vision.image_aspect_ratio"] = "square"
    write_gguf(tmp_path / "model.gguf", folder, tokens=QWEN3_TOKENS if folder.startswith("qwen3") else QWEN_TOKENS)
    write_mmproj(tmp_path / "mmproj-model-f32.gguf", folder, keys=keys, swapped=swapped)
    return read_vision(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("folder", "pad", "swapped"),
    [
        *(("llava_orig", True, True), ("llava_orig", False, False), ("llava_hf", False, True)),
        *((folder, True, False) for folder in ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")),
    ],
)
def test_prompts_with_pictures(tmp_path, folder, pad, swapped):
    """From the image file to the ids; the embeddings and the logits are the golden ones."""
    vision = written(tmp_path, folder, swapped=swapped, pad=pad)
    assert vision is not None
    encoder = load_encoder(vision, dtype=torch.float32)
    golden = load_file(GOLDENS / folder / "golden.safetensors")
    runner = Runner(load_model(tmp_path / "model.gguf", dtype=torch.float32))
    asked, seen_pictures = json.loads((GOLDENS / folder / "golden.json").read_text())["prompts"], 0
    for prompt, raw in zip(prompts(folder), asked, strict=True):
        if any(slots[3:] not in ([], ["pad" if pad else "crop"]) for slots in raw["image_slots"]):
            continue
        slots = []
        for slot, (_, _, image, *how) in zip(prompt.slots, raw["image_slots"], strict=True):
            data = (GOLDENS / folder / "images" / f"{image}.png").read_bytes()
            planes = encoder.encode([preprocess(decode(data, read_header(data)), vision.spec)])[0]
            found, deep = (planes[0], planes[1:]) if planes.dim() > 2 else (planes, None)
            key = ".".join(["img", image, *how, "embeds"])
            if key in golden:
                assert (found - golden[key]).abs().max() < TOLERANCE
            slots.append(replace(slot, embeds=found, deep=deep))
        seen_pictures += len(slots)
        prompt = replace(prompt, slots=tuple(slots))
        seq = runner.sequence(prompt)
        logits = runner.prefill(seq, prompt.ids)
        check_prompt(prompt, logits)
        ids, seen = runner.decode([(seq, logits)], len(prompt.greedy))
        check_greedy(prompt, ids[0], seen[0])
    assert seen_pictures


def with_slots_folded(prompt: dict[str, Any]) -> list[int]:
    """The ids of a request: one in place of each image's slots."""
    ids, at = [], 0
    for start, end, *_ in prompt["image_slots"]:
        ids += [*prompt["input_ids"][at:start], IMAGE]
        at = end
    return ids + prompt["input_ids"][at:]


@pytest.mark.parametrize("folder", ["llava_orig", "qwen2_5_vl"])
def test_served(tmp_path, folder):
    """With the whole engine; --model-dir is the model's file."""
    written(tmp_path, folder)
    asked = json.loads((GOLDENS / folder / "golden.json").read_text())["prompts"]
    asked = [prompt for prompt in asked if all(slots[3:] in ([], ["pad"]) for slots in prompt["image_slots"])]
    images = [
        [(GOLDENS / folder / "images" / f"{slots[2]}.png").read_bytes() for slots in prompt["image_slots"]]
        for prompt in asked
    ]
    config = Config(
        model=ModelConfig(model_dir=str(tmp_path / "model.gguf"), data_type="float32", device="cpu"),
        engine=EngineConfig(max_total_token_num=4000, threads=1),
        multimodal=MultimodalConfig(enable_multimodal=True),
    )
    with Engine(config) as engine:
        found = engine.generate(
            [with_slots_folded(prompt) for prompt in asked], images=images, max_new_tokens=24, ignore_eos=True
        )
    assert [one.token_ids for one in found] == [prompt["greedy_ids"] for prompt in asked]


@pytest.mark.parametrize("folder", ["llava_hf", "qwen2_5_vl", "qwen3_vl"])
def test_the_same_tower_as_the_folder(tmp_path, folder):
    """The file's numbers are rounded to float32, and LLaVA's has no token for images."""
    mine, theirs = written(tmp_path, folder, pad=False), read_vision(GOLDENS / folder)
    assert mine is not None
    assert theirs is not None
    ours, steps = mine.spec, theirs.spec.preprocess
    assert np.allclose([ours.norm_eps, *ours.preprocess.mean], [theirs.spec.norm_eps, *steps.mean], rtol=1e-6)
    assert np.allclose(ours.preprocess.std, steps.std, rtol=1e-6)
    plain = msgspec.structs.replace(ours.preprocess, mean=steps.mean, std=steps.std)
    tags = theirs.spec.tags if folder == "llava_hf" else ours.tags
    same = msgspec.structs.replace(ours, norm_eps=theirs.spec.norm_eps, preprocess=plain, tags=tags)
    assert same == theirs.spec
    towers = [load_weights(vision, dtype=torch.float32) for vision in (mine, theirs)]
    assert towers[0].keys() == towers[1].keys()
    assert all(torch.equal(towers[0][name], towers[1][name]) for name in towers[0])


def test_random_weights(tmp_path):
    vision = written(tmp_path, "qwen2_5_vl")
    assert vision is not None
    made = load_weights(vision, dtype=torch.float32, load_format="dummy")
    assert made["patch"].shape == (32, 3, 2, 8, 8)


def test_the_layer_may_be_named(tmp_path):
    """A file with more layers than the model uses."""
    vision = written(tmp_path, "llava_hf", keys={"vision.feature_layer": [1]})
    assert vision is not None
    assert vision.spec.layers == 1
    assert load_encoder(vision, dtype=torch.float32).nbytes > 0


def test_no_file_beside_the_model(tmp_path):
    write_gguf(tmp_path / "model.gguf", "llava_hf")
    assert read_vision(tmp_path / "model.gguf") is None
    assert read_vision(tmp_path / "other.gguf") is None


@pytest.mark.parametrize(
    ("folder", "keys", "message"),
    [
        ("llava_hf", {"projector_type": "ldp"}, "projector 'ldp' is not supported"),
        ("llava_hf", {"vision.patch_size": None}, "key 'clip.vision.patch_size' of the vision tower is missing"),
        ("llava_hf", {"vision.image_mean": [1.0, 2.0]}, "a value of the vision tower cannot be used"),
        ("llava_hf", {"vision.image_std": None}, "key 'clip.vision.image_std' of the vision tower is missing"),
        ("llava_hf", {"vision.image_grid_pinpoints": [336, 672]}, "LLaVA 1.6"),
        ("llava_hf", {"vision.feature_layer": [1, 2]}, "features of 2 layers are not supported"),
        ("llava_hf", {"vision.image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres' is not supported"),
        ("llava_hf", {"vision.attention.head_count": 3}, "cannot have 3 heads"),
        ("qwen2_5_vl", {"vision.n_wa_pattern": None}, "key 'clip.vision.n_wa_pattern' of the vision tower is missing"),
        ("qwen3_vl", {"vision.is_deepstack_layers": None}, "gives 0 levels of DeepStack, the language model takes 3"),
        ("qwen2_5_vl", {"vision.n_wa_pattern": 0}, "a value of the vision tower cannot be used"),
    ],
)
def test_refused_in_one_line(tmp_path, folder, keys, message):
    with pytest.raises(ModelError) as caught:
        written(tmp_path, folder, keys=keys)
    assert message in caught.value.message
    assert "mmproj-model-f32.gguf" in caught.value.message
    assert "\n" not in caught.value.message


def test_what_does_not_belong_together(tmp_path):
    write_gguf(tmp_path / "model.gguf", "yi")
    write_mmproj(tmp_path / "mmproj.gguf", "llava_hf")
    with pytest.raises(ModelError, match="embeddings of 64, the language model takes 112"):
        read_vision(tmp_path / "model.gguf")
    write_gguf(tmp_path / "model.gguf", "llama")
    write_mmproj(tmp_path / "mmproj.gguf", "qwen2_5_vl")
    with pytest.raises(ModelError, match="lacks one of the tokens"):
        read_vision(tmp_path / "model.gguf")
    write_mmproj(tmp_path / "mmproj-2.gguf", "qwen2_5_vl")
    with pytest.raises(ModelError, match="2 mmproj files"):
        read_vision(tmp_path / "model.gguf")


def test_a_missing_tensor_is_named(tmp_path):
    vision = written(tmp_path, "llava_hf")
    assert vision is not None
    data = (tmp_path / "mmproj-model-f32.gguf").read_bytes()
    (tmp_path / "mmproj-model-f32.gguf").write_bytes(data.replace(b"v.blk.1.ln2.weight", b"v.blk.1.ln3.weight"))
    with pytest.raises(ModelError, match=r"missing tensor blk\.1\.ln2\.weight"):
        load_encoder(vision, dtype=torch.float32)


def test_inspect_says_that_there_are_pictures(tmp_path):
    written(tmp_path, "llava_hf")
    assert "images with --enable-multimodal (clip)" in inspect(tmp_path / "model.gguf").notes
    write_mmproj(tmp_path / "mmproj-2.gguf", "llava_hf")
    report = inspect(tmp_path / "model.gguf")
    assert any("2 mmproj files" in note for note in report.notes)
    assert not any("mmproj" in problem for problem in report.problems)
