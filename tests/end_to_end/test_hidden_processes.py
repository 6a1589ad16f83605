"""A server whose processes are hidden from their own user works, and other processes of this user cannot read its
keys."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from lightllm_mp.sandbox import VISIBLE
from tests.end_to_end.test_serve_command import DEADLINE, GOLDEN, command
from tests.paths import ROOT
from tests.test_sandbox import PLAIN_USER, seen

PROGRAMS = 6
"""Supervisor, http, tokenizer, router, guide, detokenizer; then the workers."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_all_processes_of_a_server_are_hidden(ranks: int, tmp_path: Path) -> None:
    """With two ranks, which share a file that they reopen through /proc."""
    log = tmp_path / "log"
    flags = ("--model-dir", str(GOLDEN), "--port", "0", "--tp", str(ranks))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        VISIBLE: "0",
        "LIGHTLLM_MP_API_KEYS": "secret",
    }
    with log.open("w") as stderr:
        server = subprocess.Popen([*PLAIN_USER, *command(*flags)], env=environment, stderr=stderr)
    try:
        url = until(log, server, r"url +(http\S+)")
        pids = [server.pid, *map(int, re.findall(r"started, pid (\d+)", log.read_text()))]
        assert len(pids) == PROGRAMS + ranks
        assert {pid: seen(pid) for pid in pids} == dict.fromkeys(pids, ["refused"] * 5)
        body = json.dumps({"inputs": [5, 6, 7], "parameters": {"max_new_tokens": 4}}).encode()
        request = urllib.request.Request(f"{url}/generate", body, {"Authorization": "Bearer secret"})
        with urllib.request.urlopen(request, timeout=DEADLINE) as reply:
            assert json.load(reply)["count_output_tokens"] == 4
    finally:
        server.kill()
        server.wait(DEADLINE)


def until(log: Path, server: subprocess.Popen[bytes], pattern: str) -> str:
    deadline = time.monotonic() + DEADLINE
    while not (found := re.search(pattern, log.read_text())):
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found[1]


def test_tests_and_tools_look_in() -> None:
    program = "import os, tools.harness.procfs; print(os.environ['LIGHTLLM_MP_DUMPABLE'])"
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
