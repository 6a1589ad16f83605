"""The load and the faults of scripts/chaos.py for a long time: does anything grow?

    python scripts/soak.py [--minutes 30] [--mock | --images] [--out soak]

Every second the resident memory and the descriptors of each process, the shared memory (sizes of the memory files that
they have open, each once), and KV tokens, requests and lanes from /metrics are sampled. At the end NAME.png shows them,
and NAME.json holds the slope per hour of each series, the matrix' total, and whether all is flat. A series is flat if
it grows by less than a small tolerance after the first fifth of the run, or by less than its noise. Exit code 1 if
something is not flat, lost, different or left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.chaos import add_flags, clients_of, setting_of, words
from scripts.faults.plot import plot
from scripts.faults.report import Report
from scripts.faults.run import Chaos, check_end
from scripts.faults.samples import Samples, sample_for_ever
from scripts.faults.server import running


async def sampled(run: Chaos, samples: Samples) -> None:
    """The chaos run, watched from its first fault to its last."""
    watching = asyncio.create_task(sample_for_ever(run.server.pid, run.metrics, samples))
    try:
        await run.run()
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", default="soak", help="name of the picture and the summary, without ending")
    add_flags(parser)
    flags = parser.parse_args()
    setting, samples = setting_of(flags), Samples()
    with contextlib.ExitStack() as stack:
        report = Report(stack.enter_context(open(flags.json, "w")) if flags.json else None)
        begin = time.monotonic()
        with running(setting) as (server, folder):
            run = Chaos(
                server,
                folder,
                setting,
                report,
                clients_of(flags),
                60 * flags.minutes,
                flags.seed,
                words(flags.actors),
                words(flags.faults),
                flags.total,
            )
            begin = time.monotonic()
            asyncio.run(sampled(run, samples))
            check_end(server, run.seen, report)
        report.show()
    summary = samples.summary()
    steep = [name for name, values in summary.items() if not values["flat"]]
    title = f"{flags.minutes:g} min, {len(report.rounds)} faults, {len(report.outcomes)} requests"
    drawn = plot(samples, [round.injected - begin for round in report.rounds], title, Path(f"{flags.out}.png"))
    result = {"flat": not steep, "not_flat": steep, "good": report.good, "total": report.total(), "series": summary}
    Path(f"{flags.out}.json").write_text(json.dumps(result, indent=1) + "\n")
    for name, values in summary.items():
        state = "flat" if values["flat"] else "GROWS"
        print(
            f"{name:<42} {values['least']:>9.1f} .. {values['most']:>9.1f}"
            f"  slope per hour {values['slope_per_hour']:>10.1f} +- {values['standard_error_per_hour']:>8.1f}  {state}"
        )
    print(f"{len(samples.times)} samples, {flags.out}.png (by {drawn}), {flags.out}.json:", end=" ")
    print("all flat" if not steep else f"NOT FLAT: {', '.join(steep)}", flush=True)
    return 0 if report.good and not steep else 1


if __name__ == "__main__":
    sys.exit(main())
