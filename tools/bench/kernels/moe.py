"""Measures one layer's experts on one GPU with random weights: routing, sorting, both products and the sum.

    python -m tools.bench.kernels.moe [--model NAME] [--tokens N] [--alone N] [--json FILE]
    python -m tools.bench.kernels.moe --sweep [--model NAME] [--tokens N]     # the best go to tuned_moe.py

Every figure is one JSON line: microseconds inside a CUDA graph, and the share of the limit, which is the larger of the
bytes of the experts that are touched and the operations, each over what this GPU reaches (tools/harness/ceilings.py).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightllm_mp.kernels.quantised import BlockRows, BlockWeight, ScaledWeight
from lightllm_mp.kernels.table import Routing
from lightllm_mp.kernels.triton.linear.fp8 import GROUP
from lightllm_mp.kernels.triton.moe import moe, tuned_moe
from lightllm_mp.kernels.triton.moe.expert_tiles import expert_tiles
from lightllm_mp.kernels.triton.moe.grouped_gemm import down as grouped_down
from lightllm_mp.kernels.triton.moe.grouped_gemm import gate_up as grouped_gate_up
from lightllm_mp.kernels.triton.moe.mxfp4 import MXFP4
from lightllm_mp.kernels.triton.moe.routing import route
from lightllm_mp.kernels.triton.moe.tuned_moe import AloneBlocks, ExpertBlocks, ProductBlocks
from lightllm_mp.models.checkpoint.dummy_weights import BLOCK_SCALE, SCALE
from tools.harness.ceilings import ceilings
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures
from tools.harness.gpu import best, captured, require_gpus, seconds

TOKENS = (1, 16, 64, 256, 2048, 8192)
CACHE = 200e6
"""Least bytes of weights that one pass reads, so that none of them is still in the cache."""


BYTES = {"plain": 2.0, "fp8": 1 + 4 / 128, "mxfp4": 17 / 32}
"""Of a weight."""


class Shape(NamedTuple):
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    form: str = "plain"
    """Of the weights: `plain` (bfloat16), `fp8` in blocks of 128 x 128, or `mxfp4`."""

    @property
    def matrix_bytes(self) -> float:
        """Bytes of one of the three matrices of an expert."""
        return self.hidden * self.intermediate * BYTES[self.form]


MODELS = {
    "mixtral-8x7b": Shape(8, 2, 4096, 14336),
    "qwen3-30b-a3b": Shape(128, 8, 2048, 768),
    "deepseek-v2-lite": Shape(64, 6, 2048, 1408),
    "qwen3-30b-a3b-fp8": Shape(128, 8, 2048, 768, "fp8"),
    "qwen3.5-35b-a3b": Shape(256, 8, 2048, 512),
    "gpt-oss-20b": Shape(32, 4, 2880, 2880, "mxfp4"),
}


class Case:
    """A step of some tokens through a few layers of a model, each with its own weights and router scores."""

    def __init__(self, name: str, tokens: int) -> None:
        self.name, self.tokens, self.shape = name, tokens, MODELS[name]
        experts, self.top_k, hidden, n, _ = self.shape
        self.x = torch.randn(tokens, hidden, device="cuda").bfloat16()
        self.how = Routing(self.top_k, True)
        touched = min(experts, tokens * self.top_k) * 3 * self.shape.matrix_bytes
        self.layers = min(8, max(1, round(CACHE / touched)))
        self.logits = [torch.randn(tokens, experts, device="cuda") for _ in range(self.layers)]
        self.weights = [random_layer(name, i) for i in range(self.layers)]
        used = [route(x, self.how)[1].unique().numel() for x in self.logits]
        self.used = sum(used) / len(used)
        self.operations = tokens * self.top_k * 2 * hidden * n
        """Operations of one of the three products."""

    def least(self, matrices: int) -> float:
        """Seconds."""
        at = ceilings()
        rate = at.product_fp8 if self.shape.form == "fp8" else at.product
        return matrices * max(self.used * self.shape.matrix_bytes / at.bandwidth, self.operations / rate)

    def run(self) -> None:
        for logits, prepared in zip(self.logits, self.weights, strict=True):
            moe.experts(self.x, prepared, *route(logits, self.how), "silu")

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds of one layer."""
        return seconds(captured(work).replay, repeats=10) / self.layers


_layers: dict[tuple[str, int], moe.StackedExperts] = {}


def random_layer(name: str, i: int) -> moe.StackedExperts:
    """The weights of a model's i-th layer, made once."""
    if (name, i) not in _layers:
        experts, _, k, n, form = MODELS[name]
        make = MAKE[form]
        _layers[name, i] = moe.prepare_experts(make(experts, 2 * n, k), make(experts, k, n))
    return _layers[name, i]


def random_weights(experts: int, n: int, k: int) -> torch.Tensor:
    return torch.empty(experts, n, k, device="cuda", dtype=torch.bfloat16).normal_(0, 0.02)


def random_blocks(experts: int, n: int, k: int) -> tuple[BlockWeight, ...]:
    rows = torch.randint(0, 256, (experts, n, k // 32 * 17), dtype=torch.uint8, device="cuda")
    rows[..., ::17] = BLOCK_SCALE
    return tuple(BlockWeight((BlockRows(one, MXFP4),)) for one in rows)


def random_scaled(experts: int, n: int, k: int) -> ScaledWeight:
    """fp8 in blocks of 128 x 128."""
    scales = torch.rand(experts, n // GROUP, k // GROUP, device="cuda").mul_(SCALE).repeat_interleave(GROUP, 1)
    return ScaledWeight((random_weights(experts, n, k) / SCALE).to(torch.float8_e4m3fn), scales, GROUP)


MAKE: dict[str, Callable[[int, int, int], Any]] = {
    "plain": random_weights,
    "fp8": random_scaled,
    "mxfp4": random_blocks,
}


def measure(figures: Figures, case: Case) -> None:
    took, least = case.seconds(case.run), case.least(3)
    shares = {"limit": round(least * 1e6, 1), "share": round(least / took, 3), "used": case.used}
    figures.add(f"{case.name}: experts of {case.tokens} tokens", round(took * 1e6, 1), "us", **shares)


def sweep(case: Case) -> None:
    """Prints the best blocks of each product and the time of the rest of the layer."""
    alone = tuned_moe.PACKED_ALONE_TOKENS if case.shape.form == "mxfp4" else tuned_moe.ALONE_TOKENS
    if case.tokens <= alone:
        sweep_alone(case)
        return
    if case.shape.form == "fp8" and case.tokens > moe.MOST_ROWS_BEFORE_8_BITS:
        sweep_in_8_bits(case)
        return
    x, experts = case.x, case.shape.experts
    mean = case.tokens * case.top_k / experts
    print(f"{case.name}: {case.tokens} tokens, {mean:.1f} rows an expert")
    hidden = x.new_empty((case.tokens * case.top_k, case.shape.intermediate)).normal_()
    each = x.new_empty((case.tokens * case.top_k, case.shape.hidden)).normal_()
    chosen = [route(logits, case.how) for logits in case.logits]
    for rows in (16, 32, 64, 128):
        if not min(64, mean / 4) <= rows <= max(16, 8 * mean):
            continue
        at = [expert_tiles(numbers, experts, rows) for _, numbers in chosen]

        def plan(rows: int = rows) -> None:
            for _, numbers in chosen:
                expert_tiles(numbers, experts, rows)

        def gate_up(by: ProductBlocks, together: int, rows: int = rows, at: list = at) -> None:
            for prepared, tiles in zip(case.weights, at, strict=True):
                grouped_gate_up(x, prepared.gate_up, None, tiles, hidden, rows, by, together, "silu")

        def down(by: ProductBlocks, together: int, rows: int = rows, at: list = at) -> None:
            for prepared, tiles in zip(case.weights, at, strict=True):
                grouped_down(hidden, prepared.down, None, tiles, each, rows, by, together)

        print(f"  rows {rows}: tiles {case.seconds(plan) * 1e6:.1f} us")
        together = 8 if rows == 128 else 4
        for name, work, matrices in (("gate_up", gate_up, 2), ("down", down, 1)):

            def score(by: ProductBlocks, work: Callable = work, matrices: int = matrices, t: int = together) -> float:
                return case.least(matrices) / case.seconds(lambda: work(by, t))

            for share, by in best(trials(rows, matrices), score)[:4]:
                print(f"    {name} {share:.3f} {by} together {together}")

    def combine() -> None:
        for weights, numbers in chosen:
            moe.weighted_sum(each, weights, numbers, experts)

    print(f"  sum {case.seconds(combine) * 1e6:.1f} us", flush=True)


def sweep_in_8_bits(case: Case) -> None:
    """The best blocks of the whole layer for each number of rows that fits. Both products share the rows, and the best
    rows of one need not be the best of the other."""
    tokens, experts = case.tokens, case.shape.experts
    mean = tokens * case.top_k / experts
    print(f"{case.name}: {tokens} tokens in 8 bits, {mean:.1f} rows an expert", flush=True)
    kept = tuned_moe.FP8
    for rows in (16, 32, 64, 128):
        if not min(64, mean / 4) <= rows <= max(16, 8 * mean):
            continue
        together = 8 if rows == 128 else 4
        first = ProductBlocks(128, 128, 8 if rows > 32 else 4, 3)
        seconds = [ProductBlocks(*one) for one in itertools.product((64, 128), (128,), (4, 8), (3, 4))]

        def score(up: ProductBlocks, down: ProductBlocks, rows: int = rows, together: int = together) -> float:
            tuned_moe.FP8 = [(float("inf"), ExpertBlocks(rows, up, down, together))]
            return case.least(3) / case.seconds(case.run)

        downs = best(seconds, partial(score, first))
        if not downs:
            continue
        chosen = downs[0][1]
        firsts = [ProductBlocks(*one) for one in itertools.product((128,), (128,), (4, 8), (3, 4))]
        ups = best(firsts, partial(score, down=chosen))
        for share, up in ups[:3]:
            print(f"    {share:.3f} {ExpertBlocks(rows, up, chosen, together)}", flush=True)
    tuned_moe.FP8 = kept


def trials(rows: int, matrices: int) -> Iterator[ProductBlocks]:
    if rows < 64:
        sizes = itertools.product((32, 64, 128) if matrices == 1 else (16, 32, 64), (64, 128, 256), (4,), (3, 5))
    elif rows == 64:
        sizes = itertools.product((64, 128, 256) if matrices == 1 else (32, 64, 128), (64, 128), (4, 8), (3, 4))
    else:
        sizes = itertools.product((128, 256) if matrices == 1 else (64, 128), (64,), (4, 8), (3, 4))
    return (ProductBlocks(*size) for size in sizes)


def sweep_alone(case: Case) -> None:
    """The best blocks of the first product stay for the second."""
    packed = case.shape.form == "mxfp4"
    sizes = itertools.product((1, 2, 4, 8) if packed else (1, 2, 4), (512, 1024, 2048, 4096), (2, 4, 8))
    tried, prefix = [AloneBlocks(*size) for size in sizes], "PACKED_" if packed else ""
    for name in (prefix + "ALONE_GATE_UP", prefix + "ALONE_DOWN"):
        kept = getattr(tuned_moe, name)

        def score(by: AloneBlocks, name: str = name) -> float:
            setattr(tuned_moe, name, by)
            return case.least(3) / case.seconds(case.run)

        found = best(tried, score)
        for share, by in found[:4]:
            print(f"{case.name}: {case.tokens} tokens one by one, {name} {share:.3f} {by}", flush=True)
        setattr(tuned_moe, name, found[0][1] if found else kept)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, model=["deepseek-v2-lite"], tokens=[16])
    parser.add_argument("--model", choices=MODELS, nargs="+")
    parser.add_argument("--tokens", type=int, nargs="+")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--alone", type=int, help="tokens up to which each token reads its own experts' weights")
    parser.add_argument("--in-8-bits-from", type=int, help="tokens from which fp8 weights meet activations in fp8")
    parser.add_argument("--json", type=Path)
    flags = parser.parse(argv)
    require_gpus()
    if flags.alone is not None:
        tuned_moe.ALONE_TOKENS = tuned_moe.PACKED_ALONE_TOKENS = flags.alone
    if flags.in_8_bits_from is not None:
        moe.MOST_ROWS_BEFORE_8_BITS = flags.in_8_bits_from - 1
    figures = Figures()
    with torch.inference_mode():
        for name in flags.model or MODELS:
            for tokens in flags.tokens or TOKENS:
                case = Case(name, tokens)
                if flags.sweep:
                    sweep(case)
                else:
                    measure(figures, case)
            _layers.clear()
            torch.cuda.empty_cache()
    figures.write(flags.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
