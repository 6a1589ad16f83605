"""The declaration of a model family, and readers of config.json keys that most families share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.families.common.pooling import pooled_weights
from lightllm_mp.models.families.common.text_half import TextHalf
from lightllm_mp.models.spec import Activation, ModelSpec, RopeSpec

if TYPE_CHECKING:
    from lightllm_mp.models.families.common.gguf_rules import GGUFKeys  # it imports this module

INV_FREQ = r"(^|\.)rotary_emb\.inv_freq$"
"""Rotary buffers that old checkpoints carry; they follow from the configuration."""
EXPERT = re.compile(r"model\.layers\.\d+\.mlp\.experts\.\d+\.")
"""Begins the names of an expert's own tensors."""
GGUF_FREQS = r"^rope_freqs\.weight$"
"""A tensor of GGUF files that gives rotary options."""

MTP_LAYERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model family: which checkpoints it claims, and how each of its halves is read.

    The docstring of `models/families/__init__.py` says how to add one.
    """

    name: str
    models: str
    """What people call the models; a cell of the table in docs/models.md."""

    # The network, from a Hugging Face folder.
    model_types: tuple[str, ...]
    """Values of `model_type` in config.json."""
    detect: Callable[[Mapping[str, Any]], bool] | None = None
    """Claims a config.json by other keys, before `model_type` counts."""
    read_hf: Callable[[dict[str, Any]], ModelSpec]
    """The spec of a config.json, which has generation_config.json under the key `generation_config`."""
    hf_weights: Callable[[ModelSpec], list[Param]]
    split_weights: Callable[[ModelSpec], list[Param]] | None = None
    """The rules for a folder with experts one by one, where `hf_weights` has all experts of a layer in one tensor:
    quantised releases split them."""
    ignore: tuple[str, ...] = (INV_FREQ,)
    """Patterns of tensor names that a folder may contain and that are not used."""
    mtp: bool = False
    """Files may have layers behind the last one that predict further tokens (multi-token prediction); they are not
    used."""
    spellings: tuple[tuple[str, str], ...] = ()
    """(prefix of tensor names in some files, what the rules and `ignore` have in its place); the first match counts."""

    # The network, from a GGUF file.
    gguf_architectures: tuple[str, ...] = ()
    """Values of `general.architecture`."""
    gguf_written_as: str = ""
    """The architecture of this family's GGUF files, where another family claims and reads it."""
    read_gguf: Callable[[GGUFKeys], ModelSpec] | None = None
    gguf_weights: Callable[[ModelSpec, GGUFKeys], list[Param]] | None = None
    gguf_ignore: tuple[str, ...] = (GGUF_FREQS,)
    """As `ignore`, for a GGUF file."""

    # The other halves.
    vision: str | None = None
    """"module:name" of the `VisionFamily` in `vision/families`, imported when images are served; None: text only."""
    text_types: tuple[str, ...] = ()
    """Those of `model_types` that are the language model alone, as fine-tuning leaves it."""
    text: TextHalf | None = None
    """Tokenizer and chat format; None: the folder's files say everything."""

    def folder_weights(self, spec: ModelSpec, names: Iterable[str] = ()) -> list[Param]:
        """The rules for a folder with tensors of these names; a model of embeddings or scores has no head."""
        rules = self.hf_weights
        if self.split_weights is not None and any(EXPERT.match(self.known(name)) for name in names):
            rules = self.split_weights
        return pooled_weights(spec, rules(spec))

    def folder_ignore(self, spec: ModelSpec) -> tuple[str, ...]:
        """`ignore`, with the layers of multi-token prediction."""
        return (*self.ignore, _layers_behind(r"model\.layers", spec)) if self.mtp else self.ignore

    def gguf_surplus(self, spec: ModelSpec) -> tuple[str, ...]:
        """The same for a GGUF file."""
        return (*self.gguf_ignore, _layers_behind("blk", spec)) if self.mtp else self.gguf_ignore

    def has_tower(self, config: Mapping[str, Any]) -> bool:
        """Whether a folder with this config.json has a vision tower."""
        return self.vision is not None and config.get("model_type") not in self.text_types

    def known(self, name: str) -> str:
        """The name that the rules have for a tensor of a file."""
        for old, new in self.spellings:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name


def _layers_behind(prefix: str, spec: ModelSpec) -> str:
    """A pattern of the tensors of up to MTP_LAYERS layers behind the last one."""
    return rf"^{prefix}\.({'|'.join(str(spec.layers + i) for i in range(MTP_LAYERS))})\."


def eos_ids(config: dict[str, Any]) -> tuple[int, ...]:
    """End-of-sequence ids of `config.json` and, where the folder has one, `generation_config.json`."""
    ids: list[int] = []
    for source in (config, config.get("generation_config", {})):
        value = source.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(int(i) for i in ids))


def bos_id(config: dict[str, Any]) -> int | None:
    value = config.get("bos_token_id")
    return None if value is None else int(value)


def file_dtype(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def activation(name: Any) -> Activation:
    """An activation by its name in configurations. Plain `gelu` is the exact one."""
    kinds: dict[str, Activation] = {
        **dict.fromkeys(("silu", "swish"), "silu"),
        **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_tanh"), "gelu_tanh"),
        "gelu": "gelu",
        "relu": "relu",
    }
    if name not in kinds:
        raise ModelError(f"activation {name!r} is not supported")
    return kinds[name]


def nested_text(config: dict[str, Any], defaults: Mapping[str, Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    """The keys of `text_config`, completed by `defaults`; a few keys may stand outside it, ends of sequence in both.

    Raises ModelError where the language model's type is not one of `kinds`; without a type it is the first one.
    """
    inner = config.get("text_config") or {}
    if inner.get("model_type", kinds[0]) not in kinds:
        raise ModelError(f"a language model of type {inner['model_type']!r} is not supported for this family")
    outer = {key: config[key] for key in ("torch_dtype", "dtype", "tie_word_embeddings") if key in config}
    text = {**defaults, **outer, **inner, "generation_config": config.get("generation_config", {})}
    ends = [*eos_ids({"eos_token_id": inner.get("eos_token_id")}), *eos_ids({**config, "generation_config": {}})]
    return {**text, "eos_token_id": list(dict.fromkeys(ends)) or defaults["eos_token_id"]}


def refuse(config: dict[str, Any], **served: Any) -> None:
    """Raises ModelError where a key of the configuration has another value than the served one."""
    for key, value in served.items():
        if config.get(key, value) not in (value, None):
            raise ModelError(f"{key} {config[key]!r} is not supported for this family")


def rotary_dim(config: dict[str, Any], head_dim: int, default: float = 1.0) -> int:
    """Rotated components of a head, where the configuration gives their share of all."""
    scaling = config.get("rope_parameters") or {}
    part = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or default
    return int(head_dim * float(part))


def standard_spec(config: dict[str, Any], *, family: str, **fields: Any) -> ModelSpec:
    """A spec from the keys that most configurations share; `fields` override them."""
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    rope = fields["rope"] if "rope" in fields else rope_spec(config, dim=head_dim)
    read: dict[str, Any] = {
        "vocab": int(config["vocab_size"]),
        "hidden": hidden,
        "layers": int(config["num_hidden_layers"]),
        "heads": heads,
        "kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": head_dim,
        "intermediate": int(fields.get("intermediate") or config["intermediate_size"]),
        "rope": rope,
        "eos_ids": eos_ids(config),
        "bos_id": bos_id(config),
        "file_dtype": file_dtype(config),
        "tied": bool(config.get("tie_word_embeddings", False)),
    }
    if "norm_eps" not in fields:
        read["norm_eps"] = float(config.get("rms_norm_eps", 1e-6))
    if "max_context" not in fields:
        read["max_context"] = stretched_context(config, rope)
    return ModelSpec(family=family, **(read | fields))


def rope_spec(config: dict[str, Any], *, dim: int, default_theta: float = 10000.0) -> RopeSpec:
    """Rotary options from `rope_theta` and `rope_scaling`, or the newer `rope_parameters` that holds both."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or default_theta)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    sections = tuple(int(pairs) for pairs in scaling.get("mrope_section") or ())
    if sections and (len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != dim):
        raise ModelError(f"mrope_section {list(sections)} does not make up {dim // 2} rotary pairs")
    in_turn = bool(sections) and bool(scaling.get("mrope_interleaved", False))
    if kind == "default" or (kind == "mrope" and sections):
        return RopeSpec(theta=theta, dim=dim, sections=sections, interleaved_sections=in_turn)
    if kind == "proportional" and float(scaling.get("factor") or 1.0) == 1.0:
        return RopeSpec(theta=theta, dim=dim, turning=int(float(scaling.get("partial_rotary_factor", 1.0)) * dim // 2))
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise ModelError(f"rope scaling {kind!r} is not supported")
    context = int(config["max_position_embeddings"])
    original = context if kind == "dynamic" else int(scaling.get("original_max_position_embeddings") or context)
    factor = float(scaling.get("factor") or context / original)
    return RopeSpec(
        theta=theta,
        dim=dim,
        scaling=kind,
        sections=sections,
        interleaved_sections=in_turn,
        factor=factor,
        original_context=original,
        low_freq_factor=float(scaling.get("low_freq_factor") or 1.0),
        high_freq_factor=float(scaling.get("high_freq_factor") or 4.0),
        beta_fast=float(scaling.get("beta_fast") or 32.0),
        beta_slow=float(scaling.get("beta_slow") or 1.0),
        truncate=bool(scaling.get("truncate", True)),
        amplitude=_yarn_amplitude(scaling, factor) if kind == "yarn" else 1.0,
    )


def _yarn_amplitude(scaling: dict[str, Any], factor: float) -> float:
    """Attention factor of YaRN (arXiv 2309.00071, section 3.4), with the `mscale` pair of some checkpoints."""

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(float(scaling["mscale"])) / mscale(float(scaling["mscale_all_dim"]))
    return mscale(1.0)


def stretched_context(config: dict[str, Any], rope: RopeSpec) -> int:
    """Served positions: `max_position_embeddings`, times the factor for scalings that do not include it."""
    context = int(config["max_position_embeddings"])
    if rope.scaling in ("linear", "dynamic"):
        return int(context * rope.factor)
    if rope.scaling == "yarn":
        return max(context, int(rope.original_context * rope.factor))
    return context


def global_layers(config: dict[str, Any], default: tuple[int, ...]) -> tuple[int, ...]:
    """Layers without a window: from `layer_types` of newer configurations, else `default`, the family's rule."""
    kinds = config.get("layer_types")
    if kinds is None:
        return default
    if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
        raise ModelError(f"layers of type {', '.join(sorted(map(str, unknown)))} are not supported")
    if len(kinds) != (count := config.get("num_hidden_layers", len(kinds))):
        raise ModelError(f"layer_types has {len(kinds)} values for {count} layers")
    return tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")
