"""The changes of llama.cpp's convert_hf_to_gguf.py to tensors before it names them, by family.

Each rule takes the tensors of a folder, its configuration, and whether to make the layout of old files.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from tests.models.checkpoint.gguf_keys import head_dim

Tensors = dict[str, np.ndarray]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """`permute` of the converter, one row at a time: the two halves of each head take turns."""
    half = weight.shape[0] // heads // 2
    order = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
    return weight[order]


def plain(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    return {name: values for name, values in tensors.items() if not (_tied(config) and name == "lm_head.weight")}


def _tied(config: dict[str, Any]) -> bool:
    return config.get("tie_word_embeddings", False)


def llama(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """Queries and keys are permuted, experts stacked (in old files each stays alone)."""
    heads = config["num_attention_heads"]
    by = {"q_proj": heads, "k_proj": config.get("num_key_value_heads") or heads}
    found = {}
    for name, values in plain(tensors, config, old).items():
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


def moe(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """Old versions squeezed all tensors, so the gate of the shared experts is a vector there."""
    found = _stack_experts(plain(tensors, config, old))
    return {name: values.squeeze() if old else values for name, values in found.items()}


def fused_moe(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """Splits gate and up; rows are outputs."""
    found = {}
    for name, values in plain(tensors, config, old).items():
        if name.endswith("experts.gate_up_proj"):
            for part, piece in zip(("gate", "up"), np.split(values.swapaxes(1, 2), 2, axis=1), strict=True):
                found[name.replace("gate_up_proj", f"{part}_proj.weight")] = piece
        elif name.endswith("experts.down_proj"):
            found[name + ".weight"] = values.swapaxes(1, 2)
        else:
            found[name] = values
    return found


def gemma(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    shifted = {name: values + 1 if name.endswith("norm.weight") else values for name, values in tensors.items()}
    return {name: values for name, values in shifted.items() if name != "lm_head.weight"}


def bloom(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """query_key_value has query, key and value head by head; in the file all queries come first."""
    heads, found = config["n_head"], {}
    dim = config["hidden_size"] // heads
    order = [head * 3 * dim + part * dim + i for part in range(3) for head in range(heads) for i in range(dim)]
    for name, values in tensors.items():
        found[name] = values[order] if "query_key_value" in name else values
    return found


def stablelm(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    found, norms = {}, {}
    for name, values in plain(tensors, config, old).items():
        if match := re.match(r"(.*[qk]_layernorm)\.norms\.(\d+)\.weight", name):
            norms.setdefault(match[1] + ".weight", {})[int(match[2])] = values
        else:
            found[name] = values
    return found | {name: np.stack([by[i] for i in range(len(by))]) for name, by in norms.items()}


def internlm2(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """wqkv has, per key-value head, its queries, its key, its value. Names of the parts are those of Llama."""
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], head_dim(config)
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


def baichuan(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
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


def corrected(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """Experts stacked, and the correction of their choice as a bias."""
    return {
        name.replace("e_score_correction_bias", "e_score_correction.bias"): values
        for name, values in _stack_experts(tensors).items()
    }


def deepseek(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """kv_b is split by head into keys (transposed) and values; old files have it whole. Layers of multi-token
    prediction are left out."""
    found, nope = {}, config["qk_nope_head_dim"]
    behind = f"model.layers.{config['num_hidden_layers']}."
    kept = {name: values for name, values in tensors.items() if not name.startswith(behind)}
    for name, values in corrected(kept, config, old).items():
        if old or "kv_b_proj" not in name:
            found[name] = values
            continue
        by_head = np.split(values, config["num_attention_heads"])
        found[name.replace("kv_b_proj", "k_b_proj")] = np.stack([head[:nope].T for head in by_head])
        found[name.replace("kv_b_proj", "v_b_proj")] = np.stack([head[nope:] for head in by_head])
    return found


def gpt_oss(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    """Experts with their outputs first; gate and up, interleaved in the folder, are split."""
    found = {}
    for name, values in tensors.items():
        if name.endswith("sinks"):
            found[name + ".weight"] = values
        elif "experts." not in name:
            found[name] = values
        else:
            stem, bias = name.removesuffix("_bias"), name.endswith("_bias")
            values = values if bias else values.swapaxes(1, 2)
            kind = ".bias" if bias else ".weight"
            if stem.endswith("down_proj"):
                found[stem + kind] = values
            else:
                for i, part in enumerate(("gate", "up")):
                    found[stem.replace("gate_up", part) + kind] = values[:, i::2]
    return found


def glm(tensors: Tensors, config: dict[str, Any], old: bool) -> Tensors:
    return {name.removeprefix("transformer."): values for name, values in tensors.items()}


def rope_tensors(config: dict[str, Any]) -> Tensors:
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type")
    if kind == "llama3":
        return {"rope_freqs.weight": _llama3_divisors(config, scaling)}
    if kind == "longrope":
        return {f"rope_factors_{name}.weight": np.array(scaling[f"{name}_factor"]) for name in ("long", "short")}
    return {}


def _llama3_divisors(config: dict[str, Any], scaling: dict[str, Any]) -> np.ndarray:
    """generate_extra_tensors of the converter: the factor of each wavelength."""
    low, high, trained = (
        scaling[n] for n in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    found = []
    for i in range(0, head_dim(config), 2):
        turns = trained * config["rope_theta"] ** (-i / head_dim(config)) / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - share) / scaling["factor"] + share))
    return np.array(found)
