"""Faults of every kind in every actor of a running server under mixed load: what is lost, what differs, what is left.

    python scripts/chaos.py [--hooks] [--seconds 180] [--clients 8]        # the default model
    python scripts/chaos.py --images [--hooks] [--ranks 2]                 # a tiny model that sees, images in the load
    python scripts/chaos.py --mock [--ranks 2] [--total 200] [--json FILE] # instant tokens, more faults

First every request is answered by the undisturbed server. Then --clients clients ask without a pause (streams, whole
answers, long prompts, n, logprobs, stop strings, images, prompts and images that are refused, clients that leave) while
one fault after the other hits, until --seconds are over or --total have: kill (SIGKILL), stop (SIGSTOP, until the
watchdog acts), term (SIGTERM, which an actor ignores), memory (RLIMIT_AS at what it has), and with --hooks or --mock,
raise (an exception in a handler), exit 0, hang, corrupt (garbage to a peer) and slow start. The next fault comes when
the server is healthy again and some requests have ended. Every answer must be the undisturbed one; a connection may
break where http died, and is tried again. At the end no KV token, message, lease, image file, descriptor or process may
be left.

Prints the matrix and one line of totals; --json writes every fault and every row as JSON lines. Exit code 1 if anything
was lost, different or left behind. `effective` faults are those after which a process was replaced; `hit` requests were
live when the fault came. A request is counted in the row of the last fault that it lived through.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TextIO

if __name__ == "__main__":  # helpers stand beside this file, mock actors in the tests
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.faults.report import Report
from scripts.faults.run import UNBOUNDED, Chaos, check_end
from scripts.faults.server import Kind, Setting, running
from scripts.faults.watch import links

CLIENTS = {"default": 8, "mock": 24, "images": 12}
WATCHDOG = {"default": 2.0, "mock": 1.0, "images": 1.0}
"""Seconds; a step of the default model takes longer than one of the others."""


def chaos(
    setting: Setting,
    *,
    seconds: float,
    clients: int,
    seed: int,
    actors: tuple[str, ...] = (),
    faults: tuple[str, ...] = (),
    total: int = UNBOUNDED,
    stream: TextIO | None = None,
) -> Report:
    """A whole run, from the start of a server to its end. Empty `actors` or `faults`: all."""
    report = Report(stream)
    shared, own = set(os.listdir("/dev/shm")), len(links("self"))
    with running(setting) as (server, folder):
        run = Chaos(server, folder, setting, report, clients, seconds, seed, actors, faults, total)
        asyncio.run(run.run())
        check_end(server, run.seen, report)
    if left := set(os.listdir("/dev/shm")) - shared:
        report.problem(f"shared memory is left: {sorted(left)}")
    if len(links("self")) > own:
        report.problem(f"this process has {len(links('self'))} descriptors, not {own}")
    return report


def setting_of(flags: argparse.Namespace) -> Setting:
    kind: Kind = "mock" if flags.mock else "images" if flags.images else "default"
    watchdog = flags.watchdog or WATCHDOG[kind]
    return Setting(kind, flags.hooks or flags.mock, flags.ranks, watchdog, log_level=flags.log_level)


def clients_of(flags: argparse.Namespace) -> int:
    return flags.clients or CLIENTS[setting_of(flags).kind]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What chaos and soak have in common."""
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--mock", action="store_true", help="workers without a model, instant tokens")
    kinds.add_argument("--images", action="store_true", help="a tiny model that sees, and images in the load")
    parser.add_argument("--hooks", action="store_true", help="faults inside the actors of a real model too")
    parser.add_argument("--ranks", type=int, default=1, help="workers")
    parser.add_argument("--clients", type=int, default=0, help="default: 24 with --mock, 12 with --images, else 8")
    parser.add_argument("--total", type=int, default=UNBOUNDED, help="end after so many faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watchdog", type=float, default=0.0, help="seconds; default 1, 2 with the default model")
    parser.add_argument("--actors", default="", help="only these, comma-separated")
    parser.add_argument("--faults", default="", help="only these, comma-separated")
    parser.add_argument("--json", default="", metavar="FILE", help="JSON lines")
    parser.add_argument("--log-level", default="critical", help="of the server")


def words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180.0)
    add_flags(parser)
    flags = parser.parse_args()
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open(flags.json, "w")) if flags.json else None
        report = chaos(
            setting_of(flags),
            seconds=flags.seconds,
            clients=clients_of(flags),
            seed=flags.seed,
            actors=words(flags.actors),
            faults=words(flags.faults),
            total=flags.total,
            stream=stream,
        )
        report.show()
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
