"""The vision half of Mistral 3 and Pixtral: the Pixtral tower and its projectors. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_mp.model_files.model_source import read_json
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import Transform, linear
from lightllm_mp.models.families.common.family import refuse
from lightllm_mp.vision.preprocessor_config import longest_edge_preprocess
from lightllm_mp.vision.spec import ImageTags, VisionModel, VisionSpec, tower_activation
from lightllm_mp.vision.tower_rules import TowerSection, VisionFamily, norm

BREAK, END = ("[IMG_BREAK]", 12), ("[IMG_END]", 13)
"""Tokens behind each row of an image and behind the last one, and their ids in all released tokenizers."""


def read_mistral3(config: dict[str, Any], folder: Path) -> VisionModel:
    """Missing keys have the values of transformers' Mistral3Config."""
    merge, text = int(config.get("spatial_merge_size", 2)), config.get("text_config") or {}
    spec = _spec(
        config,
        folder,
        merge=merge,
        projector_bias=bool(config.get("multimodal_projector_bias", False)),
        projector_eps=float(text.get("rms_norm_eps", 1e-6)),
    )
    return VisionModel(spec, "mistral3", folder, folder)


def read_pixtral(config: dict[str, Any], folder: Path) -> VisionModel:
    refuse(config, vision_feature_select_strategy="full")
    bias = bool(config.get("multimodal_projector_bias", True))
    return VisionModel(_spec(config, folder, merge=1, projector_bias=bias), "pixtral", folder, folder)


def _spec(config: dict[str, Any], folder: Path, merge: int, **fields: Any) -> VisionSpec:
    """Missing keys of the tower have the values of transformers' PixtralVisionConfig."""
    refuse(config, vision_feature_layer=-1, projector_hidden_act="gelu")
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    width, heads = int(vision.get("hidden_size", 1024)), int(vision.get("num_attention_heads", 16))
    refuse(vision, head_dim=width // heads, model_type="pixtral")
    patch = int(vision.get("patch_size", 16))
    rope = vision.get("rope_parameters") or vision
    ids = _token_ids(folder)
    return VisionSpec(
        kind="pixtral",
        width=width,
        layers=int(vision.get("num_hidden_layers", 24)),
        heads=heads,
        intermediate=int(vision.get("intermediate_size", 4096)),
        patch=patch,
        out=int(text.get("hidden_size", 4096)),
        norm_eps=1e-5,
        preprocess=longest_edge_preprocess(folder, patch * merge),
        tags=ImageTags(style="bracket", marker=int(config.get("image_token_index", config.get("image_token_id", 10)))),
        norm="rms",
        activation=tower_activation(vision.get("hidden_act", "gelu")),
        gated=True,
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        rope_stagger=True,
        plain_positions=True,
        merge=merge,
        row_ends=tuple(ids.get(name, default) for name, default in (BREAK, END)),
        vocab=int(text.get("vocab_size", 32000)),
        **fields,
    )


def _token_ids(folder: Path) -> dict[str, int]:
    """Ids of the tokens that tokenizer_config.json declares."""
    file = folder / "tokenizer_config.json"
    declared = (read_json(file) if file.is_file() else {}).get("added_tokens_decoder") or {}
    return {str(token.get("content")): int(number) for number, token in declared.items()}


def weights(model: VisionModel) -> tuple[TowerSection, ...]:
    """The tower, the projector, and two rows of the language model's embedding."""
    s, folder = model.spec, model.folder
    ends = list(s.row_ends)
    rows = Piece("embed_tokens.weight", (len(ends), s.out), lambda table: table[ends], stored=(s.vocab, s.out))
    text = ("language_model.model.", "model.language_model.")
    return (
        TowerSection(folder, ("vision_tower.", "model.vision_tower."), _tower(s)),
        TowerSection(folder, ("multi_modal_projector.", "model.multi_modal_projector."), _projector(s)),
        TowerSection(folder, text, (Param("row_ends", (rows,)),), (r"^(layers|norm)\.",)),
    )


def _tower(s: VisionSpec) -> tuple[Param, ...]:
    params = [
        Param("patch", (Piece("patch_conv.weight", (s.width, 3, s.patch, s.patch)),)),
        *norm("pre_norm", "ln_pre", s.width, False),
    ]
    for i in range(s.layers):
        at, to = f"transformer.layers.{i}.", f"layers.{i}."
        qkv = tuple((f"attention.{name}_proj", s.width) for name in "qkv")
        up = tuple((f"feed_forward.{name}_proj", s.intermediate) for name in ("gate", "up"))
        params += [
            *norm(to + "input_norm", at + "attention_norm", s.width, False),
            *linear(to + "qkv", at, qkv, s.width, False),
            *linear(to + "o", at, (("attention.o_proj", s.width),), s.width, False),
            *norm(to + "post_norm", at + "ffn_norm", s.width, False),
            *linear(to + "gate_up", at, up, s.width, False),
            *linear(to + "down", at, (("feed_forward.down_proj", s.width),), s.intermediate, False),
        ]
    return tuple(params)


def _projector(s: VisionSpec) -> tuple[Param, ...]:
    params: list[Param] = []
    if s.merge > 1:
        name, columns = "patch_merger.merging_layer", s.width * s.merge * s.merge
        params += norm("merge_norm", "norm", s.width, False)
        params += linear("merge", "", ((name, s.width),), columns, False, {name: _patches_apart(s)})
    params += linear("projector.0", "", (("linear_1", s.out),), s.width, s.projector_bias)
    return (*params, *linear("projector.1", "", (("linear_2", s.out),), s.out, s.projector_bias))


def _patches_apart(s: VisionSpec) -> Transform:
    """Upstream's columns have the channel first, then the patch in its block (torch's unfold); ours the patch first."""

    def reorder(tensor: Any) -> Any:
        rows = tensor.shape[0]
        return tensor.reshape(rows, s.width, s.merge * s.merge).swapaxes(1, 2).reshape(rows, -1)

    return reorder


MISTRAL3 = VisionFamily(read_hf=read_mistral3, hf_weights=weights)
PIXTRAL = VisionFamily(read_hf=read_pixtral, hf_weights=weights)
