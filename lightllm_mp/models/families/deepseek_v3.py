"""DeepSeek-V3 (arXiv 2412.19437): V2's attention, and experts that are chosen by corrected sigmoids."""

from __future__ import annotations

from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.families.common.family import Family, refuse
from lightllm_mp.models.families.common.text_half import Backend, ModelFolder, TextHalf
from lightllm_mp.models.families.deepseek_v2 import dense_layers, hf_weights, latent_spec
from lightllm_mp.models.spec import ModelSpec, MoeSpec

KIMI_SPECIAL = 256
"""Special tokens of a Kimi tokenizer."""


def read_hf(config: dict[str, Any]) -> ModelSpec:
    return latent_spec(config, family="deepseek_v3", moe=sigmoid_moe(config))


def sigmoid_moe(config: dict[str, Any], **fields: Any) -> MoeSpec:
    """The experts of a configuration with DeepSeek-V3's keys; `fields` override them."""
    refuse(config, scoring_func="sigmoid", topk_method="noaux_tc")
    width, groups = int(config["moe_intermediate_size"]), int(config.get("n_group") or 1)
    read: dict[str, Any] = {
        "experts": int(config["n_routed_experts"]),
        "top_k": int(config["num_experts_per_tok"]),
        "intermediate": width,
        "renormalise": bool(config.get("norm_topk_prob", True)),
        "scale": float(config.get("routed_scaling_factor", 1.0)),
        "groups": groups,
        "top_groups": int(config.get("topk_group") or groups),
        "group_best": 2,
        "sigmoid": True,
        "correction": True,
        "shared_intermediate": int(config.get("n_shared_experts") or 0) * width,
        "dense_layers": dense_layers(config),
    }
    return MoeSpec(**(read | fields))


def complete_kimi(backend: Backend, folder: ModelFolder) -> dict[int, str]:
    """Kimi's special tokens follow the table of `tiktoken.model`; those without a name in tokenizer_config.json get
    one with their id."""
    if (folder.path / "tiktoken.model").is_file():
        first, declared = backend.get_vocab_size(), folder.tokenizer.get("added_tokens_decoder") or {}
        for id_ in range(first, first + KIMI_SPECIAL):
            entry = declared.get(str(id_))
            if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
                entry = {"content": f"<|reserved_token_{id_}|>", "special": True}
            name = entry["content"]
            (backend.add_special_tokens if entry.get("special") else backend.add_tokens)([name])
            if backend.token_to_id(name) != id_:
                raise ModelError(f"the token {name[:64]!r} of Kimi cannot have its id {id_}")
    return {}


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    models="DeepSeek-V3, R1, V3.1, Kimi-K2 (text)",
    model_types=("deepseek_v3", "kimi_k2"),
    read_hf=read_hf,
    hf_weights=hf_weights,
    mtp=True,
    gguf_written_as="deepseek2",
    text=TextHalf(tokenizer_classes=("TikTokenTokenizer",), complete=complete_kimi),
)
