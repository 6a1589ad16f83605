"""Makes folders of small models, or models without weights, for tools that serve one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.actors.embedded import write_byte_tokenizer

GOLDENS = Path(__file__).resolve().parents[2] / "tests" / "goldens"
PARTS = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


def write_tiny_model(folder: Path, golden: str = "llama") -> Path:
    """`folder`, with a model of tests/goldens in it (`llama`; `llava_hf`, which sees; `bge_m3`, which embeds) and a
    tokenizer of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        if (file := GOLDENS / golden / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(file, folder / name)
    return write_byte_tokenizer(folder)


def _tower(hidden: int, image: int, layers: int, heads: int, patch: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    return sizes | {"image_size": image, "patch_size": patch, "num_attention_heads": heads}


def _text(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return sizes | {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab}


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava-1.5-7b": (_tower(1024, 336, 24, 16, 14), _text(4096, 11008, 32, 32, 32, 32064)),
    "small": (_tower(768, 224, 12, 12, 16), _text(576, 1536, 30, 9, 3, 49152)),
    "tiny": (_tower(64, 56, 2, 4, 14), _text(64, 128, 2, 4, 2, 256)),
}
"""Tower and language model of LLaVAs. `small`: CLIP ViT-B/16 and the language model of the default package."""


def write_shape(name: str, folder: Path) -> Path:
    """`folder`, with the configuration of a shape in it, for `--load-format dummy`."""
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
