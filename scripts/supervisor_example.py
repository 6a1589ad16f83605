#!/usr/bin/env python3
"""Run a server from your own program: start it, wait until it answers, use it, end it in order.

    python scripts/supervisor_example.py [flags of lightllm-mp serve]

The exit code is the server's: 0 after an orderly end, and what `lightllm-mp serve` would have returned otherwise.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from types import FrameType

import lightllm_mp
from lightllm_mp.cli.flags import resolve
from lightllm_mp.errors import EngineError

START_TIMEOUT = 1800.0
REQUEST_TIMEOUT = 120.0
DRAIN_TIMEOUT = 60.0
"""Above the server's own --drain-timeout."""


class Terminated(Exception):
    """A signal asks this program to end."""


def on_signal(number: int, frame: FrameType | None) -> None:
    raise Terminated(signal.Signals(number).name)


def ask(base_url: str, prompt: str) -> str:
    """One /generate request."""
    body = {"inputs": prompt, "parameters": {"max_new_tokens": 17}}
    request = urllib.request.Request(
        f"{base_url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT) as response:
        return str(json.load(response)["generated_text"][0])


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    config, _ = resolve(sys.argv[1:], os.environ)
    # Leaving the block stops the server, whatever happened inside.
    with lightllm_mp.launch(config) as server:
        try:
            server.wait_ready(START_TIMEOUT)
            print(f"serving at {server.base_url}, healthy: {server.health()}")
            print("What is AI?", ask(server.base_url, "What is AI?"))
        except Terminated as reason:
            print(f"{reason}: no new requests, the running ones may finish", file=sys.stderr)
        return server.drain(DRAIN_TIMEOUT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EngineError as error:
        sys.exit(f"supervisor_example: {error.message}")
