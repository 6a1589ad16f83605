"""Reads `quantization_config`: how AWQ and GPTQ checkpoints pack their weights. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.mxfp4 import is_mxfp4


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """4-bit codes, eight in each int32 of a projection's `qweight` and `qzeros`, with `scales` per group of inputs."""

    method: Literal["awq", "gptq"]
    group: int
    """Inputs that share a scale; -1: all."""
    zero_offset: int = 0
    """Added to a stored zero point (1 in GPTQ's first format)."""

    def groups(self, inputs: int) -> int:
        return 1 if self.group < 0 else -(-inputs // self.group)


def packing_of(config: dict[str, Any], where: str) -> QuantConfig | None:
    """The packing that a `config.json` declares; None: the weights are plain.

    Raises ModelError for anything but 4-bit AWQ (gemm layout) and GPTQ.
    """
    given = config.get("quantization_config")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ModelError(f"{where}: quantization_config is not an object")
    if is_mxfp4(config):  # see mxfp4.py
        return None
    method: Any = given.get("quant_method")
    bits = given.get("bits", given.get("w_bit"))
    group: Any = given.get("group_size", given.get("q_group_size", -1))
    layout = given.get("version" if method == "awq" else "checkpoint_format") or given.get("format")
    reason = None
    if method not in ("awq", "gptq"):
        reason = f"quant_method {method!r}"
    elif bits != 4:
        reason = f"{bits!r} bits"
    elif type(group) is not int or not (group == -1 or group > 0):
        reason = f"group_size {group!r}"
    elif given.get("is_marlin_format") or str(given.get("pack_dtype", "int32")).removeprefix("torch.") != "int32":
        reason = "a repacked layout"
    elif method == "awq":
        if str(layout or "gemm").lower() != "gemm":
            reason = f"AWQ layout {layout!r}"
        elif given.get("zero_point") is False:
            reason = "AWQ without zero points"
    elif str(layout or "gptq").lower() not in ("gptq", "gptq_v2"):
        reason = f"GPTQ layout {layout!r}"
    elif given.get("dynamic"):
        reason = "settings that differ between modules"
    if reason:
        raise ModelError(
            f"{where}: quantised checkpoints of this kind are not supported ({reason}; 4-bit AWQ and GPTQ are)"
        )
    return QuantConfig(method, group, int(method == "gptq" and str(layout or "gptq").lower() == "gptq"))
