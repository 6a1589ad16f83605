"""Folders of LLaVA models without weights, for `--load-format dummy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLIP_L_336 = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
CLIP_B_224 = {
    "hidden_size": 768,
    "image_size": 224,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 16,
}
LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}
SMOL_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava-1.5-7b": (CLIP_L_336, LLAMA_7B),
    "small": (CLIP_B_224, SMOL_135M),
}
"""Tower and language model. `small` is CLIP ViT-B/16 and the language model of the default package."""


def write_shape(name: str, folder: Path) -> Path:
    """`folder`, with the configuration of a shape in it."""
    tower, text = SHAPES[name]
    text = text | {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": text["vocab_size"] - 1,
        "text_config": text,
        "vision_config": tower | {"model_type": "clip_vision_model"},
        "torch_dtype": "bfloat16",
    }
    edge = tower["image_size"]
    steps = {"do_center_crop": True, "crop_size": {"height": edge, "width": edge}, "size": {"shortest_edge": edge}}
    steps |= {"image_mean": [0.4815, 0.4578, 0.4082], "image_std": [0.2686, 0.2613, 0.2758], "resample": 3}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(steps))
    return folder
