"""The registry of model families, which text, models and vision read. Imports neither torch nor `tokenizers`.

To add a family (docs/models.md has the details of each step):

1. Write `models/families/<name>.py` with `read_hf`, `hf_weights` and, for GGUF files, `read_gguf` and `gguf_weights`.
   It ends with one `Family(...)` (`common/family.py` explains the fields). Add that to `FAMILIES` below.
2. Only if the folders leave the tokenizer's special tokens or the chat format to Python code: pass
   `text=TextHalf(...)` (`common/text_half.py`), with its functions and templates in the same file.
3. Only if the model takes images: write `vision/families/<name>.py` with a `VisionFamily` (`vision/tower_rules.py`)
   and pass `vision="lightllm_mp.vision.families.<name>:<NAME>"`. It is named by a string because the package `vision`
   stands above `models`, and because servers of text need not import it.
4. Put a golden folder into `tests/goldens` and its name into `FOLDERS` of `tests/models/test_goldens.py`. Write the
   table of docs/models.md (models_table, `--write`). Run `pytest tests/models tests/vision -k <name>` and
   `pytest tests/repository`.

No other table in text/ or vision/ is keyed by a family's `model_type` or GGUF architecture; a test checks this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families.baichuan import BAICHUAN
from lightllm_mp.models.families.bert import BERT, NOMIC_BERT, ROBERTA
from lightllm_mp.models.families.bloom import BLOOM
from lightllm_mp.models.families.chatglm import CHATGLM
from lightllm_mp.models.families.common.family import Family
from lightllm_mp.models.families.common.text_half import ModelFolder, TextHalf
from lightllm_mp.models.families.deepseek_v2 import DEEPSEEK_V2
from lightllm_mp.models.families.deepseek_v3 import DEEPSEEK_V3
from lightllm_mp.models.families.gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_VL
from lightllm_mp.models.families.gemma4 import GEMMA4, GEMMA4_TEXT
from lightllm_mp.models.families.glm4_moe import GLM4_MOE, GLM4_MOE_LITE
from lightllm_mp.models.families.gpt_oss import GPT_OSS
from lightllm_mp.models.families.internlm import INTERNLM
from lightllm_mp.models.families.internlm2 import INTERNLM2
from lightllm_mp.models.families.llama import LLAMA, YI_OLD
from lightllm_mp.models.families.llava import LLAVA_HF, LLAVA_ORIG
from lightllm_mp.models.families.minicpm import MINICPM
from lightllm_mp.models.families.minimax_m2 import MINIMAX_M2
from lightllm_mp.models.families.mistral import MISTRAL, MIXTRAL
from lightllm_mp.models.families.mistral3 import MINISTRAL3, MISTRAL3, PIXTRAL
from lightllm_mp.models.families.phi import PHI
from lightllm_mp.models.families.phi3 import PHI3
from lightllm_mp.models.families.qwen.qwen import QWEN
from lightllm_mp.models.families.qwen.qwen2 import QWEN2
from lightllm_mp.models.families.qwen.qwen3 import QWEN3
from lightllm_mp.models.families.qwen.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from lightllm_mp.models.families.qwen.qwen3_next import QWEN3_NEXT
from lightllm_mp.models.families.qwen.qwen_moe import QWEN2_MOE, QWEN3_MOE
from lightllm_mp.models.families.qwen.qwen_vl import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, QWEN_VL
from lightllm_mp.models.families.stablelm import STABLELM
from lightllm_mp.models.families.starcoder import STARCODER
from lightllm_mp.models.families.starcoder2 import STARCODER2

FAMILIES: tuple[Family, ...] = (
    *(LLAMA, YI_OLD, MISTRAL, MIXTRAL, MINICPM, INTERNLM, INTERNLM2),
    *(QWEN, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, QWEN3_NEXT),
    *(QWEN3_5, QWEN3_5_MOE),
    *(BLOOM, STARCODER, STARCODER2, STABLELM, BAICHUAN, CHATGLM),
    *(GEMMA, GEMMA2, GEMMA3, GEMMA3_VL, GEMMA4, GEMMA4_TEXT, DEEPSEEK_V2, PHI, PHI3),
    *(DEEPSEEK_V3, GLM4_MOE, GLM4_MOE_LITE, MINIMAX_M2, GPT_OSS),
    *(BERT, ROBERTA, NOMIC_BERT),
    *(MINISTRAL3, MISTRAL3, PIXTRAL),
    *(LLAVA_ORIG, LLAVA_HF, QWEN_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE),
)

_BY_NAME = {family.name: family for family in FAMILIES}
_BY_MODEL_TYPE = {name: family for family in FAMILIES for name in family.model_types}
_BY_GGUF = {name: family for family in FAMILIES for name in family.gguf_architectures}
_BY_TOKENIZER = {
    name: family.text for family in FAMILIES if family.text is not None for name in family.text.tokenizer_classes
}


def by_name(name: str) -> Family:
    """The family of this name. Raises KeyError."""
    return _BY_NAME[name]


def find_hf_family(config: Mapping[str, Any]) -> Family | None:
    """The family of a `config.json`; None when it is not served."""
    for family in FAMILIES:
        if family.detect is not None and family.detect(config):
            return family
    model_type = config.get("model_type")
    return _BY_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None


def by_hf_config(config: Mapping[str, Any], *, where: str) -> Family:
    """As `find_hf_family`; raises ModelError when the model is not served."""
    family = find_hf_family(config)
    if family is None:
        known = _names(_BY_MODEL_TYPE)
        raise ModelError(f"{where}: model type {config.get('model_type')!r} is not supported (supported: {known})")
    return family


def find_text_half(folder: ModelFolder) -> TextHalf | None:
    """Tokenizer and chat format of a folder's family, found by `tokenizer_class`, else by config.json.

    None: no family knows the tokenizer's class, or the family declares nothing.
    """
    name = folder.tokenizer.get("tokenizer_class") or folder.model.get("tokenizer_class")
    if isinstance(name, str) and (text := _BY_TOKENIZER.get(name)) is not None:
        return text
    if name is not None and not str(name).startswith("PreTrainedTokenizer"):
        return None
    family = find_hf_family(folder.model)
    return None if family is None else family.text


def find_gguf_text_half(architecture: Any) -> TextHalf | None:
    """The same for a GGUF file, by its `general.architecture`."""
    family = _BY_GGUF.get(architecture) if isinstance(architecture, str) else None
    return None if family is None else family.text


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


__all__ = [
    *("FAMILIES", "Family", "by_gguf_architecture", "by_hf_config", "by_name"),
    *("find_gguf_text_half", "find_hf_family", "find_text_half"),
]
