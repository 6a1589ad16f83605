"""Injects faults into every actor of a server under mixed load and reports lost, different and leaked things.

    python -m tools.faults.chaos [--hooks] [--seconds 180] [--clients 8]         # the default model
    python -m tools.faults.chaos --images [--hooks] [--ranks 2]                  # a tiny model that sees, images too
    python -m tools.faults.chaos --mock [--ranks 2] [--total 200] [--json FILE]  # instant tokens, more faults
    python -m tools.faults.chaos --embedding [--hooks]  # a tiny Qwen3-Embedding; --encoder: a tiny BERT
    python -m tools.faults.chaos --images --hooks --seconds 1800 --soak NAME     # does anything grow?
    python -m tools.faults.chaos --faults kill --actors tokenizer,router,detokenizer,worker0 --total 40 --clients 16

First the undisturbed server answers every request. Then --clients clients ask without a pause (streams, whole answers,
long prompts, n, logprobs, stop strings, images, refused requests, clients that leave; chats, tool calls that a grammar
demands, JSON schemas, lists of prompts, messages, responses; or embeddings) while one fault after the other hits, until
--seconds are over or --total have: kill (SIGKILL), stop (SIGSTOP, until the watchdog acts), term (SIGTERM, which an
actor ignores), memory (RLIMIT_AS at what it has), and with --hooks or --mock, raise (an exception in a handler), exit
0, hang, corrupt (garbage to a peer) and slow start. The next fault comes when the server is healthy again and some
requests have ended. Every answer must be the undisturbed one; where http died, a client reconnects for the rest, or
sends the request again if http did not know it yet or it cannot be resumed (a list). At the end no KV token, message,
lease, image file, descriptor or process may be left.

Prints the matrix and one line of totals; --json writes every fault and every row as JSON lines. Exit code 1 if anything
was lost, different or left behind. `effective` faults are those after which a process was replaced; `hit` requests were
live when the fault came. A request counts in the row of the last fault that it lived through. The longest pause is the
worst gap between two tokens of a stream in a round: median and maximum over the rounds.

--soak samples every second the resident memory and the descriptors of each process, the shared memory (sizes of the
memory files that they have open, each once), and KV tokens, requests and lanes from /metrics. NAME.png shows them, and
NAME.json holds the slope per hour of each series, the matrix' total, and whether all is flat. A series is flat if it
grows by less than a small tolerance after the first fifth of the run, or by less than its noise. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from tools.faults.experiment import UNBOUNDED, Experiment, check_end
from tools.faults.plot import plot
from tools.faults.report import Report
from tools.faults.samples import Samples, sample_for_ever
from tools.faults.server import Kind, Setting, running
from tools.harness.command_line import ToolParser, words
from tools.harness.procfs import descriptors

CLIENTS = {"default": 8, "mock": 24, "images": 12, "embedding": 8, "encoder": 8}
KINDS: dict[Kind, str] = {
    "mock": "workers without a model, instant tokens",
    "images": "a tiny model that sees, and images in the load",
    "embedding": "a tiny Qwen3-Embedding, and bodies of many inputs in the load",
    "encoder": "a tiny BERT, and the same load",
}
"""Instead of the default model."""
WATCHDOG = {"default": 2.0, "mock": 1.0, "images": 1.0, "embedding": 1.0, "encoder": 1.0}
"""Watchdog in seconds; a step of the default model takes longer than one of the others."""


def chaos(
    setting: Setting,
    *,
    seconds: float,
    clients: int,
    seed: int,
    actors: Sequence[str] = (),
    faults: Sequence[str] = (),
    total: int = UNBOUNDED,
    stream: TextIO | None = None,
    samples: Samples | None = None,
) -> Report:
    """A whole run, from the start of a server to its end. Empty `actors` or `faults`: all."""
    report = Report(stream)
    shared, own = set(os.listdir("/dev/shm")), len(descriptors("self"))
    with running(setting) as (server, folder):
        run = Experiment(server, folder, setting, report, clients, seconds, seed, actors, faults, total)
        asyncio.run(run.run() if samples is None else sampled(run, samples))
        check_end(server, run.seen, report)
    if left := set(os.listdir("/dev/shm")) - shared:
        report.problem(f"shared memory is left: {sorted(left)}")
    if len(descriptors("self")) > own:
        report.problem(f"this process has {len(descriptors('self'))} descriptors, not {own}")
    return report


async def sampled(run: Experiment, samples: Samples) -> None:
    """Runs the whole experiment and samples the server."""
    watching = asyncio.create_task(sample_for_ever(run.server.pid, run.metrics, samples))
    try:
        await run.run()
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def show_samples(samples: Samples, report: Report, name: str) -> bool:
    """Write NAME.png and NAME.json, and return whether all is flat."""
    summary = samples.summary()
    steep = [series for series, values in summary.items() if not values["flat"]]
    title = f"{samples.times[-1] / 60:.1f} min, {len(report.rounds)} faults, {len(report.outcomes)} requests"
    plot(samples, [round.injected - samples.begin for round in report.rounds], title, Path(f"{name}.png"))
    result = {"flat": not steep, "not_flat": steep, "good": report.good, "total": report.total(), "series": summary}
    Path(f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    for series, values in summary.items():
        print(
            f"{series:<42} {values['least']:>9.1f} .. {values['most']:>9.1f}"
            f"  slope per hour {values['slope_per_hour']:>10.1f} +- {values['standard_error_per_hour']:>8.1f}"
            f"  {'flat' if values['flat'] else 'GROWS'}"
        )
    verdict = "all flat" if not steep else f"NOT FLAT: {', '.join(steep)}"
    print(f"{len(samples.times)} samples, {name}.png, {name}.json: {verdict}", flush=True)
    return not steep


def setting_of(flags: argparse.Namespace) -> Setting:
    kind: Kind = flags.kind or "default"
    watchdog = flags.watchdog or WATCHDOG[kind]
    return Setting(kind, flags.hooks or kind == "mock", flags.ranks, watchdog, log_level=flags.log_level)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, kind="mock", total=3, clients=4, faults=["kill", "corrupt"], actors=["router"])
    kinds = parser.add_mutually_exclusive_group()
    for kind, text in KINDS.items():
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=text)
    parser.add_argument("--hooks", action="store_true", help="faults inside the actors of a real model too")
    parser.add_argument("--ranks", type=int, default=1, help="workers")
    parser.add_argument("--clients", type=int, default=0, help="default: 24 with --mock, 12 with --images, else 8")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--total", type=int, default=UNBOUNDED, help="end after so many faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watchdog", type=float, default=0.0, help="seconds; default 1, 2 with the default model")
    parser.add_argument("--actors", type=words, default=[], help="only these, comma-separated")
    parser.add_argument("--faults", type=words, default=[], help="only these, comma-separated")
    parser.add_argument("--json", default="", metavar="FILE", help="JSON lines")
    parser.add_argument("--soak", default="", metavar="NAME", help="sample what the server holds")
    parser.add_argument("--log-level", default="critical", help="of the server")
    flags = parser.parse(argv)
    setting, samples = setting_of(flags), Samples() if flags.soak else None
    with contextlib.ExitStack() as stack:
        report = chaos(
            setting,
            seconds=flags.seconds,
            clients=flags.clients or CLIENTS[setting.kind],
            seed=flags.seed,
            actors=flags.actors,
            faults=flags.faults,
            total=flags.total,
            stream=stack.enter_context(open(flags.json, "w")) if flags.json else None,
            samples=samples,
        )
        report.show()
    flat = samples is None or show_samples(samples, report, flags.soak)
    return 0 if report.good and flat else 1


if __name__ == "__main__":
    sys.exit(main())
