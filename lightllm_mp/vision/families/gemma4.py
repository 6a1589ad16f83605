"""The vision half of Gemma 4: a tower with position tables by column and row, pooled patches. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.models.checkpoint.weight_rules import Param, Piece
from lightllm_mp.models.families.common.family import refuse
from lightllm_mp.models.families.gemma4 import SOFT_TOKENS
from lightllm_mp.vision.preprocessor_config import budget_preprocess
from lightllm_mp.vision.spec import ImageTags, VisionModel, VisionSpec, tower_activation
from lightllm_mp.vision.tower_rules import TowerSection, VisionFamily, norm

BOUNDS = ("input_min", "input_max", "output_min", "output_max")
NORMS = {
    "input_norm": "input_layernorm",
    "attention_out_norm": "post_attention_layernorm",
    "post_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}


def read_hf(config: dict[str, Any], folder: Path) -> VisionModel:
    """Missing keys have the values of transformers' Gemma4VisionConfig."""
    vision, text = config.get("vision_config"), config.get("text_config") or {}
    if not vision:
        raise ModelError("the configuration has no vision_config: the model takes no images")
    width, heads = int(vision.get("hidden_size", 768)), int(vision.get("num_attention_heads", 12))
    refuse(vision, head_dim=width // heads, num_key_value_heads=heads, attention_bias=False)
    patch, pool = int(vision.get("patch_size", 16)), int(vision.get("pooling_kernel_size", 3))
    told = int(config.get("vision_soft_tokens_per_image") or SOFT_TOKENS)
    steps = budget_preprocess(folder, patch, pool, told)
    if text.get("use_bidirectional_attention") and steps.max_pixels > told * (patch * pool) ** 2:
        raise ModelError(f"max_soft_tokens is larger than vision_soft_tokens_per_image {told}")
    spec = VisionSpec(
        kind="gemma4",
        width=width,
        layers=int(vision.get("num_hidden_layers", 16)),
        heads=heads,
        intermediate=int(vision.get("intermediate_size", 3072)),
        patch=patch,
        out=int(text.get("hidden_size", 2304)),
        norm_eps=float(vision.get("rms_norm_eps", 1e-6)),
        preprocess=steps,
        tags=ImageTags(
            style="pipes",
            before=(int(config.get("boi_token_id", 255999)),),
            after=(int(config.get("eoi_token_id", 258882)),),
            marker=int(config.get("image_token_id", 258880)),
        ),
        norm="rms",
        activation=tower_activation(vision.get("hidden_activation", "gelu_pytorch_tanh")),
        gated=True,
        positions=int(vision.get("position_embedding_size", 10240)),
        rope_theta=float((vision.get("rope_parameters") or {}).get("rope_theta", 100.0)),
        plain_positions=True,
        clipped=bool(vision.get("use_clipped_linears", False)),
        standardize=bool(vision.get("standardize", False)),
        merge=pool,
    )
    return VisionModel(spec, "gemma4", folder, folder)


def weights(model: VisionModel) -> tuple[TowerSection, ...]:
    s, folder = model.spec, model.folder
    projector = Param("projector.0", (Piece("embedding_projection.weight", (s.out, s.width)),))
    return (
        TowerSection(folder, ("model.vision_tower.", "vision_tower."), _tower(s)),
        TowerSection(folder, ("model.embed_vision.", "embed_vision."), (projector,)),
    )


def _tower(s: VisionSpec) -> tuple[Param, ...]:
    """Upstream's patches have the channel last, ours have it first."""
    patch = Piece(
        "patch_embedder.input_proj.weight",
        (s.width, 3, s.patch, s.patch),
        lambda x: x.reshape(s.width, s.patch, s.patch, 3).movedim(3, 1),
        stored=(s.width, s.patch_values),
    )
    table = Piece("patch_embedder.position_embedding_table", (2, s.positions, s.width))
    params = [Param("patch", (patch,)), Param("positions", (table,))]
    if s.standardize:
        params += [Param(name, (Piece(name, (s.width,)),)) for name in ("std_bias", "std_scale")]
    for i in range(s.layers):
        params += _layer(s, f"encoder.layers.{i}.", f"layers.{i}.")
    return tuple(params)


def _layer(s: VisionSpec, at: str, to: str) -> list[Param]:
    attention, mlp = (s.width, s.width), (s.intermediate, s.width)
    shapes = {
        **{name: (f"self_attn.{name}_proj", attention) for name in "qkvo"},
        **{name: (f"mlp.{name}_proj", mlp) for name in ("gate", "up")},
        "down": ("mlp.down_proj", (s.width, s.intermediate)),
    }
    params = []
    for name, (file_name, shape) in shapes.items():
        turn = _halves_together(s) if name in "qk" else None
        params.append(Param(to + name, (Piece(f"{at}{file_name}.linear.weight", shape, turn),)))
        for bound in BOUNDS if s.clipped else ():
            piece = Piece(f"{at}{file_name}.{bound}", (1,), lambda x: x.reshape(1), stored=())
            params.append(Param(f"{to}{name}.{bound}", (piece,)))
    for name in "qk":
        params.append(
            Param(f"{to}{name}_norm", (Piece(f"{at}self_attn.{name}_norm.weight", (s.head_dim,), _halves_together(s)),))
        )
    for target, file_name in NORMS.items():
        params += norm(to + target, at + file_name, s.width, False)
    return params


def _halves_together(s: VisionSpec) -> Any:
    """Upstream rotates each half of a head by itself, for the column and then for the row: components x x' y y'. Ours
    are y x y' x', which is one rotation of the head."""

    def reorder(tensor: Any) -> Any:
        heads = tensor.reshape(-1, 2, 2, s.head_dim // 4, *tensor.shape[1:])
        return heads.swapaxes(1, 2)[:, :, [1, 0]].reshape(tensor.shape)

    return reorder


GEMMA4 = VisionFamily(read_hf=read_hf, hf_weights=weights)
