"""A client's program is a module of checks that runs in .venv-clients, away from pytest and the engine.

`python PROGRAM PREFIX` runs the functions whose names begin with PREFIX: `model_` against the default model, `script_`
against the assistant of tests/clients/assistant.py, `pooled_` against a model of embeddings. BASE_URL and API_KEY are
in the environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import urllib.request
from typing import Any

URL, KEY = os.environ["BASE_URL"], os.environ["API_KEY"]
V1 = URL + "/v1"
MODEL = "any"
HELLO = [{"role": "user", "content": "Say hello to me."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name"}},
            "required": ["city"],
        },
    },
}
CALL = 'call {"city": "Paris"}'
"""The assistant calls the first tool with it, and says afterwards what the tool said."""
BOUNDED = "Which animal is it, and is it tame?"
"""Structured answers to it are short, whatever a small model thinks: see pets.py."""
LONG = "word " * 9000
"""Longer than the default model's context."""


def main(functions: dict[str, Any]) -> None:
    failed = []
    for name, check in list(functions.items()):
        if name.startswith(sys.argv[1]):
            begin = time.monotonic()
            try:
                check()
            except BaseException:
                failed.append(name)
                traceback.print_exc()
            print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def raises(error: type[BaseException], function: Any, *arguments: Any, **named: Any) -> Any:
    """The error that the call raises."""
    try:
        function(*arguments, **named)
    except error as found:
        return found
    raise AssertionError(f"no {error.__name__}")


def live_requests() -> int:
    request = urllib.request.Request(URL + "/get_server_info", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return int(json.load(reply)["live_requests"])


def wait_until_idle() -> None:
    """What a client has left ends."""
    deadline = time.monotonic() + 10
    while live_requests():
        assert time.monotonic() < deadline, "a request that its client has left goes on"
        time.sleep(0.02)
