"""Runs one target for a while in a process of its own and reads libFuzzer's output."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tools.fuzz import build
from tools.fuzz.targets import Target

INPUT_SECONDS = 5
"""A longer input is a hang."""
MEGABYTES = 1024
"""More memory is a crash, without sanitizers."""
SANITIZED_MEGABYTES = 2048
AGAIN = 20
"""How often a target is started again after a finding ended it."""
LATE = 120.0
"""Seconds beyond its time that a process gets to start and stop before it is killed."""

_STATUS = re.compile(r"^#(\d+)\s+\w+.*? cov: (\d+) ft: (\d+) corp: (\d+)/")
_SLOWEST = re.compile(r"^slowest input so far: (\d+) us")
_RUNS = re.compile(r"^(?:#(\d+)\s|stat::number_of_executed_units: (\d+))")


@dataclass
class Row:
    """The result of one target."""

    name: str
    seconds: float = 0.0
    """Seconds without the starts of processes."""
    runs: int = 0
    corpus: int = 0
    edges: int = 0
    features: int = 0
    late: int = 0
    """Features found in the last fifth of the time."""
    slowest: float = 0.0
    """Milliseconds of CPU time."""
    crashes: int = 0
    hangs: int = 0
    trouble: str = ""
    """The reason, if there is no result."""
    found: list[Path] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.crashes or self.hangs or self.trouble)


class Watch:
    """`folder`: corpora, found inputs and logs, by target. `extension` and `program`: builds of the ring."""

    def __init__(self, folder: Path, extension: Path | None, program: Path | None) -> None:
        self._folder, self._extension, self._program = folder, extension, program

    def run(self, target: Target, seconds: float) -> Row:
        """Fuzzes for this time; keeps each input that ends a process, and goes on with another process."""
        row = Row(target.name)
        folder = self._folder / target.name
        (folder / "corpus").mkdir(parents=True, exist_ok=True)
        (folder / "found").mkdir(exist_ok=True)
        self._write_seeds(target, folder)
        before = set((folder / "found").iterdir())
        history: list[tuple[float, int]] = []
        for _ in range(AGAIN):
            if seconds - row.seconds < 1 or not self._once(target, folder, seconds - row.seconds, row, history):
                break
        earlier = [features for moment, features in history if moment <= 0.8 * row.seconds]
        row.late = row.features - max(earlier, default=0)
        row.found = sorted(set((folder / "found").iterdir()) - before)
        row.hangs = sum(path.name.startswith("timeout-") for path in row.found)
        row.crashes = len(row.found) - row.hangs
        return row

    def _write_seeds(self, target: Target, folder: Path) -> None:
        for number, seed in enumerate(target.seeds()):
            (folder / "corpus" / f"seed-{number}").write_bytes(seed)
        if words := target.words():
            quoted = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in words)
            (folder / "words").write_text("".join(f'"{word}"\n' for word in quoted))

    def _once(self, target: Target, folder: Path, seconds: float, row: Row, history: list[tuple[float, int]]) -> bool:
        """Runs one process. True: it found something and ended, and another one may go on."""
        sanitized = target.native or target.ring == "c"
        options = [
            f"-max_total_time={max(int(seconds), 1)}",
            f"-timeout={INPUT_SECONDS}",
            f"-rss_limit_mb={SANITIZED_MEGABYTES if sanitized else MEGABYTES}",
            f"-max_len={target.longest}",
            f"-artifact_prefix={folder}/found/",
            "-print_final_stats=1",
            "-verbosity=1",
        ]
        if (folder / "words").exists():
            options.append(f"-dict={folder}/words")
        command, environment = self.command(target, [*options, str(folder / "corpus")])
        started, begun, done, tail = time.monotonic(), 0.0, 0, ""
        with (folder / "log").open("a") as log:
            process = subprocess.Popen(
                command, env=environment, stderr=subprocess.PIPE, stdout=log, text=True, errors="replace"
            )
            assert process.stderr is not None
            killer = threading.Timer(seconds + LATE, process.kill)
            killer.start()
            for line in process.stderr:
                log.write(line)
                tail = (tail + line)[-1500:]
                if not begun and line.startswith("INFO: seed corpus"):
                    begun = time.monotonic()
                if status := _STATUS.match(line):
                    row.edges, row.features, row.corpus = (int(status[i]) for i in (2, 3, 4))
                    history.append((row.seconds + time.monotonic() - begun, row.features))
                if runs := _RUNS.match(line):
                    done = max(done, int(runs[1] or runs[2]))
                if slowest := _SLOWEST.match(line):
                    row.slowest = max(row.slowest, int(slowest[1]) / 1e3)
            process.wait()
            killer.cancel()
            process.stderr.close()
        row.seconds += time.monotonic() - (begun or started)
        row.runs += done
        if process.returncode == 0:
            return False
        if not any(name in tail for name in ("Test unit written to", "artifact_prefix=")):
            row.trouble = f"it ended with {process.returncode}: {tail[-300:]}"
            return False
        return True

    def command(self, target: Target, options: list[str]) -> tuple[list[str], dict[str, str]]:
        """The command and the environment of a target."""
        environment = {**os.environ, "LIGHTLLM_MP_RING": target.ring, "OMP_NUM_THREADS": "1"}
        if target.native:
            return [str(self._program), *options], environment
        extension = "-"
        if target.ring == "c":
            # The interpreter itself is not built for leak detection; its allocator would hide overruns.
            environment |= {"LD_PRELOAD": str(build.preload()), "PYTHONMALLOC": "malloc"}
            environment["ASAN_OPTIONS"] = "detect_leaks=0:allocator_may_return_null=1"
            extension = str(self._extension)
        return [sys.executable, "-m", "tools.fuzz.child", target.name, extension, *options], environment
