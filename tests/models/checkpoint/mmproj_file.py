"""Writes the vision half of a golden folder as an mmproj file, the way llama.cpp's converters do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from safetensors.torch import load_file

from tests.models.checkpoint.gguf_file import add_key
from tests.models.golden import GOLDENS

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
QWEN3_TOKENS = {250: "<|vision_start|>", 251: "<|vision_end|>", 252: "<|image_pad|>"}
QWEN_TOKENS = {250: "<|vision_start|>", 251: "<|vision_end|>", 253: "<|image_pad|>"}

Tensors = dict[str, np.ndarray]


def write_mmproj(path: Path, folder: str, *, keys: dict[str, Any] | None = None, swapped: bool = False) -> None:
    """`keys` are added after `clip.`, or left out if they are None. `swapped`: the names that
    convert_image_encoder_to_gguf.py gives LLaVA's MLP."""
    config = json.loads((GOLDENS / folder / "config.json").read_text())
    if folder.startswith("qwen3"):
        found, tensors = _qwen3(folder, config)
    else:
        found, tensors = _qwen(folder, config) if folder == "qwen2_5_vl" else _clip(folder, config, swapped)
    writer = GGUFWriter(path, "clip")
    for key, value in {**found, **(keys or {})}.items():
        add_key(writer, f"clip.{key}", value)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _load(folder: Path) -> Tensors:
    return {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


def _tower(vision: dict[str, Any], layers: int, eps: float) -> dict[str, Any]:
    return {
        "has_vision_encoder": True,
        "vision.image_size": vision.get("image_size", 560),
        "vision.patch_size": vision["patch_size"],
        "vision.embedding_length": vision["hidden_size"],
        "vision.feed_forward_length": vision["intermediate_size"],
        "vision.attention.head_count": vision.get("num_heads") or vision["num_attention_heads"],
        "vision.attention.layer_norm_epsilon": eps,
        "vision.block_count": layers,
        "vision.image_mean": CLIP_MEAN,
        "vision.image_std": CLIP_STD,
    }


def _clip(folder: str, config: dict[str, Any], swapped: bool) -> tuple[dict[str, Any], Tensors]:
    """Leaves out the last layer and the norm behind it: LLaVA takes the output of the last layer but one."""
    at = GOLDENS / folder
    if "mm_vision_tower" in config:
        at = GOLDENS / config["mm_vision_tower"]
    vision = json.loads((at / "config.json").read_text())
    vision = vision.get("vision_config", vision)
    layers = vision["num_hidden_layers"] - 1
    keys = {**_tower(vision, layers, vision.get("layer_norm_eps", 1e-5)), "has_llava_projector": True}
    keys |= {"projector_type": "mlp", "use_gelu": False, "vision.projection_dim": vision["projection_dim"]}
    up, down = ("ffn_down", "ffn_up") if swapped else ("ffn_up", "ffn_down")
    spelt = (
        *(("encoder.layers.", "blk."), ("self_attn.out_proj", "attn_out"), ("self_attn.", "attn_"), ("_proj.", ".")),
        *(("layer_norm", "ln"), ("mlp.fc1", up), ("mlp.fc2", down), ("pre_layrnorm", "pre_ln")),
        *(("embeddings.class_embedding", "class_embd"), ("embeddings.patch_embedding", "patch_embd")),
        ("embeddings.position_embedding", "position_embd"),
    )
    found = {}
    for name, values in _load(at).items():
        if "vision_model." not in name or "position_ids" in name or "post_layernorm" in name:
            continue
        short = name.split("vision_model.")[1]
        for old, new in spelt:
            short = short.replace(old, new)
        if not short.startswith(f"blk.{layers}."):
            found["v." + short] = values
    for name, values in _load(GOLDENS / folder).items():
        for part, place in (("mm_projector.0", 0), ("mm_projector.2", 2), ("linear_1", 0), ("linear_2", 2)):
            if part in name:
                found[f"mm.{place}.{name.rsplit('.', 1)[1]}"] = values
    return keys, found


def _qwen(folder: str, config: dict[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """Qwen2VLVisionModel: queries, keys and values apart, a kernel for each frame. The period of layers with full
    attention is the first of them."""
    vision = config["vision_config"]
    keys = {**_tower(vision, vision["depth"], config["rms_norm_eps"]), "projector_type": "qwen2.5vl_merger"}
    keys |= {"use_silu": True, "vision.n_wa_pattern": vision["fullatt_block_indexes"][0] + 1}
    keys |= {"vision.projection_dim": config["hidden_size"], "vision.window_size": vision["window_size"]}
    table, found = get_tensor_name_map(MODEL_ARCH.MMPROJ, vision["depth"]), {}
    for name, values in _load(GOLDENS / folder).items():
        if not name.startswith("visual."):
            continue
        if "patch_embed" in name:
            found |= {"v.patch_embd.weight": values[:, :, 0], "v.patch_embd.weight.1": values[:, :, 1]}
            continue
        parts = {"q": 0, "k": 1, "v": 2} if ".qkv." in name else {"": 0}
        for part, piece in zip(parts, np.split(values, len(parts)), strict=True):
            known = table.get_name(name.replace("qkv", part), try_suffixes=(".weight", ".bias"))
            assert known is not None, name
            found[known] = piece
    return keys, found


def _qwen3(folder: str, config: dict[str, Any]) -> tuple[dict[str, Any], Tensors]:
    """Qwen3VLVisionModel: as `_qwen`, queries, keys and values together, and DeepStack's mergers by their layers."""
    vision, taps = config["vision_config"], config["vision_config"]["deepstack_visual_indexes"]
    keys = {**_tower(vision, vision["depth"], 1e-6), "projector_type": "qwen3vl_merger", "use_gelu": True}
    keys |= {"vision.image_mean": [0.5] * 3, "vision.image_std": [0.5] * 3, "vision.spatial_merge_size": 2}
    keys |= {"vision.image_min_pixels": 1024, "vision.image_max_pixels": 2600}
    keys |= {"vision.is_deepstack_layers": [layer in taps for layer in range(vision["depth"])]}
    table, found = get_tensor_name_map(MODEL_ARCH.MMPROJ, vision["depth"]), {}
    spelt = (("merger.norm", "v.post_ln"), ("merger.linear_fc1", "mm.0"), ("merger.linear_fc2", "mm.2"))
    for name, values in _load(GOLDENS / folder).items():
        if not name.startswith("model.visual."):
            continue
        name = name.removeprefix("model.")
        if "patch_embed.proj.weight" in name:
            found |= {"v.patch_embd.weight": values[:, :, 0], "v.patch_embd.weight.1": values[:, :, 1]}
        elif "deepstack" in name:
            level, part = name.removeprefix("visual.deepstack_merger_list.").split(".", 1)
            found[f"v.deepstack.{taps[int(level)]}.{part.replace('linear_', '')}"] = values
        elif "merger" in name:
            part = name.removeprefix("visual.")
            for old, new in spelt:
                part = part.replace(old, new)
            found[part] = values
        else:
            known = table.get_name(name, try_suffixes=(".weight", ".bias"))
            assert known is not None, name
            found[known] = values
    return keys, found
