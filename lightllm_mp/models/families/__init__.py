"""The model families: each a config mapping plus weight rules. Imports no torch."""

from __future__ import annotations

from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families.baichuan import BAICHUAN
from lightllm_mp.models.families.bloom import BLOOM
from lightllm_mp.models.families.chatglm import CHATGLM
from lightllm_mp.models.families.common.family import Family
from lightllm_mp.models.families.deepseek_v2 import DEEPSEEK_V2
from lightllm_mp.models.families.gemma import GEMMA, GEMMA2, GEMMA3
from lightllm_mp.models.families.internlm import INTERNLM
from lightllm_mp.models.families.internlm2 import INTERNLM2
from lightllm_mp.models.families.llama import LLAMA, YI_OLD
from lightllm_mp.models.families.llava import LLAVA_HF, LLAVA_ORIG
from lightllm_mp.models.families.minicpm import MINICPM
from lightllm_mp.models.families.mistral import MISTRAL
from lightllm_mp.models.families.mixtral import MIXTRAL
from lightllm_mp.models.families.phi import PHI
from lightllm_mp.models.families.phi3 import PHI3
from lightllm_mp.models.families.qwen import QWEN
from lightllm_mp.models.families.qwen2 import QWEN2
from lightllm_mp.models.families.qwen3 import QWEN3
from lightllm_mp.models.families.qwen_moe import QWEN2_MOE, QWEN3_MOE
from lightllm_mp.models.families.qwen_vl import QWEN2_5_VL, QWEN_VL
from lightllm_mp.models.families.stablelm import STABLELM
from lightllm_mp.models.families.starcoder import STARCODER
from lightllm_mp.models.families.starcoder2 import STARCODER2

FAMILIES: tuple[Family, ...] = (
    *(LLAMA, YI_OLD, MISTRAL, MIXTRAL, MINICPM, INTERNLM, INTERNLM2),
    *(QWEN, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE),
    *(BLOOM, STARCODER, STARCODER2, STABLELM, BAICHUAN, CHATGLM),
    *(GEMMA, GEMMA2, GEMMA3, DEEPSEEK_V2, PHI, PHI3),
    *(LLAVA_ORIG, LLAVA_HF, QWEN_VL, QWEN2_5_VL),
)

_BY_MODEL_TYPE = {name: family for family in FAMILIES for name in family.model_types}
_BY_GGUF = {name: family for family in FAMILIES for name in family.gguf_architectures}


def by_hf_config(config: dict[str, Any], *, where: str) -> Family:
    """The family of a `config.json`, by its `model_type`. Raises ModelError when it is not served."""
    model_type = config.get("model_type")
    if (told := _by_pictures(config)) is not None:
        return told
    family = _BY_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ModelError(f"{where}: model type {model_type!r} is not supported (supported: {_names(_BY_MODEL_TYPE)})")
    return family


def _by_pictures(config: dict[str, Any]) -> Family | None:
    """Models whose files say by another key than `model_type` that they take pictures."""
    if config.get("mm_vision_tower"):
        return LLAVA_ORIG
    return QWEN_VL if config.get("model_type") == "qwen" and "visual" in config else None


def by_gguf_architecture(architecture: Any, *, where: str) -> Family:
    """The family of a GGUF file, by its `general.architecture`. Raises ModelError when it is not served."""
    family = _BY_GGUF.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        raise ModelError(
            f"{where}: GGUF architecture {architecture!r} is not supported (supported: {_names(_BY_GGUF)})"
        )
    return family


def _names(table: dict[str, Family]) -> str:
    return ", ".join(sorted(table))


__all__ = ["FAMILIES", "Family", "by_gguf_architecture", "by_hf_config"]
