"""Writes a model folder as a GGUF file, the way llama.cpp's convert_hf_to_gguf.py does: its keys, its order of rows.

Names come from the `gguf` library's tables, so neither names nor layouts come from the tested code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, TensorNameMap, get_tensor_name_map
from gguf.quants import quantize
from safetensors.torch import load_file

from tests.models.checkpoint import gguf_layouts as layouts
from tests.models.checkpoint.gguf_keys import (
    bigcode_keys,
    bloom_keys,
    common,
    deepseek_keys,
    deepstack_keys,
    first,
    gemma_keys,
    glm4_moe_keys,
    glm_keys,
    gpt_oss_keys,
    llama_keys,
    minicpm_keys,
    minimax_keys,
    moe_keys,
    phi2_keys,
    phi3_keys,
    stablelm_keys,
)
from tests.models.checkpoint.gguf_layouts import EXPERT, Tensors, rope_tensors
from tests.models.golden import GOLDENS

F32 = GGMLQuantizationType.F32
BLOCK = 32


def write_gguf(
    path: Path,
    folder: str | Path,
    *,
    kind: GGMLQuantizationType = F32,
    extra: Tensors | None = None,
    keys: dict[str, Any] | None = None,
    general: dict[str, Any] | None = None,
    tokens: dict[int, str] | None = None,
    through: Callable[[np.ndarray], np.ndarray] = np.asarray,
    old: bool = False,
) -> Tensors:
    """Returns the written tensors before quantisation, by GGUF name. `folder`: a path, or a golden's name.

    `extra` tensors are added in float32; `keys` are added under the architecture's name, or left out if they are None,
    and `general` ones unchanged. `tokens` have names. `through` changes tensors that may be quantised. `old`: the
    layout of the converter's versions before 2025, if it differs.
    """
    folder = GOLDENS / folder
    config = json.loads((folder / "config.json").read_text())
    config |= config.pop("text_config", {})
    arch, family_keys, rearrange = FAMILIES[config["model_type"]]
    name, layers = MODEL_ARCH_NAMES[arch], first(config, "num_hidden_layers", "n_layer", "num_layers")
    found = {"block_count": layers, **family_keys(config), **(keys or {})}
    writer = GGUFWriter(path, name)
    for key, value in found.items():
        add_key(writer, f"{name}.{key}", value)
    for key, value in (general or {}).items():
        add_key(writer, key, value)
    _add_vocabulary(writer, config, tokens or {})
    tensors = rearrange(_read(folder), config, old)
    table, written = get_tensor_name_map(arch, found["block_count"]), {}
    for hf_name, values in tensors.items():
        written[_known(table, hf_name)] = values
    for known, values in written.items():
        plain = values.ndim < 2 or values.shape[-1] % BLOCK or "norm" in known or known.endswith(".bias")
        values = np.ascontiguousarray(values if plain else through(values))
        stored = F32 if plain else kind
        writer.add_tensor(known, quantize(values, stored), raw_dtype=stored)
    for known, values in {**rope_tensors(config), **(extra or {})}.items():
        writer.add_tensor(known, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _known(table: TensorNameMap, name: str) -> str:
    """The library no longer knows Mixtral's names of single experts from 2023."""
    if match := EXPERT.match(name):
        layer, number, part = match.groups()
        kind = {"w1": "gate", "w2": "down", "w3": "up"}[part]
        return f"blk.{layer}.ffn_{kind}.{number}.weight"
    known = table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert known is not None, name
    return known


def add_key(writer: GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_vocabulary(writer: GGUFWriter, config: dict[str, Any], names: dict[int, str]) -> None:
    size = first(config, "vocab_size", "padded_vocab_size")
    writer.add_token_list([names.get(i, f"token {i}") for i in range(size)])
    if (eos := config.get("eos_token_id")) is not None:
        writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    if config.get("bos_token_id") is not None:
        writer.add_bos_token_id(config["bos_token_id"])


def _read(folder: Path) -> Tensors:
    tensors = load_file(folder / "model.safetensors")
    seen = (".inv_freq", "vision_tower.", "multi_modal_projector.", "mm_projector.", "visual.", "image_newline")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in seen)}
    short = {name.replace("model.language_model.", "model."): tensor for name, tensor in kept.items()}
    return {name.removeprefix("language_model."): tensor.float().numpy() for name, tensor in short.items()}


Rule = tuple[MODEL_ARCH, Callable[[dict[str, Any]], dict[str, Any]], Callable[[Tensors, dict[str, Any], bool], Tensors]]
A = MODEL_ARCH
FAMILIES: dict[str, Rule] = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "internlm", "llava", "llava_llama"), (A.LLAMA, llama_keys, layouts.llama)
    ),
    "minicpm": (A.MINICPM, minicpm_keys, layouts.llama),
    "internlm2": (A.INTERNLM2, common, layouts.internlm2),
    "baichuan": (A.BAICHUAN, llama_keys, layouts.baichuan),
    "qwen": (A.QWEN, common, layouts.plain),
    "qwen2": (A.QWEN2, common, layouts.plain),
    "qwen2_5_vl": (A.QWEN2VL, common, layouts.plain),
    "qwen3": (A.QWEN3, common, layouts.plain),
    "qwen3_vl_text": (A.QWEN3VL, deepstack_keys, layouts.plain),
    "qwen3_vl_moe_text": (A.QWEN3VLMOE, deepstack_keys, layouts.fused_moe),
    "qwen2_moe": (A.QWEN2MOE, moe_keys, layouts.moe),
    "qwen3_moe": (A.QWEN3MOE, moe_keys, layouts.moe),
    "gemma": (A.GEMMA, gemma_keys, layouts.gemma),
    "gemma2": (A.GEMMA2, gemma_keys, layouts.gemma),
    "gemma3_text": (A.GEMMA3, gemma_keys, layouts.gemma),
    "phi": (A.PHI2, phi2_keys, layouts.plain),
    "phi3": (A.PHI3, phi3_keys, layouts.plain),
    "stablelm": (A.STABLELM, stablelm_keys, layouts.stablelm),
    "starcoder2": (A.STARCODER2, common, layouts.plain),
    "gpt_bigcode": (A.STARCODER, bigcode_keys, layouts.plain),
    "bloom": (A.BLOOM, bloom_keys, layouts.bloom),
    "chatglm": (A.CHATGLM, glm_keys, layouts.glm),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), (A.DEEPSEEK2, deepseek_keys, layouts.deepseek)),
    "glm4_moe": (A.GLM4_MOE, glm4_moe_keys, layouts.corrected),
    "minimax_m2": (A.MINIMAXM2, minimax_keys, layouts.corrected),
    "gpt_oss": (A.GPT_OSS, gpt_oss_keys, layouts.gpt_oss),
}
"""By `model_type`: architecture, its keys, and the change of the tensors before they are named."""
