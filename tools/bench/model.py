"""Measures one model on this machine, through scheduler and executor, with one start of the engine.

    python -m tools.bench.model --shape llama3-8b [--parts decode,prefill,served] [--json FILE] [flags of serve]
    python -m tools.bench.model --model-dir DIR --parts profile --num-requests 2000

Parts: decode: steps of sequences that never end, with one step planned ahead, as in a server. prefill: the time until
each of some prompts has its first token. served: the workload of `tools.bench.offline`. profile: the same, with the
device's time in 200 steady steps by class of kernel. Shapes have random weights. Shares are of this GPU's measured
ceilings (tools/harness/ceilings.py) for the bytes and operations of the steps (tools/harness/step_limits.py).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from lightllm_mp.engine.build import BuiltEngine
from lightllm_mp.messages import Sampling
from lightllm_mp.models.decoder.kv_pool import KVPool
from tools.bench.offline import built, report, requests, serve
from tools.bench.steps import SteadyDecode
from tools.harness.ceilings import ceilings
from tools.harness.command_line import ToolParser, words
from tools.harness.figures import Figures
from tools.harness.kernel_times import Recorder
from tools.harness.shapes import NAMES, write_config
from tools.harness.step_limits import StepLimits

PARTS = ("decode", "prefill", "served", "profile")
LARGEST_BYTE = 64
"""Bounds of random keys and values in 8 bits: no such byte is infinite."""
SHARE_OF_ONE = 1 / 64
"""Scale of such keys and values."""


def pairs(text: str) -> tuple[int, int]:
    """The type of a flag like 16x2048."""
    count, length = text.split("x")
    return int(count), int(length)


def fill(kv: KVPool) -> None:
    """Random keys and values, because zeros would give times that are too good."""
    for part in kv.data if kv.data.dim() > 1 else [kv.data]:
        if part.dtype.itemsize == 1:
            part.view(torch.uint8).random_(0, LARGEST_BYTE)
        else:
            part.normal_()
    for layer in kv.layers.values():
        for scales in (layer.key_scales, layer.value_scales):
            if scales is not None:
                scales.fill_(SHARE_OF_ONE)


def decode(figures: Figures, engine: BuiltEngine, limits: StepLimits, flags: Namespace) -> None:
    executor = engine.executor
    for batch, context in flags.decode:
        title, most = f"decode {batch} x {context}", batch * (context + 2 * flags.steps + 4)
        if most > executor.kv.slots or batch >= executor.rows:
            figures.add(f"{title}: does not fit", most, "tokens")
            continue
        executor.reset()
        steady = SteadyDecode(executor, batch, context, Sampling(seed=1, temperature=0.0))
        steady.run(flags.steps)
        took = statistics.median(steady.run(flags.steps))
        middle = [context + 3 * flags.steps // 2] * batch
        least = limits.seconds(ceilings(), [1] * batch, middle)
        figures.add_limited(title, took * 1e3, "ms", least * 1e3, less_is_better=True)
    executor.reset()


def prefill(figures: Figures, engine: BuiltEngine, limits: StepLimits, flags: Namespace) -> None:
    most = engine.facts.engine
    for count, length in flags.prefill:
        title = f"prefill {count} x {length}"
        if length > most.max_input or length > most.kv_tokens:
            figures.add(f"{title}: does not fit", length, "tokens")
            continue
        todo = requests(count, str(length), most.vocab_size, answers="1")
        runs = [serve(engine, todo) for _ in range(1 + (2 if count * length <= flags.repeated else 1))][1:]
        run = min(runs, key=lambda one: one.seconds)
        least = run.least(limits)
        figures.add_limited(f"{title}: seconds", run.seconds, "s", least, less_is_better=True)
        figures.add_limited(f"{title}: rate", count * length / run.seconds, "tokens/s", count * length / least)


def served(figures: Figures, engine: BuiltEngine, limits: StepLimits, flags: Namespace) -> None:
    todo = requests(flags.num_requests, flags.lengths, engine.facts.engine.vocab_size)
    report(figures, serve(engine, todo, flags.rate), len(todo), limits, "served: ")


def profiled(figures: Figures, engine: BuiltEngine, limits: StepLimits, flags: Namespace) -> None:
    count = min(flags.num_requests, flags.profile_requests)
    todo = requests(count, flags.lengths, engine.facts.engine.vocab_size)
    recorder = Recorder(flags.profile_from, flags.profile_steps)
    serve(engine, todo, flags.rate, recorder)
    recorder.stop()
    recorder.report(figures, "profile")


DO = {"decode": decode, "prefill": prefill, "served": served, "profile": profiled}


def main(argv: Sequence[str] | None = None) -> int:
    smoke = {"parts": PARTS, "decode": [(4, 32)], "prefill": [(2, 64)], "steps": 3, "num_requests": 6}
    smoke |= {"lengths": "uniform:8-32", "rate": 0.0, "profile_from": 3, "profile_steps": 5}
    parser = ToolParser(__doc__, **smoke)
    parser.add_argument("--shape", choices=NAMES, help="a model with random weights")
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--parts", type=words, default=["decode", "prefill", "served"], help=",".join(PARTS))
    parser.add_argument("--decode", type=pairs, nargs="+", default=[(1, 1024), (16, 1024), (64, 1024), (256, 1024)])
    parser.add_argument("--prefill", type=pairs, nargs="+", default=[(16, 2048), (1, 512)])
    parser.add_argument("--repeated", type=int, default=70_000, help="tokens up to which a prefill is run twice")
    parser.add_argument("--steps", type=int, default=64, help="of each decode figure, after as many that do not count")
    parser.add_argument("--num-requests", type=int, default=2000)
    parser.add_argument("--lengths", default="sharegpt", help="of prompts and answers, as of `lightllm-mp bench`")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second; 0: all at once")
    parser.add_argument("--profile-requests", type=int, default=1200, help="at the most")
    parser.add_argument("--profile-from", type=int, default=250, help="steps before those that are profiled")
    parser.add_argument("--profile-steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    flags, engine_flags = parser.parse_some(argv)
    if flags.smoke and not flags.model_dir:
        flags.shape = flags.shape or "tiny"
        engine_flags = [*engine_flags, "--max-total-token-num", "2000", "--running-max-req-size", "8"]
    if bool(flags.shape) == bool(flags.model_dir):
        parser.error("one of --shape and --model-dir is needed")
    with tempfile.TemporaryDirectory() as place:
        if flags.shape:
            flags.model_dir = write_config(flags.shape, Path(place))
            engine_flags = ["--load-format", "dummy", *engine_flags]
        figures, at = Figures(), ceilings()
        figures.add("read", at.bandwidth / 1e12, "TB/s")
        figures.add("product, bfloat16", at.product / 1e12, "TFLOP/s")
        figures.add("product, fp8", at.product_fp8 / 1e12, "TFLOP/s")
        engine, limits = built(flags.model_dir, engine_flags, figures)
        fill(engine.executor.kv)
        for part in flags.parts:
            DO[part](figures, engine, limits, flags)
    figures.table()
    figures.write(flags.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
