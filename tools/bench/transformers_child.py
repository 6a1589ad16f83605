"""Runs transformers in its own process for cpu_peers.py: JSON lines on standard input and output.

    python -m tools.bench.transformers_child convert GGUF FOLDER           dense bfloat16 weights
    python -m tools.bench.transformers_child serve FOLDER DTYPE THREADS    "ready", then an answer to each line

A line is {"prompts": [[ids], ...], "tokens": n}: one batch, padded on the left, exactly n greedy tokens a prompt. The
answer is {"first": seconds, "last": seconds, "tokens": n}, from the call to the first and to the last token.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, StoppingCriteria, StoppingCriteriaList


def convert(gguf: Path, folder: Path) -> None:
    """Write the weights of a GGUF file of the Llama family under their Hugging Face names."""
    from safetensors.torch import save_file

    from lightllm_mp.models.model_config import gguf_model

    family, spec, keys = gguf_model(gguf)
    assert family.gguf_weights is not None
    assert spec.rope is not None
    tensors = {}
    for ours, theirs in zip(family.gguf_weights(spec, keys), family.hf_weights(spec), strict=True):
        for piece, named in zip(ours.pieces, theirs.pieces, strict=True):
            value = torch.from_numpy(keys.file.read(piece.name).copy())
            value = piece.transform(value) if piece.transform else value
            tensors[named.name] = value.to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    LlamaConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        rms_norm_eps=spec.norm_eps,
        rope_theta=spec.rope.theta,
        max_position_embeddings=spec.max_context,
        tie_word_embeddings=spec.tied,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


class Stamps(StoppingCriteria):
    """Records the time of each token and never stops the generation."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def generate(model: Any, prompts: list[list[int]], tokens: int) -> dict[str, float]:
    longest, stamps = max(map(len, prompts)), Stamps()
    start = time.perf_counter()
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([stamps]),
        )
    last = time.perf_counter() - start
    return {"first": stamps.times[0] - start, "last": last, "tokens": out.shape[1] - longest}


def serve(folder: Path, dtype: str, threads: int, out: TextIO) -> None:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(generate(model, job["prompts"], job["tokens"])), file=out, flush=True)


def run() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # keep the libraries' output out of the answers
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        serve(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), out)


if __name__ == "__main__":
    run()
