"""Measures tables of figures and their targets in one run on an H200. Each tool runs in its own process.

    python -m tools.bench.targets --table dense [--only 8b] [--minutes 9] [--out STEM]

Tables: dense: Llama-2-7B and Llama-3-8B in 16 and 8 bits, Qwen3-30B-A3B, the time to start, and the device's time in
200 steady steps. experts: Qwen3.5-35B-A3B, gpt-oss-20b and Qwen3-30B-A3B in FP8. Weights are random.

It writes STEM.json (all figures), STEM.md (the table) and STEM.log (the tools' output) after every run, so that no
figure is lost when the time is over. It leaves out runs that no longer fit. It ends a run that takes too long and keeps
the figures that the run has printed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tools.harness.command_line import SKIPPED, ToolParser
from tools.harness.figures import Figure, Figures, say

SHORTEST = 15.0
"""No run begins with fewer seconds left."""


ABOUT = ("read", "product, bfloat16", "product, fp8", "weights", "KV tokens", "start")
"""Figures of a run for the text below the table."""

PAUSE = 3.0
"""Seconds after a run that was killed: the driver frees its memory."""


class Cell(NamedTuple):
    """One figure of a run in the table. Values are in its unit; None: unknown."""

    figure: str
    title: str
    target: float | None = None
    before: float | None = None
    peer: float | None = None
    """The better of vLLM 0.26 and SGLang 0.5.17, on an H200."""
    more: bool = False
    """More is better."""

    def met(self, value: float) -> bool | None:
        if self.target is None:
            return None
        return value >= self.target if self.more else value <= self.target


@dataclass(frozen=True)
class Run:
    name: str
    command: list[str]
    """A tool and its flags."""
    cells: list[Cell]
    most: float = 120.0
    """Most seconds of the run."""
    environment: dict[str, str] = field(default_factory=dict)


def model(shape: str, parts: str, *more: str) -> list[str]:
    return ["tools.bench.model", "--shape", shape, "--parts", parts, *more]


SERVED = "served: throughput"
FP8 = ("--quantization", "fp8")
INT8_KV, FP8_KV = ("--kv-cache-dtype", "int8"), ("--kv-cache-dtype", "fp8")
LONG = ("--prefill", "16x2048", "1x512", "16x8192", "1x32768", "4x32768")
CONTEXTS = ("--decode", "1x1024", "16x1024", "64x1024", "256x1024")

DENSE = [
    Run(
        "8b",
        model("llama3-8b", "decode,prefill,served", *CONTEXTS, *LONG),
        [
            Cell("decode 1 x 1024", "8B decode, 1 sequence", 3.65, 4.34, 4.88),
            Cell("decode 16 x 1024", "8B decode, 16", 4.2, 5.20, 5.52),
            Cell("decode 64 x 1024", "8B decode, 64", 6.0, 7.07, 7.55),
            Cell("decode 256 x 1024", "8B decode, 256", 15.0, None, 17.24),
            Cell("prefill 16 x 2048: rate", "8B prefill 16 x 2048", 46_000, 43_400, 42_600, more=True),
            Cell("prefill 1 x 512: seconds", "8B prefill 1 x 512", None, 0.0124, 0.0176),
            Cell("prefill 16 x 8192: seconds", "8B until all have a token, 16 x 8192", 3.25, 3.80, 3.45),
            Cell("prefill 1 x 32768: seconds", "8B the same, 1 x 32768", 1.18, 1.41, 1.21),
            Cell("prefill 4 x 32768: seconds", "8B the same, 4 x 32768", 4.7, 5.88, 4.79),
            Cell(SERVED, "8B served", 78, 69.7, 62.4, more=True),
        ],
        150,
    ),
    Run(
        "7b",
        model("llama2-7b", "decode,prefill,served,profile", "--decode", "1x1024", "16x1024", "64x1024", "256x320"),
        [
            Cell("decode 1 x 1024", "7B decode, 1 sequence", 3.3, 4.12, 4.66),
            Cell("decode 16 x 1024", "7B decode, 16", 5.4, 6.36, 6.91),
            Cell("decode 64 x 1024", "7B decode, 64", 11.8, 12.60, 13.74),
            Cell("decode 256 x 320", "7B decode, 256 of 320"),
            Cell("prefill 16 x 2048: rate", "7B prefill 16 x 2048", 48_000, 45_700, 45_600, more=True),
            Cell("prefill 1 x 512: seconds", "7B prefill 1 x 512", None, 0.0115, 0.0167),
            Cell(SERVED, "7B served", 53.5, 50.3, 41.2, more=True),
            Cell("profile: a step", "7B, 200 steady steps under the profiler, a step"),
        ],
        150,
    ),
    Run(
        "8b-fp8",
        model("llama3-8b", "decode,served", *CONTEXTS, *FP8, *FP8_KV),
        [
            Cell("decode 1 x 1024", "8B fp8 weights and KV, decode, 1 sequence"),
            Cell("decode 64 x 1024", "8B fp8 weights and KV, decode, 64"),
            Cell(SERVED, "8B fp8 weights and fp8 KV, served", 108, 98.9, 78.5, more=True),
        ],
        90,
    ),
    Run(
        "7b-int8-kv",
        model("llama2-7b", "served", *INT8_KV),
        [Cell(SERVED, "7B int8 KV, served", 62, 61.4, more=True)],
        80,
    ),
    Run(
        "7b-fp8-int8-kv",
        model("llama2-7b", "served", *FP8, *INT8_KV),
        [Cell(SERVED, "7B fp8 weights and int8 KV, served", 74, 65.3, more=True)],
        80,
    ),
    Run(
        "qwen3-30b-a3b",
        model("qwen3-30b-a3b", "decode,prefill", *CONTEXTS, "--prefill", "1x8192", "16x2048"),
        [
            Cell("decode 1 x 1024", "Qwen3-30B-A3B decode, 1 sequence"),
            Cell("decode 16 x 1024", "Qwen3-30B-A3B decode, 16"),
            Cell("decode 64 x 1024", "Qwen3-30B-A3B decode, 64"),
            Cell("decode 256 x 1024", "Qwen3-30B-A3B decode, 256"),
            Cell("prefill 1 x 8192: rate", "Qwen3-30B-A3B prefill 8192", more=True),
        ],
        90,
    ),
    Run(
        "start",
        ["tools.bench.start_time", "--shape", "llama2-7b", "--times", "2"],
        [
            Cell("start to ready 1", "7B start to ready, the first time", None, 25, 75),
            Cell("start to ready 2", "7B start to ready, compiled before", 8, 8, 60),
        ],
        110,
    ),
]


def whole(shape: str, title: str, *flags: str, parts: str = "decode,prefill", prefill: str = "1x8192") -> Run:
    cells = [
        Cell(f"decode {rows} x 1024", f"{title} decode, {rows} sequence{'s' * (rows > 1)}") for rows in (1, 16, 64, 256)
    ]
    cells += [
        Cell(f"prefill {prefill.replace('x', ' x ')}: rate", f"{title} prefill {prefill}", more=True),
        Cell("prefill 16 x 2048: rate", f"{title} prefill 16x2048", more=True),
        Cell(SERVED, f"{title} served", more=True),
    ]
    command = model(shape, parts, *CONTEXTS, "--prefill", prefill, "16x2048", *flags)
    return Run(shape, command, cells if "served" in parts else cells[:-1], 170)


EXPERTS = [
    whole("gpt-oss-20b", "gpt-oss-20b (MXFP4)", parts="decode,prefill,served"),
    whole("qwen3-30b-a3b-fp8", "Qwen3-30B-A3B FP8"),
    whole("qwen3.5-35b-a3b", "Qwen3.5-35B-A3B"),
]
SMOKE = [
    Run(
        "tiny",
        ["tools.bench.model", "--smoke", "--shape", "tiny-hybrid", "--parts", "decode,prefill,served"],
        [
            Cell("decode 4 x 32", "tiny decode", 1e9),
            Cell("prefill 2 x 64: rate", "tiny prefill", 1e9, more=True),
            Cell(SERVED, "tiny served", more=True),
        ],
    ),
]
TABLES = {"dense": DENSE, "experts": EXPERTS, "smoke": SMOKE}


class Result(NamedTuple):
    run: Run
    figures: list[Figure]
    ended: str
    """How the run failed; empty if it succeeded."""
    seconds: float


def execute(run: Run, seconds: float, log: Path) -> Result:
    """Runs a tool for at most this long. Appends its output to the log."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *run.command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | run.environment,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            ended = "" if code == 0 else "this machine lacks what it needs" if code == SKIPPED else f"exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"ended after {seconds:.0f} s"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                time.sleep(PAUSE)
        output.seek(0)
        text = output.read()
    with log.open("a") as file:
        file.write(f"\n==== {run.name}: {' '.join(run.command)}\n{text}")
    return Result(run, figures_in(text), ended, time.perf_counter() - began)


def figures_in(text: str) -> list[Figure]:
    """The figures among a tool's lines."""
    found = []
    for line in text.splitlines():
        if line.startswith('{"figure"'):
            try:
                found.append(json.loads(line))
            except ValueError:  # the tool ended within the line
                continue
    return found


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def markdown(results: list[Result], left_out: list[str]) -> str:
    lines = [
        "| figure | measured | unit | share of the limit | before | better peer | target | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for cell in result.run.cells:
            row = _row(result, cell.figure) or {}
            value = row.get("value")
            share = f"{row['share']:.0%}" if row.get("share") is not None else ""
            met = {None: "", True: "yes", False: "**no**"}[None if value is None else cell.met(value)]
            columns = [cell.title, number(value) or "-", str(row.get("unit", "")), share]
            columns += [*map(number, (cell.before, cell.peer, cell.target)), met]
            lines.append(f"| {' | '.join(columns)} |")
    lines.append("")
    for result in results:
        about = [f"{one.get('value')} {one.get('unit')}" for name in ABOUT if (one := _row(result, name))]
        words = [f"{result.run.name}: {result.seconds:.0f} s", *filter(None, [result.ended]), *about]
        lines.append(f"- {', '.join(words)}")
    lines += [f"- {name}: left out, there was no time" for name in left_out]
    return "\n".join(lines) + "\n"


def _row(result: Result, name: str) -> Figure | None:
    return next((row for row in result.figures if row["figure"] == name), None)


def write(stem: Path, results: list[Result], left_out: list[str]) -> None:
    rows = [{"run": one.run.name, "ended": one.ended, **row} for one in results for row in one.figures]
    stem.with_name(stem.name + ".json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    stem.with_name(stem.name + ".md").write_text(markdown(results, left_out), "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, table="smoke")
    parser.add_argument("--table", choices=TABLES, default="dense")
    parser.add_argument("--only", nargs="+", default=[], help="names of runs, or parts of them")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all runs together")
    parser.add_argument("--out", type=Path, help="path without suffix")
    flags = parser.parse(argv)
    began = time.perf_counter()
    runs = [run for run in TABLES[flags.table] if not flags.only or any(part in run.name for part in flags.only)]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as place:
        stem = flags.out or Path(place) / flags.table
        for at, run in enumerate(runs):
            left = 60 * flags.minutes - (time.perf_counter() - began)
            if left < SHORTEST:
                break
            results.append(execute(run, min(run.most, left), stem.with_name(stem.name + ".log")))
            say(f"{run.name}: {results[-1].seconds:.0f} s {results[-1].ended}")
            write(stem, results, [one.name for one in runs[at + 1 :]])
        print(markdown(results, [one.name for one in runs[len(results) :]]))
    figures = Figures()
    figures.add("figures", sum(len(one.figures) for one in results))
    return 0 if any(one.figures for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
