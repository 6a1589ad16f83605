"""A language model of a few thousand random weights as a GGUF file, with a byte-level tokenizer and a chat template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers import pre_tokenizers

HIDDEN, LAYERS, HEADS, KV_HEADS, WIDE = 48, 2, 6, 3, 96
TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|begin|>", "<|answer|>")
CONTROL, NORMAL = 3, 1


def write_tiny_language(path: Path) -> None:
    draw = np.random.default_rng(11)
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL] * len(SPECIAL) + [NORMAL] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(0)
    writer.add_chat_template(TEMPLATE)

    def matrix(name: str, rows: int, columns: int, scale: float) -> None:
        writer.add_tensor(name + ".weight", (draw.standard_normal((rows, columns)) * scale).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name + ".weight", np.ones(HIDDEN, np.float32))

    matrix("token_embd", len(tokens), HIDDEN, 0.3)
    ones("output_norm")
    for layer in (f"blk.{i}." for i in range(LAYERS)):
        ones(layer + "attn_norm")
        ones(layer + "ffn_norm")
        for name in ("attn_q", "attn_k", "attn_v"):
            matrix(layer + name, HIDDEN if name == "attn_q" else HIDDEN * KV_HEADS // HEADS, HIDDEN, 0.3)
        matrix(layer + "attn_output", HIDDEN, HIDDEN, 0.1)
        matrix(layer + "ffn_gate", WIDE, HIDDEN, 0.2)
        matrix(layer + "ffn_up", WIDE, HIDDEN, 0.2)
        matrix(layer + "ffn_down", HIDDEN, WIDE, 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
