"""Measures op table and decoder on one GPU with random weights: decode steps eager and as a CUDA graph, prefill, and
the attention kernels alone. Each figure is one JSON line; a table with the share of the limit comes last.

    python scripts/bench_gpu.py [--model llama2-7b|llama3-8b] [--parts step,prefill,attention] [--json FILE]

`scripts/bench_attention.py` measures the attention kernels alone and sweeps their block sizes.

Limits: bytes over 3.09 TB/s and operations over 700 TFLOP/s, both measured on an H100 80GB HBM3.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator
from pathlib import Path

import bench_attention
import torch
from gpu_steps import SPECS, captured, new_step, random_decoder, random_pool, random_step, seconds

from lightllm_mp.kernels.triton import launch
from lightllm_mp.models.decoder.decoder import Decoder

DECODE_STEPS = {
    "llama2-7b": {(1, 1088): 4.45, (16, 1088): 7.2, (64, 1088): 16.1, (256, 371): 20.4},
    "llama3-8b": {(1, 1088): 4.9, (16, 1088): 5.6, (64, 1088): 7.8, (256, 1088): 18.9},
}
"""(sequences, context) to the least milliseconds a step can take."""
PREFILL_STEPS = {
    "llama2-7b": {(16, 2048): 51000.0, (1, 512): 512 / 9.7e-3},
    "llama3-8b": {(16, 2048): 0.0, (1, 512): 0.0},
}
"""(sequences, length) to the most tokens per second; 0: not worked out."""
STEP_TOKENS = 16384
MIXED_STEP = (64, 1088, 512)
"""Decoding sequences, their context, and new tokens of one prompt in the same step."""

Figure = dict[str, object]


def figure(name: str, value: float, unit: str, limit: float, *, less_is_better: bool = False) -> Figure:
    share = (limit / value if less_is_better else value / limit) if limit else None
    line: Figure = {"name": name, "value": round(value, 3), "unit": unit, "limit": limit or None}
    line["share"] = None if share is None else round(share, 3)
    print(json.dumps(line), flush=True)
    return line


def decode_steps(decoder: Decoder, limits: dict[tuple[int, int], float]) -> Iterator[Figure]:
    """Forward pass, logits and the choice of the likeliest token, for all sequences."""
    for (sequences, context), limit in limits.items():
        pool = random_pool(decoder.spec, sequences * context)
        batch = random_step([1] * sequences, [context] * sequences)
        ids = torch.randint(decoder.spec.vocab, (sequences,), device="cuda", dtype=torch.int32)

        def step(ids=ids, batch=batch, pool=pool) -> torch.Tensor:
            return decoder.logits(decoder.forward(ids, new_step(batch), pool)).argmax(-1)

        name = f"{decoder.spec.family} decode step {sequences} x {context}"
        yield figure(name + " eager", seconds(step) * 1e3, "ms", limit, less_is_better=True)
        graph = captured(step)
        yield figure(name + " graph", seconds(graph.replay) * 1e3, "ms", limit, less_is_better=True)
        del graph, pool, step


def prefill_steps(decoder: Decoder, limits: dict[tuple[int, int], float]) -> Iterator[Figure]:
    """Whole prompts in steps of STEP_TOKENS, logits of each prompt's last token."""
    for (sequences, length), limit in limits.items():
        pool = random_pool(decoder.spec, sequences * length)
        each = min(sequences, STEP_TOKENS // length)
        batch = random_step([length] * each, [length] * each)
        ids = torch.randint(decoder.spec.vocab, (each * length,), device="cuda", dtype=torch.int32)

        def step(ids=ids, batch=batch, pool=pool) -> torch.Tensor:
            return decoder.logits(decoder.forward(ids, new_step(batch), pool, ends_only=True)).argmax(-1)

        rate = each * length / seconds(step, repeats=10)
        yield figure(f"{decoder.spec.family} prefill {sequences} x {length}", rate, "tokens/s", limit)
        del pool, step


def mixed_step(decoder: Decoder) -> Figure:
    """Decoding sequences and a prompt in one step, launched kernel by kernel."""
    sequences, context, new = MIXED_STEP
    pool = random_pool(decoder.spec, sequences * context + new)
    batch = random_step([1] * sequences + [new], [context] * sequences + [new])
    ids = torch.randint(decoder.spec.vocab, (batch.tokens,), device="cuda", dtype=torch.int32)

    def step() -> torch.Tensor:
        return decoder.logits(decoder.forward(ids, new_step(batch), pool, ends_only=True)).argmax(-1)

    title = f"{decoder.spec.family} mixed step {sequences} x {context} and {new} new"
    return figure(title, seconds(step) * 1e3, "ms", 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SPECS, action="append")
    parser.add_argument("--parts", default="step,prefill,attention")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--early", action=argparse.BooleanOptionalAction, default=launch.EARLY_START)
    args = parser.parse_args()
    launch.EARLY_START = args.early
    parts = args.parts.split(",")
    figures: list[Figure] = []
    if "attention" in parts:
        figures += bench_attention.figures()
    for name in args.model or SPECS:
        if "step" in parts or "prefill" in parts:
            decoder = random_decoder(SPECS[name])
            if "step" in parts:
                figures += decode_steps(decoder, DECODE_STEPS[name])
                figures.append(mixed_step(decoder))
            if "prefill" in parts:
                figures += prefill_steps(decoder, PREFILL_STEPS[name])
            del decoder
            torch.cuda.empty_cache()
    print(f"\n{torch.cuda.get_device_name()}, {datetime.date.today()}, torch {torch.__version__}")
    for line in figures:
        share = "" if line["share"] is None else f"{line['share']:7.1%}"
        print(f"{line['name']:60} {line['value']:>12} {line['unit']:9} {share}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
