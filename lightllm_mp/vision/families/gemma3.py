"""The vision half of Gemma 3: a SigLIP tower, averages of neighbouring patches, one projection. Imports no torch."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.decoder_weights import linear
from lightllm_mp.models.families.common.family import refuse
from lightllm_mp.vision.preprocessor_config import square_preprocess
from lightllm_mp.vision.spec import ImageTags, VisionModel, VisionSpec, tower_activation
from lightllm_mp.vision.tower_rules import TowerSection, VisionFamily, norm


def read_hf(config: dict[str, Any], folder: Path) -> VisionModel:
    """Missing keys have the values of transformers' Gemma3Config and SiglipVisionConfig."""
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    refuse(vision, model_type="siglip_vision_model", vision_use_head=False)
    size, patch = int(vision.get("image_size", 224)), int(vision.get("patch_size", 16))
    tokens, grid = int(config.get("mm_tokens_per_image", 256)), size // patch
    side = isqrt(tokens)
    if side * side != tokens or side < 1 or grid % side:
        raise ModelError(f"mm_tokens_per_image {tokens} are no square of averages of {grid} x {grid} patches")
    start, end = int(config.get("boi_token_index", 255999)), int(config.get("eoi_token_index", 256000))
    spec = VisionSpec(
        kind="siglip",
        width=int(vision.get("hidden_size", 768)),
        layers=int(vision.get("num_hidden_layers", 12)),
        heads=int(vision.get("num_attention_heads", 12)),
        intermediate=int(vision.get("intermediate_size", 3072)),
        patch=patch,
        out=int(text.get("hidden_size", 2304)),
        norm_eps=float(vision.get("layer_norm_eps", 1e-6)),
        preprocess=square_preprocess(folder, size),
        tags=ImageTags(
            style="turn",
            before=(start,),
            after=(end,),
            marker=int(config.get("image_token_index", config.get("image_token_id", 262144))),
        ),
        activation=tower_activation(vision.get("hidden_act", "gelu_pytorch_tanh")),
        positions=grid * grid,
        merge=grid // side,
    )
    return VisionModel(spec, "gemma3_vl", folder, folder)


def hf_weights(model: VisionModel) -> tuple[TowerSection, ...]:
    s, folder = model.spec, model.folder
    matrix = Piece("mm_input_projection_weight", (s.out, s.width), lambda x: x.T, stored=(s.width, s.out))
    projector = (Param("projector.0", (matrix,)), *norm("merge_norm", "mm_soft_emb_norm", s.width, False))
    return (
        TowerSection(folder, ("vision_tower.vision_model.", "model.vision_tower.vision_model."), _tower(s)),
        TowerSection(folder, ("multi_modal_projector.", "model.multi_modal_projector."), projector),
    )


def _tower(s: VisionSpec) -> tuple[Param, ...]:
    params = [
        Param("patch", (Piece("embeddings.patch_embedding.weight", (s.width, 3, s.patch, s.patch)),)),
        Param("patch.bias", (Piece("embeddings.patch_embedding.bias", (s.width,)),)),
        Param("positions", (Piece("embeddings.position_embedding.weight", (s.positions, s.width)),)),
        *norm("final_norm", "post_layernorm", s.width),
    ]
    for i in range(s.layers):
        at, to = f"encoder.layers.{i}.", f"layers.{i}."
        qkv = tuple((f"self_attn.{name}_proj", s.width) for name in "qkv")
        params += [
            *norm(to + "input_norm", at + "layer_norm1", s.width),
            *linear(to + "qkv", at, qkv, s.width, True),
            *linear(to + "o", at, (("self_attn.out_proj", s.width),), s.width, True),
            *norm(to + "post_norm", at + "layer_norm2", s.width),
            *linear(to + "up", at, (("mlp.fc1", s.intermediate),), s.width, True),
            *linear(to + "down", at, (("mlp.fc2", s.width),), s.intermediate, True),
        ]
    return tuple(params)


GEMMA3 = VisionFamily(read_hf=read_hf, hf_weights=hf_weights)
