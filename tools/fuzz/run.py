"""Fuzzes, guided by coverage, all code that takes bytes from outside its process.

    python -m tools.fuzz.run [--minutes 30] [--targets body,http] [--corpus DIR] [--jobs N]
    python -m tools.fuzz.run --targets body --again FILE...       # runs inputs that were found once more

Each target (targets.py) runs under libFuzzer, by atheris for Python and by clang for C, in a process of its own with a
limit of memory and of time for one input; --minutes is for all of them together, times --jobs. The C ring is built with
AddressSanitizer and UndefinedBehaviorSanitizer. Inputs that crash or hang are written to DIR/TARGET/found, and the
target goes on. The corpus stays in DIR for the next run.

Prints a table. Exit code 1 if anything was found, 77 if the machine lacks something.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.fuzz import build
from tools.fuzz.libfuzzer import Row, Watch
from tools.fuzz.targets import TARGETS, Target
from tools.harness.command_line import ToolParser, skip, words
from tools.harness.figures import say

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("target", "seconds", "runs", "corpus", "edges", "features", "last fifth", "slowest ms", "crashes", "hangs")


def table(rows: list[Row]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [row.name, f"{row.seconds:.0f}", row.runs, row.corpus, row.edges, row.features, f"+{row.late}"]
        cells += [f"{row.slowest:.1f}", row.crashes, row.hangs]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def fuzz(watch: Watch, targets: list[Target], seconds: float, jobs: int) -> list[Row]:
    """Runs all targets, `jobs` at a time, each for its share of the time."""
    whole = sum(target.share for target in targets)

    def one(target: Target) -> Row:
        row = watch.run(target, max(seconds * jobs * target.share / whole, 2.0))
        say(f"{row.name}: {row.runs} runs, {row.features} features, {len(row.found)} found")
        return row

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, targets))


def again(watch: Watch, target: Target, files: list[str]) -> int:
    command, environment = watch.command(target, ["-timeout=5", *files])
    return subprocess.run(command, env=environment).returncode


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, minutes=0.05, targets=["ring_native", "url"])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--targets", type=words, default=list(TARGETS), help="names, separated by commas")
    parser.add_argument("--corpus", type=Path, default=ROOT / ".cache" / "fuzz")
    parser.add_argument("--jobs", type=int, default=1, help="targets that run at a time")
    parser.add_argument("--again", nargs="+", metavar="FILE", help="run these inputs of the one target once")
    flags = parser.parse(argv)
    if unknown := [name for name in flags.targets if name not in TARGETS]:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if flags.again and len(flags.targets) != 1:
        parser.error("--again is for one target")
    targets = [TARGETS[name] for name in flags.targets]
    if flags.smoke:
        targets = [one for one in targets if not build.missing(one.native, one.ring)] or targets
    if lacking := sorted({what for one in targets if (what := build.missing(one.native, one.ring))}):
        skip(f"missing: {'; '.join(lacking)}")
    with tempfile.TemporaryDirectory() as folder:
        extension = build.extension(Path(folder)) if any(one.ring == "c" for one in targets) else None
        program = build.native(Path(folder)) if any(one.native for one in targets) else None
        watch = Watch(Path(folder, "corpus") if flags.smoke else flags.corpus.resolve(), extension, program)
        if flags.again:
            return again(watch, targets[0], flags.again)
        rows = fuzz(watch, targets, 60 * flags.minutes, max(flags.jobs, 1))
    print(table(rows))
    for row in rows:
        for path in row.found:
            print(f"{row.name}: {path}")
        if row.trouble:
            print(f"{row.name}: {row.trouble}")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
