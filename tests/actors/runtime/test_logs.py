"""Every process logs one JSON object a line; a log without a reader costs lines, not time."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lightllm_mp.actors.runtime.log_output import LosingOutput, log_output
from tests.paths import ROOT

PROGRAM = """
import logging, sys, warnings
from lightllm_mp.actors.runtime.logs import set_up_logging
set_up_logging("info", json=JSON, actor="router")
log = logging.getLogger("lightllm_mp.router")
log.info("two\\nlines, %s", "caf\\xe9 \\ud800", extra={"fields": {"status": 200, "ms": 1.5}})
log.debug("not this")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("a bug")
logging.getLogger("asyncio").warning("of a library")
warnings.warn("old")
[][1]
"""


def said(program: str, **values: object) -> list[str]:
    for name, value in values.items():
        program = program.replace(name, repr(value))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stderr.splitlines()


def test_every_line_is_an_object() -> None:
    entries = [json.loads(line) for line in said(PROGRAM, JSON=True)]
    first, bug, library, warning, end = entries
    assert {"actor": "router", "level": "info", "logger": "lightllm_mp.router", "status": 200}.items() <= first.items()
    assert (first["message"], first["ms"]) == ("two\nlines, café ?", 1.5)
    assert first["time"].endswith("Z")
    assert len(first["time"]) == len("2026-01-31T12:00:00.000Z")
    assert len({entry["pid"] for entry in entries}) == 1
    assert (bug["level"], bug["message"]) == ("error", "a bug")
    assert "ZeroDivisionError" in bug["exception"]
    assert library["message"] == "of a library"
    assert "old" in warning["message"]
    assert (end["level"], "IndexError" in end["exception"]) == ("critical", True)


def test_text_is_as_it_was() -> None:
    lines = said(PROGRAM, JSON=False)
    assert lines[0].endswith(" INFO lightllm_mp.router: two")
    assert "Traceback (most recent call last):" in lines


def full_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    return reader, writer


def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    reader, writer = full_pipe()
    with os.fdopen(writer, "w") as stderr:
        output = log_output(stderr, lambda count: f"{count} dropped\n")
        assert isinstance(output, LosingOutput)
        begin = time.monotonic()
        for i in range(1000):
            output.write(f"line {i:04d} " + "x" * 90 + "\n")
        assert time.monotonic() - begin < 10
        assert output.dropped > 900
        kept = os.read(reader, 1 << 16).decode().splitlines()
        assert [line[:9] for line in kept] == [f"line {i:04d}" for i in range(len(kept))]
        output.write("again\n")
        assert os.read(reader, 1 << 16).decode().splitlines() == [f"{1000 - len(kept)} dropped", "again"]
        assert not fcntl.fcntl(stderr, fcntl.F_GETFL) & os.O_NONBLOCK  # others share it
        output.close()
    os.close(reader)


def test_a_reader_that_is_gone_and_a_full_disk(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stderr:
        output = log_output(stderr, str)
        os.close(reader)
        assert output.write("line\n") == 5
        assert output.dropped == 1
        output.close()
    with Path("/dev/full").open("w") as full:
        lost = LosingOutput(full.fileno(), str, owned=False)
        lost.write("line\n")
        assert lost.dropped == 1
    with (tmp_path / "log").open("w") as file:
        log_output(file, str).write("line\n")
    assert (tmp_path / "log").read_text() == "line\n"


def test_a_torn_line_does_not_spoil_the_next() -> None:
    reader, writer = full_pipe()
    with os.fdopen(writer, "w") as stderr:
        output = log_output(stderr, str)
        output.write("x" * 10_000 + "\n")
        os.read(reader, 1 << 16)
        output.write("next\n")
        assert os.read(reader, 1 << 16) == b"\nnext\n"
        output.close()
    os.close(reader)
