"""Writes a model folder as a GGUF file, the way llama.cpp's convert_hf_to_gguf.py does: its keys, its order of rows.

Names come from the `gguf` library's own tables, so that neither these nor the layouts are taken from what is tested.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, TensorNameMap, get_tensor_name_map
from gguf.quants import quantize
from golden import GOLDENS
from safetensors.torch import load_file

Tensors = dict[str, np.ndarray]
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
    """The tensors written, before quantisation, by GGUF name. `folder`: a path, or a golden's name.

    `extra` tensors are added in float32; `keys` are added under the architecture's name, or left out where they are
    None, and `general` ones as they are. `tokens` have names. `through` changes what may be quantised. `old`: the
    layout of the converter's versions of before 2025, where it was another.
    """
    folder = GOLDENS / folder
    config = json.loads((folder / "config.json").read_text())
    config |= config.pop("text_config", {})
    arch, family_keys, rearrange = FAMILIES[config["model_type"]]
    name, layers = MODEL_ARCH_NAMES[arch], _first(config, "num_hidden_layers", "n_layer", "num_layers")
    found = {"block_count": layers, **family_keys(config), **(keys or {})}
    writer = GGUFWriter(path, name)
    for key, value in found.items():
        add_key(writer, f"{name}.{key}", value)
    for key, value in (general or {}).items():
        add_key(writer, key, value)
    _add_vocabulary(writer, config, tokens or {})
    tensors = rearrange(_read(folder), config, old)
    table, written = get_tensor_name_map(arch, layers), {}
    for hf_name, values in tensors.items():
        written[_known(table, hf_name)] = values
    for known, values in written.items():
        plain = values.ndim < 2 or values.shape[-1] % BLOCK or "norm" in known
        values = np.ascontiguousarray(values if plain else through(values))
        stored = F32 if plain else kind
        writer.add_tensor(known, quantize(values, stored), raw_dtype=stored)
    for known, values in {**_rope_tensors(config), **(extra or {})}.items():
        writer.add_tensor(known, np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _known(table: TensorNameMap, name: str) -> str:
    """The library no longer knows the names that each expert of Mixtral had in 2023."""
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
    size = _first(config, "vocab_size", "padded_vocab_size")
    writer.add_token_list([names.get(i, f"token {i}") for i in range(size)])
    if config.get("eos_token_id") is not None:
        writer.add_eos_token_id(config["eos_token_id"])
    if config.get("bos_token_id") is not None:
        writer.add_bos_token_id(config["bos_token_id"])


def _read(folder: Path) -> Tensors:
    tensors = load_file(folder / "model.safetensors")
    seen = (".inv_freq", "vision_tower.", "multi_modal_projector.", "mm_projector.", "visual.", "image_newline")
    kept = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in seen)}
    return {name.removeprefix("language_model."): tensor.float().numpy() for name, tensor in kept.items()}


def _first(config: dict[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


# keys


def _common(config: dict[str, Any]) -> dict[str, Any]:
    """TextModel.set_gguf_parameters."""
    heads = _first(config, "num_attention_heads", "n_head")
    return {
        "context_length": _first(config, "max_position_embeddings", "n_positions", "model_max_length"),
        "embedding_length": _first(config, "hidden_size", "n_embd"),
        "feed_forward_length": _first(config, "intermediate_size", "n_inner"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads"),
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": _first(config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
        "expert_count": _first(config, "num_local_experts", "num_experts", "n_routed_experts"),
        "expert_used_count": config.get("num_experts_per_tok"),
        "expert_group_count": config.get("n_group"),
        "expert_group_used_count": config.get("topk_group"),
        "attention.key_length": config.get("head_dim"),
        "attention.value_length": config.get("head_dim"),
        "rope.freq_base": _float(_first(config, "rope_theta", "rotary_emb_base")),
        **_rope_scaling(config.get("rope_scaling") or {}),
    }


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _rope_scaling(scaling: dict[str, Any]) -> dict[str, Any]:
    kind = scaling.get("rope_type") or scaling.get("type")
    sections = scaling.get("mrope_section")
    found: dict[str, Any] = {"rope.dimension_sections": None if sections is None else [*sections, 0][:4]}
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
        for name in ("beta_fast", "beta_slow"):
            found[f"rope.scaling.yarn_{name}"] = _float(scaling.get(name))
    return found


def _head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _llama_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {**_common(config), "vocab_size": config["vocab_size"], "rope.dimension_count": _head_dim(config)}


def _minicpm_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **_common(config),
        "embedding_scale": float(config["scale_emb"]),
        "residual_scale": config["scale_depth"] / config["num_hidden_layers"] ** 0.5,
        "logit_scale": config["hidden_size"] / config["dim_model_base"],
    }


def _moe_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Of Qwen2 and 3. Whether weights are renormalised is not written."""
    return {
        **_common(config),
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
    }


def _gemma_keys(config: dict[str, Any]) -> dict[str, Any]:
    """All three; rope's base is that of the library where the file says none."""
    rope = {} if config["model_type"] == "gemma3_text" else {"rope.freq_base": None}
    return {
        **_common(config),
        "attention.sliding_window": config.get("sliding_window"),
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        **rope,
    }


def _phi2_keys(config: dict[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"] // config["num_attention_heads"]
    rotated = int(config["partial_rotary_factor"] * width)
    return {**_common(config), "feed_forward_length": 4 * config["hidden_size"], "rope.dimension_count": rotated}


def _phi3_keys(config: dict[str, Any]) -> dict[str, Any]:
    trained = config["original_max_position_embeddings"]
    stretch = config["max_position_embeddings"] / trained
    factor = math.sqrt(1 + math.log(stretch) / math.log(trained)) if stretch > 1 else 1.0
    return {
        **_common(config),
        "rope.scaling.original_context_length": trained,
        "rope.dimension_count": int(config.get("partial_rotary_factor", 1.0) * _head_dim(config)),
        "rope.scaling.attn_factor": factor if config.get("rope_scaling") else None,
        "attention.sliding_window": config.get("sliding_window") or 0,
    }


def _stablelm_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {
        **_common(config),
        "rope.freq_base": None,
        "rope.dimension_count": int(config["partial_rotary_factor"] * _head_dim(config)),
        "use_parallel_residual": config.get("use_parallel_residual", True),
    }


def _bigcode_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The converter writes 4 times the hidden size for the width of the MLP, which the golden has not."""
    return {**_common(config), "attention.head_count_kv": 1}


def _bloom_keys(config: dict[str, Any]) -> dict[str, Any]:
    found = {**_common(config), "context_length": config.get("seq_length", config["hidden_size"])}
    return {**found, "feed_forward_length": 4 * config["hidden_size"], "attention.head_count_kv": config["n_head"]}


def _deepseek_keys(config: dict[str, Any]) -> dict[str, Any]:
    latent, rope = config["kv_lora_rank"], config["qk_rope_head_dim"]
    multiplier = (config.get("rope_scaling") or {}).get("mscale_all_dim")
    return {
        **_common(config),
        "leading_dense_block_count": config["first_k_dense_replace"],
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config.get("q_lora_rank"),
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": config["qk_nope_head_dim"] + rope,
        "attention.value_length_mla": config["v_head_dim"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_weights_scale": float(config["routed_scaling_factor"]),
        "expert_weights_norm": config.get("norm_topk_prob") or None,
        "expert_gating_func": 1,
        "rope.dimension_count": rope,
        "rope.scaling.yarn_log_multiplier": None if multiplier is None else 0.1 * multiplier,
    }


def _glm_keys(config: dict[str, Any]) -> dict[str, Any]:
    rotated = config["hidden_size"] // config["num_attention_heads"] // 2
    return {
        **_common(config),
        "context_length": config["seq_length"],
        "feed_forward_length": config["ffn_hidden_size"],
        "attention.head_count_kv": config["multi_query_group_num"],
        "attention.layer_norm_rms_epsilon": config["layernorm_epsilon"],
        "rope.dimension_count": rotated,
        "rope.freq_base": 10000.0 * config.get("rope_ratio", 1),
    }


# tensors


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """`permute` of the converter, one row at a time: the two halves of each head take turns."""
    half = weight.shape[0] // heads // 2
    order = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
    return weight[order]


def _plain(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    return {name: values for name, values in tensors.items() if not (_tied(config) and name == "lm_head.weight")}


def _tied(config: dict[str, Any]) -> bool:
    return config.get("tie_word_embeddings", False)


def _llama(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """Queries and keys permuted, experts stacked, or each on its own in old files."""
    heads = config["num_attention_heads"]
    by = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    found = {}
    for name, values in _plain(tensors, config, old).items():
        part = name.split(".")[-2]
        found[name] = interleave(values, by[part]) if part in by else values
    return found if old else _stack_experts(found)


EXPERT = re.compile(r"^model\.layers\.(\d+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight$")


def _stack_experts(tensors: Tensors) -> Tensors:
    found, experts = {}, {}
    for name, values in tensors.items():
        if match := EXPERT.match(name):
            layer, number, part = match.groups()
            block = "layers.{}.feed_forward" if part.startswith("w") else "model.layers.{}.mlp"
            experts.setdefault(f"{block.format(layer)}.experts.{part}.weight", {})[int(number)] = values
        else:
            found[name] = values
    return found | {name: np.stack([by[i] for i in range(len(by))]) for name, by in experts.items()}


def _moe(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """Old versions squeezed all tensors, so the gate of the shared experts is a vector there."""
    found = _stack_experts(_plain(tensors, config, old))
    return {name: values.squeeze() if old else values for name, values in found.items()}


def _gemma(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    shifted = {name: values + 1 if name.endswith("norm.weight") else values for name, values in tensors.items()}
    return {name: values for name, values in shifted.items() if name != "lm_head.weight"}


def _bloom(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """query_key_value has the query, key and value of one head after the other; all queries come first in the file."""
    heads, found = config["n_head"], {}
    dim = config["hidden_size"] // heads
    order = [head * 3 * dim + part * dim + i for part in range(3) for head in range(heads) for i in range(dim)]
    for name, values in tensors.items():
        found[name] = values[order] if "query_key_value" in name else values
    return found


def _stablelm(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    found, norms = {}, {}
    for name, values in _plain(tensors, config, old).items():
        if match := re.match(r"(.*[qk]_layernorm)\.norms\.(\d+)\.weight", name):
            norms.setdefault(match[1] + ".weight", {})[int(match[2])] = values
        else:
            found[name] = values
    return found | {name: np.stack([by[i] for i in range(len(by))]) for name, by in norms.items()}


def _internlm2(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """wqkv has, per key-value head, its queries, its key, its value. Names of the parts are those of Llama."""
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], _head_dim(config)
    found = {}
    for name, values in tensors.items():
        if "wqkv" not in name:
            found[name] = values
            continue
        lines = values.reshape(-1, dim, values.shape[-1])
        group = heads // kv_heads + 2
        queries = [i for i in range(len(lines)) if i % group < group - 2]
        keys, vals = range(group - 2, len(lines), group), range(group - 1, len(lines), group)
        at = name.replace("attention.wqkv", "self_attn.{}_proj")
        found[at.format("q")] = interleave(np.concatenate([lines[i] for i in queries]), heads)
        found[at.format("k")] = interleave(np.concatenate([lines[i] for i in keys]), kv_heads)
        found[at.format("v")] = np.concatenate([lines[i] for i in vals])
    return found


def _baichuan(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    heads, found = config["num_attention_heads"], {}
    for name, values in tensors.items():
        if "W_pack" not in name:
            found[name] = values
            continue
        queries, keys, vals = np.split(values, 3)
        at = name.replace("W_pack", "{}_proj")
        found |= {at.format("q"): interleave(queries, heads), at.format("k"): interleave(keys, heads)}
        found[at.format("v")] = vals
    return found


def _deepseek(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """kv_b is split by head into keys, turned, and values; old files have it whole."""
    found, nope = {}, config["qk_nope_head_dim"]
    for name, values in _stack_experts(tensors).items():
        if old or "kv_b_proj" not in name:
            found[name] = values
            continue
        by_head = np.split(values, config["num_attention_heads"])
        found[name.replace("kv_b_proj", "k_b_proj")] = np.stack([head[:nope].T for head in by_head])
        found[name.replace("kv_b_proj", "v_b_proj")] = np.stack([head[nope:] for head in by_head])
    return found


def _glm(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    return {name.removeprefix("transformer."): values for name, values in tensors.items()}


def _rope_tensors(config: dict[str, Any]) -> Tensors:
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind == "llama3":
        return {"rope_freqs.weight": _llama3_divisors(config, scaling)}
    if kind == "longrope":
        return {f"rope_factors_{name}.weight": np.array(scaling[f"{name}_factor"]) for name in ("long", "short")}
    return {}


def _llama3_divisors(config: dict[str, Any], scaling: dict[str, Any]) -> np.ndarray:
    """generate_extra_tensors of the converter: by how much each wavelength is stretched."""
    low, high, trained = (
        scaling[n] for n in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    found = []
    for i in range(0, _head_dim(config), 2):
        turns = trained * config["rope_theta"] ** (-i / _head_dim(config)) / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - share) / scaling["factor"] + share))
    return np.array(found)


Rule = tuple[MODEL_ARCH, Callable[[dict[str, Any]], dict[str, Any]], Callable[[Tensors, dict[str, Any], bool], Tensors]]
A = MODEL_ARCH
FAMILIES: dict[str, Rule] = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "internlm", "llava", "llava_llama"), (A.LLAMA, _llama_keys, _llama)
    ),
    "minicpm": (A.MINICPM, _minicpm_keys, _llama),
    "internlm2": (A.INTERNLM2, _common, _internlm2),
    "baichuan": (A.BAICHUAN, _llama_keys, _baichuan),
    "qwen": (A.QWEN, _common, _plain),
    "qwen2": (A.QWEN2, _common, _plain),
    "qwen2_5_vl": (A.QWEN2VL, _common, _plain),
    "qwen3": (A.QWEN3, _common, _plain),
    "qwen2_moe": (A.QWEN2MOE, _moe_keys, _moe),
    "qwen3_moe": (A.QWEN3MOE, _moe_keys, _moe),
    "gemma": (A.GEMMA, _gemma_keys, _gemma),
    "gemma2": (A.GEMMA2, _gemma_keys, _gemma),
    "gemma3_text": (A.GEMMA3, _gemma_keys, _gemma),
    "phi": (A.PHI2, _phi2_keys, _plain),
    "phi3": (A.PHI3, _phi3_keys, _plain),
    "stablelm": (A.STABLELM, _stablelm_keys, _stablelm),
    "starcoder2": (A.STARCODER2, _common, _plain),
    "gpt_bigcode": (A.STARCODER, _bigcode_keys, _plain),
    "bloom": (A.BLOOM, _bloom_keys, _bloom),
    "chatglm": (A.CHATGLM, _glm_keys, _glm),
    "deepseek_v2": (A.DEEPSEEK2, _deepseek_keys, _deepseek),
}
"""By `model_type`: architecture, its keys, and what becomes of the tensors before they are named."""
