"""Measures projections of few rows on one GPU: cuBLAS, the kernel of a single token, and the streaming kernel under
many block sizes, for the shapes of Llama-2-7B and Llama-3-8B.

    python -m tools.bench.kernels.linear [--forms plain,int8,fp8,int4] [--shapes qkv,down] [--tp N] [--early]
        [--json FILE]

Each figure is one JSON line. Then follow a table, the sum over a decode step's projections, and for quantised forms the
blocks that are best for all weights together, as lines for tuned_linear.py. Each time is of a CUDA graph that reads
several copies of the weight, so that no copy is in the cache. Quantised forms are compared with cuBLAS on the plain
weight.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from lightllm_mp.kernels.quantised import GroupedWeight
from lightllm_mp.kernels.reference.quantised import quantise
from lightllm_mp.kernels.triton import launch
from lightllm_mp.kernels.triton.linear import quantised
from lightllm_mp.kernels.triton.linear.cublas import matmul
from lightllm_mp.kernels.triton.linear.few_rows import Streamed, streamed, streams
from lightllm_mp.kernels.triton.linear.linear import of_one_token, prepare_linear
from lightllm_mp.kernels.triton.linear.tuned_linear import LinearBlocks
from tools.harness.command_line import ToolParser, words
from tools.harness.figures import Figure, Figures
from tools.harness.gpu import MODELS, SPECS, best, captured, device_facts, require_gpus, seconds

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SWEPT = (16, 32, 64, 128, 256)
"""Numbers of rows for which blocks are chosen; fewer rows than 16 use the choice for 16."""
BYTES = 160 << 20
"""Bytes of weights that a graph reads: three times the cache."""
LAUNCHES = 12
GROUP = 128
DTYPE = torch.bfloat16

Tile = tuple[int, int, int, int, bool]
"""Outputs, inputs, warps, stages, swapped."""
FEW: list[Tile] = [
    *((64, 128, 4, stages, False) for stages in (4, 3, 5)),
    *((*sizes, False) for sizes in ((32, 128, 4, 4), (32, 128, 4, 3), (32, 256, 4, 3), (16, 256, 4, 3))),
    *((*sizes, False) for sizes in ((64, 64, 4, 5), (64, 128, 8, 4), (128, 64, 4, 4))),
    *((*sizes, True) for sizes in ((64, 128, 4, 3), (64, 128, 4, 5), (64, 64, 4, 6))),
    *((*sizes, True) for sizes in ((128, 64, 4, 3), (128, 64, 4, 5), (128, 128, 8, 5))),
]
MANY: list[Tile] = [
    *((*sizes, True) for sizes in ((64, 64, 4, 4), (64, 64, 4, 6), (64, 128, 4, 4), (64, 128, 4, 3))),
    *((*sizes, True) for sizes in ((128, 64, 4, 4), (128, 64, 8, 4), (128, 128, 8, 3), (256, 64, 8, 4))),
    *((*sizes, False) for sizes in ((64, 128, 4, 4), (128, 64, 8, 4), (128, 64, 8, 5))),
]
FEW_ROWS = 32
SHARED_BYTES = 222 << 10
MOST_WARPS = 20
"""The most warps per multiprocessor: registers do not suffice for more."""
WEIGHT_BYTES = {"plain": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5}
MADE = {
    "plain": lambda w: prepare_linear(w, None),
    "int8": lambda w: quantised.prepare_quantised(quantise(w, "int8"), None, DTYPE),
    "fp8": lambda w: quantised.prepare_quantised(quantise(w, "fp8"), None, DTYPE),
    "int4": lambda w: quantised.prepare_quantised(four_bits(*w.shape), None, DTYPE),
}


def four_bits(n: int, k: int) -> GroupedWeight:
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, device="cuda")
    zeros = torch.randint(0, 16, (n, k // GROUP), dtype=torch.uint8, device="cuda")
    scales = (torch.rand((n, k // GROUP), device="cuda") * 0.01).half()
    return GroupedWeight(codes, scales, zeros, torch.arange(k, device="cuda", dtype=torch.int32) // GROUP)


def trials(form: str, rows: int) -> list[LinearBlocks]:
    """Blocks to try, each with about as many programs as a multiprocessor holds. A 4-bit weight has its own number of
    inputs, so blocks that differ only in this number are one trial."""
    found = []
    for outputs, inputs, warps, stages, swapped in FEW if rows <= FEW_ROWS else MANY:
        inputs = GROUP if form == "int4" else inputs
        many, buffers = min(128, rows), stages - (not swapped)
        held = buffers * inputs * (outputs * WEIGHT_BYTES[form] + many * 2) + many * outputs * 2
        fitting = max(1, min(int(SHARED_BYTES / held), MOST_WARPS // warps if rows <= FEW_ROWS else 2))
        for programs in {fitting, max(1, fitting - 1)}:
            found.append(LinearBlocks(outputs, inputs, programs, warps, stages, swapped))
    return list(dict.fromkeys(found))


def shapes(models: Sequence[str], wanted: Sequence[str], ranks: int = 1) -> dict[tuple[int, int], list[str]]:
    """(outputs, inputs) -> the projections with this shape on one of this many tensor-parallel ranks."""
    found: dict[tuple[int, int], list[str]] = {}
    for name in models:
        spec = SPECS[name]
        sizes = {
            "qkv": ((spec.q_size + 2 * spec.kv_size) // ranks, spec.hidden),
            "o": (spec.hidden, spec.q_size // ranks),
            "gate_up": (2 * spec.intermediate // ranks, spec.hidden),
            "down": (spec.hidden, spec.intermediate // ranks),
            "head": (spec.vocab // ranks, spec.hidden),
        }
        for part, size in sizes.items():
            if part in wanted:
                found.setdefault(size, []).append(f"{name} {part}")
    return found


class Case:
    """The copies of one weight in one form, and in plain form as cuBLAS takes it."""

    def __init__(self, form: str, n: int, k: int) -> None:
        self.form, self.n, self.k = form, n, k
        self.plain = _copies(torch.randn((n, k), device="cuda", dtype=DTYPE) * k**-0.5)
        made = MADE[form](self.plain[0])
        self.bytes = sum(x.nbytes for x in (made.weight, made.scales, made.zeros) if x is not None)
        self.weights = [_cloned(made) for _ in range(max(1, -(-BYTES // self.bytes)))] if form != "plain" else []
        self.weights = self.weights or [prepare_linear(w, None) for w in self.plain]

    def microseconds(self, work: Callable[[Streamed | Tensor], object], over: Iterable) -> float:
        """Of one product, over all copies in turn."""
        over = list(over)
        turns = over * max(1, -(-LAUNCHES // len(over)))
        return seconds(captured(lambda: [work(w) for w in turns]).replay, repeats=7, warm_up=1) / len(turns) * 1e6

    def cublas(self, rows: int) -> float:
        x = self.x(rows)
        return self.microseconds(lambda w: matmul(x, w, None, DTYPE), self.plain)

    def stream(self, rows: int, trials: Iterable[LinearBlocks]) -> list[tuple[float, LinearBlocks]]:
        """(us, blocks) of the trials that fit the weight and the GPU, fastest first."""
        x = self.x(rows)

        def score(blocks: LinearBlocks) -> float:
            streamed(x, self.weights[0], DTYPE, blocks)
            return -self.microseconds(lambda w: streamed(x, w, DTYPE, blocks), self.weights)

        fitting = (blocks for blocks in trials if streams(self.weights[0], rows, blocks))
        return [(-score, blocks) for score, blocks in best(fitting, score)]

    def others(self, rows: int) -> Iterator[tuple[str, float]]:
        """The other kernels for this form."""
        x = self.x(rows)
        if self.form == "plain" and rows == 1:
            yield "one token", self.microseconds(lambda w: of_one_token(x, w, DTYPE), self.weights)
        if self.form != "plain" and rows >= 64:
            yield (
                "expanded",
                self.microseconds(lambda w: matmul(x, quantised.expand(w, DTYPE), None, DTYPE), self.weights),
            )
        if self.form == "fp8" and rows >= 16:
            yield "8 bits", self.microseconds(lambda w: quantised.in_8_bits(x, w), self.weights)

    def x(self, rows: int) -> Tensor:
        return torch.randn((rows, self.k), device="cuda", dtype=DTYPE)

    def check(self, rows: int, blocks: LinearBlocks) -> None:
        """Compares the product with that of the expanded weight."""
        x, weight = self.x(rows), self.weights[0]
        plain = weight.weight if self.form == "plain" else quantised.expand(weight, torch.float32)
        expected = x.float() @ plain.float().t()
        error = (streamed(x, weight, torch.float32, blocks) - expected).norm() / expected.norm()
        assert error < 5e-3, (self.form, self.n, self.k, rows, blocks, error)


def _copies(weight: Tensor) -> list[Tensor]:
    return [weight, *(weight.clone() for _ in range(-(-BYTES // weight.nbytes) - 1))]


def _cloned(made: Streamed) -> Streamed:
    return made._replace(**{name: x.clone() for name, x in made._asdict().items() if isinstance(x, Tensor)})


def measure(figures: Figures, form: str, size: tuple[int, int], names: list[str], all_rows: Sequence[int]) -> None:
    """All figures of one weight. For fewer rows than the sweep has, the streaming kernel uses the best blocks."""
    case, chosen = Case(form, *size), dict[int, LinearBlocks]()

    def add(rows: int, kernel: str, time: float, blocks: LinearBlocks | None = None) -> None:
        title = f"{' = '.join(names)}, {form}, {rows} rows: {kernel}"
        read = case.n * case.k * DTYPE.itemsize if kernel == "cublas" else case.bytes
        sizes = {"form": form, "outputs": case.n, "inputs": case.k, "rows": rows, "kernel": kernel, "blocks": blocks}
        figures.add(title, round(time, 2), "us", **sizes, gb_per_s=round(read / time / 1e3, 1))

    for rows in (rows for rows in SWEPT if rows in all_rows):
        found = case.stream(rows, trials(form, rows))
        for time, blocks in found:
            add(rows, "stream", time, blocks)
        if found:
            chosen[rows] = found[0][1]
            case.check(rows, chosen[rows])
    for rows in all_rows:
        add(rows, "cublas", case.cublas(rows))
        for kernel, time in case.others(rows):
            add(rows, kernel, time)
        if rows not in SWEPT and SWEPT[0] in chosen:
            add(rows, "stream", *case.stream(rows, [chosen[SWEPT[0]]])[0])


def least(figures: list[Figure], **wanted: object) -> Figure | None:
    """The fastest of the figures with these columns."""
    fitting = [row for row in figures if all(row[key] == value for key, value in wanted.items())]
    return min(fitting, key=lambda row: row["value"], default=None)


def table(form: str, figures: list[Figure], sizes: dict[tuple[int, int], list[str]], all_rows: Sequence[int]) -> None:
    print(f"\n{form}: us (GB/s) of cuBLAS with a plain weight, of other kernels, of the streaming kernel")
    for (n, k), names in sizes.items():
        for rows in all_rows:
            cells = []
            for kernel in ("cublas", "one token", "expanded", "8 bits", "stream"):
                if row := least(figures, form=form, outputs=n, inputs=k, rows=rows, kernel=kernel):
                    blocks = f" {tuple(row['blocks'])}" if row["blocks"] else ""
                    cells.append(f"{kernel} {row['value']:8} ({row['gb_per_s']:6}){blocks}")
            print(f"{' = '.join(names):36} {rows:4}: {'  '.join(cells)}")
    own = ("one token", "expanded", "8 bits", "stream", *(("cublas",) if form == "plain" else ()))
    for model in {name.split()[0]: None for names in sizes.values() for name in names}:
        for rows in all_rows:
            sums = [0.0, 0.0]
            for (n, k), names in sizes.items():
                parts = [name for name in names if name.startswith(model)]
                times = sum(1 if part.endswith("head") else SPECS[model].layers for part in parts)
                for i, kernels in enumerate((("cublas",), own)):
                    found = [least(figures, form=form, outputs=n, inputs=k, rows=rows, kernel=x) for x in kernels]
                    sums[i] += times * min(row["value"] for row in found if row) / 1e3
            print(f"{model} projections of a step of {rows} rows: cuBLAS {sums[0]:.3f} ms, best {sums[1]:.3f} ms")


def choices(form: str, figures: list[Figure]) -> None:
    """The best blocks for all weights together, as lines of `tuned_linear`."""
    print(f"\n{form}:")
    for rows in SWEPT:
        times: dict[LinearBlocks, list[float]] = {}
        for row in figures:
            if (row["form"], row["rows"], row["kernel"]) == (form, rows, "stream"):
                times.setdefault(LinearBlocks(*row["blocks"]), []).append(row["value"])
        most = max((len(found) for found in times.values()), default=0)
        fitting = {blocks: sum(found) for blocks, found in times.items() if len(found) == most}
        if fitting:
            chosen = min(fitting, key=lambda blocks: fitting[blocks])
            print(f"    {rows}: LinearBlocks({', '.join(map(str, chosen))}),  # {fitting[chosen]:.1f} us together")


def compile_part(forms: list[str], part: int, parts: int) -> None:
    """Compiles every `parts`-th kernel by running it on a small input."""
    todo = [(form, rows, blocks) for form in forms for rows in SWEPT[:-1] for blocks in trials(form, rows)]
    todo = list({(form, rows, blocks._replace(programs=1)): None for form, rows, blocks in todo})
    for form, rows, blocks in todo[part::parts]:
        weight = MADE[form](torch.randn((2 * blocks.outputs, 4 * GROUP), device="cuda", dtype=DTYPE))
        try:
            x = torch.randn((rows, 4 * GROUP), device="cuda", dtype=DTYPE)
            streamed(x, weight, DTYPE, blocks)
        except OutOfResources:
            continue


def compile_all(forms: list[str]) -> None:
    """Fills Triton's cache from one process per core; each needs about half a gigabyte of the GPU."""
    parts = min(14, os.cpu_count() or 1)
    how = ["--early" if launch.EARLY_START else "--no-early"]
    command = [sys.executable, "-m", "tools.bench.kernels.linear", "--forms", ",".join(forms), *how, "--compile"]
    running = [subprocess.Popen([*command, f"{i}/{parts}"]) for i in range(parts)]
    assert all(process.wait() == 0 for process in running)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, models=["llama3-8b"], shapes=["o"], rows=[1, 16])
    parser.add_argument("--forms", type=words, default=["plain"], help="some of " + ",".join(MADE))
    parser.add_argument("--models", choices=MODELS, nargs="+", default=MODELS)
    parser.add_argument("--shapes", type=words, default=["qkv", "o", "gate_up", "down", "head"])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of a product")
    parser.add_argument("--tp", type=int, default=1, help="shapes of one of so many tensor-parallel ranks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--early", action=argparse.BooleanOptionalAction, default=launch.EARLY_START)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    flags = parser.parse(argv)
    require_gpus()
    launch.EARLY_START = flags.early
    with torch.inference_mode():
        if flags.compile:
            compile_part(flags.forms, *(int(x) for x in flags.compile.split("/")))
        else:
            run(flags)
    return 0


def run(flags: argparse.Namespace) -> None:
    if not flags.smoke:
        compile_all(flags.forms)
    figures, sizes = Figures(), shapes(flags.models, flags.shapes, flags.tp)
    for form in flags.forms:
        for size, names in sizes.items():
            measure(figures, form, size, names, flags.rows)
            torch.cuda.empty_cache()
    print(f"\n{device_facts()}")
    for form in flags.forms:
        table(form, figures.rows, sizes, flags.rows)
        if form != "plain":
            choices(form, figures.rows)
    figures.write(flags.json)


if __name__ == "__main__":
    sys.exit(main())
