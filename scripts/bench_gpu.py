"""Measures op table and decoder on one GPU with random weights: decode steps eager and as a CUDA graph, prefill, and
the attention kernels alone. Each figure is one JSON line; a table with the share of the limit comes last.

    python scripts/bench_gpu.py [--model llama2-7b|llama3-8b] [--parts step,prefill,attention] [--json FILE]
    python scripts/bench_gpu.py --sweep decode|prefill     # tries block sizes; the best go to kernels/triton/tuned.py

Limits: bytes over 3.09 TB/s and operations over 700 TFLOP/s for steps; 3.0 TB/s (a device copy) and 700 TFLOP/s (a
large product of bfloat16 matrices) for kernels, all measured on an H100 80GB HBM3.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch
from gpu_steps import SPECS, captured, random_decoder, random_pool, random_step, seconds

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.select import op_table
from lightllm_mp.kernels.table import HeadLayout
from lightllm_mp.kernels.triton import tuned
from lightllm_mp.models.attention import head_layout
from lightllm_mp.models.batch import KVPool
from lightllm_mp.models.decoder import Decoder
from lightllm_mp.models.spec import ModelSpec

COPY, PRODUCT = 3.0e12, 700e12
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
KERNEL_LAYERS = 8
"""Layers a kernel runs over in turn, so that no layer's keys are still in the cache."""
PREFILL_TRIALS = (
    (128, 64, 8, 2),
    (128, 64, 8, 3),
    (128, 64, 4, 2),
    (128, 64, 4, 3),
    (128, 128, 8, 2),
    (128, 128, 8, 3),
    (128, 32, 8, 3),
    (128, 32, 4, 3),
    (64, 128, 4, 2),
    (64, 64, 4, 2),
    (64, 64, 4, 3),
    (64, 32, 4, 3),
)

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
            return decoder.logits(decoder.forward(ids, batch, pool)).argmax(-1)

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
        last = batch.seq_start[1:].long() - 1

        def step(ids=ids, batch=batch, pool=pool, last=last) -> torch.Tensor:
            return decoder.logits(decoder.forward(ids, batch, pool)[last]).argmax(-1)

        rate = each * length / seconds(step, repeats=10)
        yield figure(f"{decoder.spec.family} prefill {sequences} x {length}", rate, "tokens/s", limit)
        del pool, step


def mixed_step(decoder: Decoder) -> Figure:
    """Decoding sequences and a prompt in one step, launched kernel by kernel."""
    sequences, context, new = MIXED_STEP
    pool = random_pool(decoder.spec, sequences * context + new)
    batch = random_step([1] * sequences + [new], [context] * sequences + [new])
    ids = torch.randint(decoder.spec.vocab, (batch.tokens,), device="cuda", dtype=torch.int32)
    last = batch.seq_start[1:].long() - 1

    def step() -> torch.Tensor:
        return decoder.logits(decoder.forward(ids, batch, pool)[last]).argmax(-1)

    title = f"{decoder.spec.family} mixed step {sequences} x {context} and {new} new"
    return figure(title, seconds(step) * 1e3, "ms", 0.0)


class AttentionCase:
    """One step's attention over several layers of keys and values."""

    def __init__(self, model: ModelSpec, new: list[int], contexts: list[int], *, shuffled: bool = True) -> None:
        self.name = f"{model.family} {'scattered' if shuffled else 'in order'}"
        self.layout: HeadLayout = head_layout(model)
        self.batch: Batch = random_step(new, contexts, shuffled=shuffled)
        self.pool: KVPool = random_pool(model, sum(contexts))
        self.q = torch.randn(sum(new), model.q_size, device="cuda").to(self.pool.data.dtype)
        self.bytes = sum(contexts) * 2 * model.kv_size * 2
        pairs = sum(n * (c - n) + n * (n + 1) // 2 for n, c in zip(new, contexts, strict=True))
        self.operations = 4 * pairs * model.q_size

    def run(self) -> None:
        attention = op_table("cuda", self.q.dtype).attention
        for layer in self.pool.layers:
            attention(self.q, layer, self.batch, self.layout)

    def seconds(self, repeats: int = 20) -> float:
        """Of one layer, inside a CUDA graph of all layers."""
        return seconds(captured(self.run).replay, repeats=repeats) / len(self.pool.layers)


def few_layers(name: str, head_dim: int = 128) -> ModelSpec:
    return msgspec.structs.replace(SPECS[name], layers=KERNEL_LAYERS * 128 // head_dim, head_dim=head_dim)


def attention_kernels(name: str) -> Iterator[Figure]:
    model = few_layers(name)
    for (sequences, context), shuffled in itertools.product(DECODE_STEPS[name], (True, False)):
        case = AttentionCase(model, [1] * sequences, [context] * sequences, shuffled=shuffled)
        rate = case.bytes / case.seconds()
        yield figure(f"{case.name}: decode attention {sequences} x {context}", rate / 1e9, "GB/s", COPY / 1e9)
    uneven = [4000] + [100 + 13 * i for i in range(63)]
    case = AttentionCase(model, [1] * 64, uneven)
    yield figure(f"{case.name}: decode attention 64 uneven", case.bytes / case.seconds() / 1e9, "GB/s", COPY / 1e9)
    for sequences, new, context in ((16, 2048, 2048), (1, 512, 512), (2, 1024, 4096)):
        case = AttentionCase(model, [new] * sequences, [context] * sequences)
        rate = case.operations / case.seconds() / 1e12
        title = f"{case.name}: prefill attention {sequences} x {new} of {context}"
        yield figure(title, rate, "TFLOP/s", PRODUCT / 1e12)


def sweep_decode(dims: list[int]) -> None:
    """Prints the best blocks by the mean share of bandwidth over the cases, and the share in each."""
    for dim in dims:
        cases = []
        for name, sizes in DECODE_STEPS.items():
            model = few_layers(name, head_dim=dim)
            cases += [AttentionCase(model, [1] * n, [c] * n) for n, c in sizes]
        found = []
        for trial in itertools.product((32, 64, 128), (2, 4), (2, 3), (2, 3, 4, 6)):
            blocks = tuned.DecodeBlocks(*trial)
            found += tried(tuned.DECODE, dim, blocks, [(case, case.bytes / COPY) for case in cases])
        report(dim, found)


def sweep_prefill(dims: list[int]) -> None:
    for dim in dims:
        cases = [
            AttentionCase(few_layers("llama2-7b", head_dim=dim), [2048] * 16, [2048] * 16),
            AttentionCase(few_layers("llama2-7b", head_dim=dim), [512], [512]),
            AttentionCase(few_layers("llama3-8b", head_dim=dim), [1024] * 2, [4096] * 2),
        ]
        found = []
        for trial in PREFILL_TRIALS:
            limits = [(case, case.operations / PRODUCT) for case in cases]
            found += tried(tuned.PREFILL, dim, tuned.PrefillBlocks(*trial), limits)
        report(dim, found)


def tried(table: dict, dim: int, blocks: tuple, cases: list[tuple[AttentionCase, float]]) -> list[tuple]:
    """(mean share of the limit, blocks, share in each case), or nothing where the blocks do not fit the GPU."""
    from triton.runtime.errors import OutOfResources

    key, before = (tuned.padded(dim), 2), table[tuned.padded(dim), 2]
    table[key] = blocks
    try:
        shares = [least / case.seconds(repeats=7) for case, least in cases]
    except OutOfResources:
        return []
    finally:
        table[key] = before
    return [(sum(shares) / len(shares), blocks, [round(share, 3) for share in shares])]


def report(dim: int, found: list[tuple]) -> None:
    for mean, blocks, shares in sorted(found, reverse=True, key=lambda line: line[0])[:12]:
        print(f"head_dim {dim}: {mean:.3f} {blocks} {shares}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SPECS, action="append")
    parser.add_argument("--parts", default="step,prefill,attention")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", choices=("decode", "prefill"))
    parser.add_argument("--head-dim", type=int, action="append")
    args = parser.parse_args()
    if args.sweep:
        (sweep_decode if args.sweep == "decode" else sweep_prefill)(args.head_dim or [128])
        return
    parts = args.parts.split(",")
    figures: list[Figure] = []
    for name in args.model or SPECS:
        if "attention" in parts:
            figures += attention_kernels(name)
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
