"""Measures an idle server: CPU, wake-ups and memory of each process.

    python -m tools.bench.idle [--seconds 20] [flags of lightllm-mp serve]

Starts a server (of the default model unless a flag names another), waits until it is quiet, and reads /proc before and
after an interval. CPU is in percent of one core. Memory is private memory, without shared lanes and arenas.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.harness.command_line import ToolParser
from tools.harness.models import write_tiny_model
from tools.harness.procfs import actors, context_switches, cpu_seconds, private_mib
from tools.harness.serving import serving


def usage(pid: int) -> tuple[float, int]:
    return cpu_seconds(pid), context_switches(pid)


def measure(supervisor: int, seconds: float) -> None:
    pids = actors(supervisor)
    before = {name: usage(pid) for name, pid in pids.items()}
    time.sleep(seconds)
    total = 0.0
    print(f"{'process':<12} {'CPU %':>7} {'switches/s':>11} {'private MiB':>12}")
    for name, pid in pids.items():
        cpu, switches = (after - start for after, start in zip(usage(pid), before[name], strict=True))
        total += 100 * cpu / seconds
        print(f"{name:<12} {100 * cpu / seconds:>7.2f} {switches / seconds:>11.1f} {private_mib(pid):>12.0f}")
    print(f"{'all':<12} {total:>7.2f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, seconds=0.5, settle=0.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--settle", type=float, default=3.0, help="seconds after the start that do not count")
    flags, serve = parser.parse_some(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = ["--model-dir", str(write_tiny_model(Path(folder)))] if flags.smoke else []
        with serving("--max-total-token-num", "20000", more=model + serve) as server:
            time.sleep(flags.settle)
            measure(server.pid, flags.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
