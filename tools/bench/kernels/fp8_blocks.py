"""Measures products of 8-bit floats in blocks of 128 on a Hopper GPU, for the projections of real models.

    python -m tools.bench.kernels.fp8_blocks [--shapes 5120x2048,4096x14336] [--rows 17 64 256 512 2048 8192] [--sweep]

Each figure is one JSON line: microseconds of the rounding of activations and of the product, with the share of the
GPU's ceiling for their bytes and operations. For comparison: the same weight expanded for cuBLAS, and cuBLAS with a
plain weight. --sweep first tries blocks. It prints the best ones, for all shapes together, as lines of
kernels/triton/linear/tuned_linear.py and uses them for the figures. Weights are never in the cache.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from lightllm_mp.kernels.quantised import ScaledWeight
from lightllm_mp.kernels.triton.linear import fp8, quantised, tuned_linear
from lightllm_mp.kernels.triton.linear.cublas import matmul
from lightllm_mp.kernels.triton.linear.few_rows import Streamed, streamed
from lightllm_mp.kernels.triton.linear.tuned_linear import MOST_ROWS, Fp8Blocks, LinearBlocks
from tools.harness.ceilings import ceilings
from tools.harness.command_line import ToolParser, words
from tools.harness.figures import Figures
from tools.harness.gpu import captured, device_facts, require_gpus, seconds

SHAPES = ["5120x2048", "2048x4096", "6144x4096", "4096x14336", "28672x4096"]
"""Outputs and inputs: qkv and o of Qwen3-30B-A3B; qkv, down and gate_up of Llama-3-8B."""
ROWS = [17, 32, 64, 128, 256, 512, 1024, 2048, 8192]
CACHE = 160 << 20
"""Bytes of weights that a graph reads: three times the cache."""
LAUNCHES = 8
GROUP = fp8.GROUP
SHARED_BYTES = 227 << 10

STREAMED = [
    LinearBlocks(outputs, GROUP, 0, warps, stages, swapped)
    for (outputs, warps, swapped), stages in itertools.product(
        ((64, 4, True), (64, 4, False), (64, 8, False), (128, 4, True), (128, 8, True), (128, 8, False)), (3, 4, 5)
    )
]
"""Blocks without programs. The sweep tries as many programs as a multiprocessor holds, and one less."""
TILES = [
    Fp8Blocks(rows, outputs, warps, stages, together)
    for (rows, outputs, warps), stages, together in itertools.product(
        ((64, 64, 4), (64, 128, 4), (64, 128, 8), (128, 64, 4), (128, 128, 8), (64, 256, 8)), (3, 4), (8, 16)
    )
]


def streams(rows: int) -> list[LinearBlocks]:
    """Blocks to try for a number of rows."""
    many, found = min(128, rows), []
    for blocks in STREAMED:
        if not blocks.swapped and rows < 64:
            continue
        held = blocks.stages * GROUP * (blocks.outputs + many)
        fitting = max(1, min(SHARED_BYTES // held, 16 // blocks.warps))
        found += [blocks._replace(programs=programs) for programs in {fitting, max(1, fitting - 1)}]
    return list(dict.fromkeys(found))


def block_weight(n: int, k: int) -> ScaledWeight:
    values = torch.randn((n, k), device="cuda").mul_(60).to(torch.float8_e4m3fn)
    scales = torch.rand((-(-n // GROUP), k // GROUP), device="cuda").mul_(k**-0.5 / 60).repeat_interleave(GROUP, 0)[:n]
    return ScaledWeight(values, scales, GROUP)


class Case:
    """Copies of one weight."""

    def __init__(self, n: int, k: int) -> None:
        self.n, self.k = n, k
        made = quantised.prepare_quantised(block_weight(n, k), None, torch.bfloat16)
        self.weights = [_copy(made) for _ in range(-(-CACHE // (n * k)))]
        self.plain = [quantised.expand(made, torch.bfloat16) for _ in range(-(-CACHE // (2 * n * k)))]

    def x(self, rows: int) -> Tensor:
        return torch.randn((rows, self.k), device="cuda", dtype=torch.bfloat16)

    def microseconds(self, work: Callable[[Any], object], over: Iterable[Any]) -> float:
        over = list(over)
        turns = over * max(1, -(-LAUNCHES // len(over)))
        return seconds(captured(lambda: [work(w) for w in turns]).replay, repeats=7, warm_up=1) / len(turns) * 1e6

    def product(self, rows: int, blocks: LinearBlocks | Fp8Blocks) -> float:
        """Without the rounding. inf: the blocks do not fit."""
        values, scales = fp8.quantised_rows(self.x(rows))

        def work(weight: Streamed) -> Tensor:
            if isinstance(blocks, LinearBlocks):
                return streamed(values, weight, torch.bfloat16, blocks, scales)
            return fp8.scaled_product(values, scales, weight, torch.bfloat16, blocks)

        try:
            return self.microseconds(work, self.weights)
        except OutOfResources:
            return float("inf")

    def limit(self, rows: int) -> float:
        """Microseconds of the product."""
        at = ceilings()
        read = self.n * self.k * (1 + 4 / GROUP**2) + rows * (self.k + 2 * self.n)
        return 1e6 * max(read / at.bandwidth, 2 * rows * self.n * self.k / at.product_fp8)

    def check(self, rows: int) -> None:
        x, weight = self.x(rows), self.weights[0]
        expected = x.float() @ quantised.expand(weight, torch.float32).t()
        error = (fp8.in_blocks(x, weight).float() - expected).norm() / expected.norm()
        assert error < 0.06, (self.n, self.k, rows, error)


def _copy(made: Streamed) -> Streamed:
    return made._replace(**{name: x.clone() for name, x in made._asdict().items() if isinstance(x, Tensor)})


def sweep(cases: list[Case], all_rows: Sequence[int]) -> None:
    """Sets the best blocks of each number of rows."""
    found_tiles: list[tuple[float, Fp8Blocks]] = []
    for rows in all_rows:
        streamed_too = rows <= tuned_linear.MOST_STREAMED_IN_8_BITS
        trials: list[LinearBlocks | Fp8Blocks] = [*(streams(rows) if streamed_too else []), *TILES]
        shares = {by: statistics.mean(c.limit(rows) / c.product(rows, by) for c in cases) for by in trials}
        ranked = sorted(shares, key=lambda by: -shares[by])
        for by in ranked[:4]:
            print(f"    {rows} rows: {shares[by]:.3f} {by}", flush=True)
        stream = next((by for by in ranked if isinstance(by, LinearBlocks)), None)
        if stream is not None:
            tuned_linear.BLOCKS["fp8 x fp8"][min(128, max(16, 1 << (rows - 1).bit_length()))] = stream
        tile = next(by for by in ranked if isinstance(by, Fp8Blocks))
        print(f"    {rows} rows: best tile {shares[tile]:.3f} {tile}", flush=True)
        if not streamed_too:
            found_tiles.append((rows, tile))
    if found_tiles:
        tuned_linear.FP8 = [*found_tiles[:-1], (float("inf"), found_tiles[-1][1])]
    print(f"FP8 = {tuned_linear.FP8}\nfp8 x fp8: {tuned_linear.BLOCKS['fp8 x fp8']}", flush=True)


def measure(figures: Figures, case: Case, rows: int) -> None:
    title, x = f"{case.n} x {case.k}, {rows} rows", case.x(rows)
    case.check(rows)
    whole = case.microseconds(lambda w: fp8.in_blocks(x, w), case.weights)
    figures.add_limited(f"{title}: rounding and product", whole, "us", case.limit(rows), less_is_better=True)
    figures.add(f"{title}: rounding", case.microseconds(lambda w: fp8.quantised_rows(x), case.weights), "us")
    if rows <= MOST_ROWS["fp8"]:
        by = tuned_linear.quantised_blocks("fp8", GROUP, rows)
        kept = case.microseconds(lambda w: streamed(x, w, torch.bfloat16, by), case.weights)
        figures.add(f"{title}: activations in 16 bits", kept, "us")
    expanded = case.microseconds(
        lambda w: matmul(x, quantised.expand(w, torch.bfloat16), None, torch.bfloat16), case.weights
    )
    figures.add(f"{title}: expanded", expanded, "us")
    figures.add(f"{title}: plain", case.microseconds(lambda w: matmul(x, w, None, torch.bfloat16), case.plain), "us")


def compile_part(all_rows: Sequence[int], part: int, parts: int) -> None:
    """Compiles every `parts`-th kernel by running it on a small input."""
    weight = quantised.prepare_quantised(block_weight(512, 512), None, torch.bfloat16)
    todo: list[tuple[int, LinearBlocks | Fp8Blocks]] = [
        (min(128, 1 << (rows - 1).bit_length()), by._replace(programs=1))
        for rows in all_rows
        if rows <= tuned_linear.MOST_STREAMED_IN_8_BITS
        for by in streams(rows)
    ]
    todo += [(300, by) for by in TILES]
    for rows, by in list(dict.fromkeys(todo))[part::parts]:
        values, scales = fp8.quantised_rows(torch.randn((rows, 512), device="cuda", dtype=torch.bfloat16))
        try:
            if isinstance(by, LinearBlocks):
                streamed(values, weight, torch.bfloat16, by, scales)
            else:
                fp8.scaled_product(values, scales, weight, torch.bfloat16, by)
        except OutOfResources:
            continue


def compile_all(all_rows: Sequence[int]) -> None:
    """Fills Triton's cache from as many processes as there are cores."""
    parts = min(14, os.cpu_count() or 1)
    command = [sys.executable, "-m", "tools.bench.kernels.fp8_blocks", "--rows", *map(str, all_rows), "--compile"]
    running = [subprocess.Popen([*command, f"{i}/{parts}"]) for i in range(parts)]
    assert all(process.wait() == 0 for process in running)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, shapes=["512x512"], rows=[17, 300])
    parser.add_argument("--shapes", type=words, default=SHAPES)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compile", help="of the tool itself: PART/PARTS of the kernels")
    flags = parser.parse(argv)
    require_gpus()
    with torch.inference_mode():
        if flags.compile:
            compile_part(flags.rows, *map(int, flags.compile.split("/")))
            return 0
        cases = [Case(*map(int, shape.split("x"))) for shape in flags.shapes]
        if flags.sweep:
            compile_all(flags.rows)
            sweep(cases, flags.rows)
        figures = Figures()
        for case, rows in itertools.product(cases, flags.rows):
            measure(figures, case, rows)
    print(device_facts())
    figures.write(flags.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
