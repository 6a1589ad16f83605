"""What an idle server costs: CPU, wake-ups and memory of each process.

    python scripts/measure_idle.py [--seconds 20]

Starts the default model, waits until it has settled, and reads /proc before and after. CPU in percent of one core.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from lightllm_mp import Config, launch
from lightllm_mp.config import EngineConfig, HttpConfig

TICK = os.sysconf("SC_CLK_TCK")


def processes(parent: int) -> dict[str, int]:
    found = {"supervisor": parent}
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        found[Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[3].decode()] = int(pid)
    return found


def usage(pid: int) -> tuple[float, int]:
    """CPU seconds and context switches of all threads so far."""
    cpu, switches = 0.0, 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        cpu += (int(fields[11]) + int(fields[12])) / TICK
        lines = (task / "status").read_text().splitlines()
        switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return cpu, switches


def resident(pid: int) -> float:
    """Private resident memory in MiB (shared lanes and arenas are not counted)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(lines["RssAnon"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    flags = parser.parse_args()
    config = Config(engine=EngineConfig(max_total_token_num=20_000), http=HttpConfig(port=0))
    with launch(config) as server:
        server.wait_ready()
        time.sleep(3)
        pids = processes(server.pid)
        before = {name: usage(pid) for name, pid in pids.items()}
        time.sleep(flags.seconds)
        total = 0.0
        print(f"{'process':<12} {'CPU %':>7} {'switches/s':>11} {'private MiB':>12}")
        for name, pid in pids.items():
            cpu, switches = usage(pid)
            share = 100 * (cpu - before[name][0]) / flags.seconds
            total += share
            rate = (switches - before[name][1]) / flags.seconds
            print(f"{name:<12} {share:>7.2f} {rate:>11.1f} {resident(pid):>12.0f}")
        print(f"{'all':<12} {total:>7.2f}")


if __name__ == "__main__":
    main()
