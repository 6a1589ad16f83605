"""Reads `quantization_config`: how a checkpoint stores its projections. Imports no torch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.mxfp4 import METHOD

Form = Literal["scaled", "awq", "gptq", "packed", "nvfp4"]


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """How the weight of a projection is stored; quant_layout.py has the tensors of each form.

    scaled: 8-bit values, with a scale for the whole, for an output, or for a block. awq, gptq, packed (the
    `pack-quantized` of compressed-tensors): integers in int32 words, with scales and zero points by groups of inputs.
    nvfp4: 4-bit floats.
    """

    form: Form
    bits: int = 8
    """Of a value."""
    group: int = -1
    """Inputs that share a scale; -1: all. `scaled` weights: unused."""
    block: tuple[int, int] | None = None
    """Outputs and inputs that share a scale; None: all, or those of an output. Of `scaled` weights only."""
    zero_offset: int = 0
    """Added to a stored zero point (1 in GPTQ's first format)."""

    def groups(self, inputs: int) -> int:
        return 1 if self.group < 0 else -(-inputs // self.group)


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """What `quantization_config` says. The file has the last word on which projections are quantised: those that have
    scales."""

    method: str
    """`quant_method`, as an operator knows the format."""
    schemes: tuple[tuple[str, QuantScheme], ...]
    """(pattern of module names, scheme); the first that matches counts. The last pattern is empty: all others."""
    ignored: tuple[str, ...] = ()
    """Patterns of the names of modules that stay as they are."""

    @property
    def bits(self) -> int:
        """Bits of a weight of most projections."""
        return self.schemes[-1][1].bits

    def scheme_of(self, module: str) -> QuantScheme:
        """The scheme of a module that is quantised."""
        return next(scheme for pattern, scheme in self.schemes if re.search(pattern, module))

    def ignores(self, module: str) -> bool:
        return any(re.search(pattern, module) for pattern in self.ignored)


class _UnknownScheme(Exception):
    """A scheme that is not served; the text is what an operator can look for in the file."""


def quant_config_of(config: Mapping[str, Any], where: str) -> QuantConfig | None:
    """The quantisation that a `config.json` declares; None: the weights are plain.

    Raises ModelError, with the scheme's name, for what is not served.
    """
    given = config.get("quantization_config", config.get("compression_config"))
    if given is None and isinstance(text := config.get("text_config"), dict):
        given = text.get("quantization_config")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ModelError(f"{where}: quantization_config is not an object")
    method = given.get("quant_method")
    if method == METHOD:  # see mxfp4.py
        return None
    try:
        if method not in _READERS:
            raise _UnknownScheme(f"quant_method {method!r}")
        return _READERS[method](given)
    except _UnknownScheme as unknown:
        raise ModelError(
            f"{where}: quantised checkpoints of this kind are not supported ({unknown}; served are "
            f"{', '.join(_READERS)})"
        ) from None


def _fp8(given: dict[str, Any]) -> QuantConfig:
    """DeepSeek's, Qwen's and vLLM's FP8."""
    if (kind := given.get("fmt") or "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise _UnknownScheme(f"fp8 of type {kind!r}")
    block = given.get("weight_block_size")
    scheme = QuantScheme("scaled") if block is None else QuantScheme("scaled", block=_block(block))
    return _uniform(given, scheme, "ignored_layers", "modules_to_not_convert")


def _fbgemm_fp8(given: dict[str, Any]) -> QuantConfig:
    return _uniform(given, QuantScheme("scaled"), "modules_to_not_convert")


def _modelopt(given: dict[str, Any]) -> QuantConfig:
    """NVIDIA's Model Optimizer."""
    algorithm = given.get("quant_algo")
    if algorithm in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO"):
        block = (128, 128) if algorithm == "FP8_PB_WO" else None
        return _uniform(given, QuantScheme("scaled", block=block), "ignore", "exclude_modules")
    if algorithm == "NVFP4":
        scheme = QuantScheme("nvfp4", bits=4, group=int(given.get("group_size") or 16))
        return _uniform(given, scheme, "ignore", "exclude_modules")
    raise _UnknownScheme(f"modelopt's quant_algo {algorithm!r}")


def _awq(given: dict[str, Any]) -> QuantConfig:
    bits, group = _integers(given, (4,))
    if str(given.get("version") or "gemm").lower() != "gemm":
        raise _UnknownScheme(f"AWQ layout {given['version']!r}")
    return _uniform(given, QuantScheme("awq", bits, group), "modules_to_not_convert")


def _gptq(given: dict[str, Any]) -> QuantConfig:
    bits, group = _integers(given, (4, 8))
    layout = str(given.get("checkpoint_format") or given.get("format") or "gptq").lower()
    if layout not in ("gptq", "gptq_v2"):
        raise _UnknownScheme(f"GPTQ layout {layout!r}")
    if given.get("is_marlin_format") or str(given.get("pack_dtype", "int32")).removeprefix("torch.") != "int32":
        raise _UnknownScheme("GPTQ in a repacked layout")
    scheme = QuantScheme("gptq", bits, group, zero_offset=int(layout == "gptq"))
    return _with_rules(_uniform(given, scheme, "modules_to_not_convert"), given.get("dynamic") or {})


def _with_rules(config: QuantConfig, rules: Any) -> QuantConfig:
    """`config` with GPTQModel's `dynamic` rules: "-:pattern" is not quantised, "+:pattern" has settings of its own."""
    if not isinstance(rules, dict):
        raise _UnknownScheme("GPTQ with 'dynamic' that is not an object")
    scheme = config.schemes[-1][1]
    own, ignored = [], list(config.ignored)
    for rule, settings in rules.items():
        pattern = _checked("^(?:" + rule.removeprefix("-:").removeprefix("+:") + ")")
        if rule.startswith("-:"):
            ignored.append(pattern)
            continue
        bits, group = _integers({"bits": scheme.bits, "group_size": scheme.group, **settings}, (4, 8))
        own.append((pattern, replace(scheme, bits=bits, group=group)))
    return replace(config, schemes=(*own, *config.schemes), ignored=tuple(ignored))


def _auto_round(given: dict[str, Any]) -> QuantConfig:
    """Intel's AutoRound, which packs as GPTQ or AWQ do. Layers of 16 bits in `extra_config` are plain in the file."""
    packing = str(given.get("packing_format") or given.get("backend") or "auto_round:auto_gptq")
    for settings in (given.get("extra_config") or {}).values():
        if settings.get("bits", given.get("bits")) not in (given.get("bits"), 16, 32):
            raise _UnknownScheme("AutoRound with bits that differ between layers")
    plain = {key: value for key, value in given.items() if key in ("bits", "group_size")}
    if "awq" in packing:
        return replace(_awq(plain), method="auto-round")
    if "gptq" in packing:
        return replace(_gptq(plain), method="auto-round")
    raise _UnknownScheme(f"AutoRound's packing_format {packing!r}")


def _compressed_tensors(given: dict[str, Any]) -> QuantConfig:
    sparsity = (given.get("sparsity_config") or {}).get("format") or "dense"
    if sparsity != "dense":
        raise _UnknownScheme(f"compressed-tensors of sparse weights, {sparsity!r}")
    if not (groups := given.get("config_groups")) or not isinstance(groups, dict):
        raise _UnknownScheme("compressed-tensors without config_groups")
    schemes: list[tuple[str, QuantScheme]] = []
    for group in groups.values():
        scheme = _compressed(group, str(group.get("format") or given.get("format")))
        schemes += [(_module_pattern(target), scheme) for target in group.get("targets") or ("Linear",)]
    schemes.sort(key=lambda entry: entry[0] == "")  # what names modules goes before what means all
    if schemes[-1][0]:
        schemes.append(("", schemes[-1][1]))
    ignored = tuple(map(_module_pattern, given.get("ignore") or ()))
    return QuantConfig("compressed-tensors", tuple(schemes), ignored)


def _compressed(group: dict[str, Any], form: str) -> QuantScheme:
    """The scheme of one of compressed-tensors' groups of modules; `form`: the name of its compressor."""
    weights = group.get("weights") or {}
    bits, kind, strategy = weights.get("num_bits"), weights.get("type"), weights.get("strategy")
    size: Any = weights.get("group_size")
    if form == "nvfp4-pack-quantized" and bits == 4:
        return QuantScheme("nvfp4", bits=4, group=size or 16)
    if form == "pack-quantized" and kind == "int" and bits in (4, 8):
        return QuantScheme("packed", bits, size if strategy == "group" and size else -1)
    if form in ("float-quantized", "int-quantized", "naive-quantized") and bits == 8 and kind in ("float", "int"):
        block = weights.get("block_structure")
        if strategy == "group":
            return QuantScheme("scaled", block=_block([1, size]))
        return QuantScheme("scaled", block=_block(block) if strategy == "block" else None)
    raise _UnknownScheme(f"compressed-tensors' {form!r} with {bits} bits of {kind}")


def _integers(given: dict[str, Any], served: tuple[int, ...]) -> tuple[int, int]:
    """Bits and group size of AWQ's and GPTQ's settings."""
    bits: Any = given.get("bits", given.get("w_bit"))
    group: Any = given.get("group_size", given.get("q_group_size", -1))
    if bits not in served or isinstance(bits, bool):
        raise _UnknownScheme(f"{bits!r} bits")
    if type(group) is not int or not (group == -1 or group > 0):
        raise _UnknownScheme(f"group_size {group!r}")
    return bits, group


def _block(given: Any) -> tuple[int, int]:
    if isinstance(given, str):  # "128x128"
        given = [int(part) if part.isdigit() else 0 for part in given.split("x")]
    if not isinstance(given, list) or len(given) != 2 or not all(type(size) is int and size > 0 for size in given):
        raise _UnknownScheme(f"blocks of {given!r}")
    return given[0], given[1]


def _uniform(given: dict[str, Any], scheme: QuantScheme, *keys: str) -> QuantConfig:
    """One scheme for all modules but those under the first of `keys` that is there."""
    names = next((given[key] for key in keys if given.get(key)), ())
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise _UnknownScheme(f"{keys[0]} that is not a list of names")
    return QuantConfig(str(given.get("quant_method")), (("", scheme),), tuple(map(_module_pattern, names)))


def _module_pattern(name: str) -> str:
    """A regular expression of module names: of "re:<regex>", of a name with wildcards, or of a name or a part of one
    between dots. A class of modules (`Linear`) means all."""
    if name.startswith("re:"):
        return _checked(f"^(?:{name.removeprefix('re:')})")
    if name[:1].isupper():
        return ""
    if any(sign in name for sign in "*?["):
        return fnmatch.translate(name)
    return rf"(^|\.){re.escape(name)}(\.|$)"


def _checked(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error:
        raise _UnknownScheme(f"the pattern {pattern!r}") from None
    return pattern


_READERS: dict[Any, Callable[[dict[str, Any]], QuantConfig]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
}
"""By `quant_method`."""
