"""Coverage-guided fuzzing of everything that takes bytes from outside of its process.

    python scripts/fuzz.py [--minutes 30] [--targets body,http] [--corpus DIR] [--jobs N]
    python scripts/fuzz.py --targets body --again FILE...       # runs inputs that were found once more

Each target (scripts/fuzzing/targets.py) runs under libFuzzer, by atheris for Python and by clang for C, in a process of
its own with a limit of memory and of time for one input; --minutes is for all of them together, times --jobs. The C
ring is built with AddressSanitizer and UndefinedBehaviorSanitizer. Inputs that crash or hang are written to
DIR/TARGET/found, and a target that was ended by one goes on. The corpus stays in DIR and is where the next run begins.

Prints a table. Exit code 1 when anything was found, 2 when something that is needed is missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":  # the targets stand beside this file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.fuzzing import build
from scripts.fuzzing.targets import TARGETS, Target
from scripts.fuzzing.watch import Row, Watch

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("target", "seconds", "runs", "corpus", "edges", "features", "last fifth", "slowest ms", "crashes", "hangs")


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = (
            f"{row.seconds:.0f}",
            row.runs,
            row.corpus,
            row.edges,
            row.features,
            f"+{row.late}",
            f"{row.slowest:.1f}",
        )
        lines.append("| " + " | ".join(map(str, (row.name, *cells, row.crashes, row.hangs))) + " |")
    return "\n".join(lines)


def fuzz(watch: Watch, targets: list[Target], seconds: float, jobs: int) -> list[Row]:
    """All targets, `jobs` at a time, each with its share of the time."""
    whole = sum(target.share for target in targets)

    def one(target: Target) -> Row:
        row = watch.run(target, max(seconds * jobs * target.share / whole, 2.0))
        print(
            f"{row.name}: {row.runs} runs, {row.features} features, {len(row.found)} found", file=sys.stderr, flush=True
        )
        return row

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, targets))


def again(watch: Watch, target: Target, files: list[str]) -> int:
    command, environment = watch.command(target, ["-timeout=5", *files])
    return subprocess.run(command, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--targets", default=",".join(TARGETS), help="names, separated by commas")
    parser.add_argument("--corpus", type=Path, default=ROOT / ".cache" / "fuzz")
    parser.add_argument("--jobs", type=int, default=1, help="targets that run at a time")
    parser.add_argument("--again", nargs="+", metavar="FILE", help="run these inputs of the one target once")
    arguments = parser.parse_args()
    names = arguments.targets.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if arguments.again and len(names) != 1:
        parser.error("--again is for one target")
    targets = [TARGETS[name] for name in names]
    if lacking := sorted({what for one in targets if (what := build.missing(one.native, one.ring))}):
        print(f"missing: {'; '.join(lacking)}", file=sys.stderr)
        return 2
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        extension = build.extension(Path(folder)) if any(one.ring == "c" for one in targets) else None
        program = build.native(Path(folder)) if any(one.native for one in targets) else None
        watch = Watch(arguments.corpus.resolve(), extension, program)
        if arguments.again:
            return again(watch, targets[0], arguments.again)
        rows = fuzz(watch, targets, 60 * arguments.minutes, max(arguments.jobs, 1))
    print(table(rows))
    for row in rows:
        for path in row.found:
            print(f"{row.name}: {path}")
        if row.trouble:
            print(f"{row.name}: {row.trouble}")
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
