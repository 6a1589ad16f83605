"""InternLM 7B and 20B: Llama with, in the 7B, biases in the attention projections."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.models.families import llama
from lightllm_mp.models.families.common.family import Family, rope_spec, stretched_context
from lightllm_mp.models.families.common.text_half import EACH, NO_OTHER, SYSTEM_FIRST, Backend, ModelFolder, TextHalf
from lightllm_mp.models.spec import ModelSpec

CHAT = (
    "{{ bos_token }}"
    + EACH
    + "{% if role == 'user' %}{{ '<|User|>:' ~ content ~ 'END\n<|Bot|>:' }}"
    + "{% elif role == 'assistant' %}{{ content ~ '<eoa>\n' }}"
    + (SYSTEM_FIRST + "{{ '<|System|>:' ~ content ~ '\n' }}")
    + NO_OTHER
)


def read_hf(config: dict[str, Any]) -> ModelSpec:
    """`rotary` is the family's own key for base and scaling; its type `origin` is plain rope."""
    own = config.get("rotary") or {}
    if own:
        scaling = (
            {"type": "dynamic", "factor": own.get("scaling_factor") or 1.0} if own.get("type") == "dynamic" else {}
        )
        config = {**config, "rope_theta": own.get("base"), "rope_scaling": scaling}
    spec = llama.read_hf(config)
    rope, bias = rope_spec(config, dim=spec.head_dim), bool(config.get("bias", True))
    return msgspec.structs.replace(
        spec, family="internlm", rope=rope, max_context=stretched_context(config, rope), qkv_bias=bias, o_bias=bias
    )


def template(backend: Backend, folder: ModelFolder) -> str | None:
    """The chat format. The first release ends a question with <eoh>, later ones do not."""
    if backend.token_to_id("<eoa>") is None:
        return None
    is_first = folder.mentions("modeling_internlm.py", "<eoh>") and backend.token_to_id("<eoh>") is not None
    return CHAT.replace("END", "<eoh>" if is_first else "")


INTERNLM = Family(
    name="internlm",
    models="InternLM 7B, 20B",
    gguf_written_as="llama",
    model_types=("internlm",),
    read_hf=read_hf,
    hf_weights=llama.hf_weights,
    text=TextHalf(tokenizer_classes=("InternLMTokenizer",), template=template, ends=("<eoa>",)),
)
