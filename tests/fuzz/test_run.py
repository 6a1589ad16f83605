"""tools.fuzz.run itself: the fuzzer of the C ring finds bugs that are put into a copy of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tools.fuzz import build
from tools.fuzz.targets import TARGETS

BUGS = {
    "a record that reaches past the end": " || size > in->capacity - offset",
    "a record of more than was published": "size > tail - head || ",
    "a record longer than any": " && length <= in->capacity / 8",
    "more records than were published": "*tail - *head > in->capacity || ",
}


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.fuzz.run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang") is None, reason="no clang")
@pytest.mark.parametrize("bug", [None, *BUGS])
def test_the_seeds_of_the_ring_find_what_a_missing_check_lets_through(tmp_path: Path, bug: str | None) -> None:
    header = (build.SHM / "ring.h").read_text("utf-8")
    check = BUGS[bug] if bug else ""
    assert check in header
    (tmp_path / "ring.h").write_text(header.replace(check, "", 1))
    shutil.copy(build.HERE / "ring.c", tmp_path)
    sanitizers = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    command = ["clang", "-std=c11", "-g", "-O1", *sanitizers, "ring.c", "-o", "ring"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for number, seed in enumerate(TARGETS["ring_native"].seeds()):
        (seeds / str(number)).write_bytes(seed)
    result = subprocess.run(
        ["./ring", *map(str, seeds.iterdir())], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode == 0) == (bug is None), result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(bool(build.missing(native=True, ring="c")), reason="no clang")
def test_a_short_run_and_its_table(tmp_path: Path) -> None:
    result = fuzz("--minutes", "0.05", "--targets", "ring_native", "--corpus", str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    name, _, runs, corpus, edges, *rest = (cell.strip() for cell in result.stdout.splitlines()[2].strip("|").split("|"))
    assert name == "ring_native"
    assert min(int(runs), int(corpus), int(edges)) > 10
    assert rest[-2:] == ["0", "0"]
    again = fuzz("--targets", "ring_native", "--corpus", str(tmp_path), "--again", *map(str, _some(tmp_path)))
    assert again.returncode == 0


def _some(folder: Path) -> list[Path]:
    return sorted((folder / "ring_native" / "corpus").iterdir())[:3]


def test_what_is_wrong_is_said() -> None:
    assert "no such target: nonsense" in fuzz("--targets", "nonsense").stderr
    environment = {**os.environ, "PATH": ""}
    command = [sys.executable, "-m", "tools.fuzz.run", "--targets", "ring_native"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, cwd=ROOT)
    assert (result.returncode, "missing: clang" in result.stderr) == (77, True)
