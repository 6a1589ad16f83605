"""Clients of every API disconnect in the middle of an answer. All processes run; the workers have no model."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.actors.mock_server import write_mock_model
from tests.end_to_end.test_whole_group import MockServing, ask, metric, mock_serving, until

PACED = "tests.actors.mock_actor:PacedLargeMockWorkerActor"
"""A worker whose step takes 10 ms."""
MOST_STEPS = 20
"""The most steps until a busy machine notices it; the answers would take more than 3,000."""
BODY = {"inputs": "Tell me", "parameters": {"max_new_tokens": 50, "ignore_eos": True}}
HELLO = [{"role": "user", "content": "Hi"}]
LONG: dict[str, Any] = {"max_tokens": 3500, "ignore_eos": True}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "minLength": 3000}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
FORM = {"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA}}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": HELLO, "n": 64, "stream": True, **LONG}),
    "tools": ("/v1/chat/completions", {"messages": HELLO, "tools": [TOOL], "tool_choice": "required", **LONG}),
    "schema": ("/v1/chat/completions", {"messages": HELLO, "response_format": FORM, "stream": True, "n": 4, **LONG}),
    "list of prompts": ("/v1/completions", {"prompt": [f"Tell me {i}" for i in range(256)], **LONG}),
    "message": ("/v1/messages", {"model": "m", "messages": HELLO, "max_tokens": 3500, "stream": True}),
    "response": ("/v1/responses", {"input": "Hi", "max_output_tokens": 3500, "ignore_eos": True, "stream": True}),
}


def leave(server: MockServing, path: str, body: dict[str, Any]) -> float:
    """Disconnect when the answers run. Returns the number of steps after that."""
    data, port = json.dumps(body).encode(), server.port
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(data))
        )
        client.sendall(data)
        until(lambda: metric(port, "num_requests_running") > 0)
        begun = metric(port, "batch_inference_count_total")
    until(lambda: not (metric(port, "num_requests_running") or metric(port, "num_requests_waiting")))
    until(lambda: metric(port, "live_requests") == metric(port, "kv_used_tokens") == 0)
    return metric(port, "batch_inference_count_total") - begun


@pytest.mark.timeout(180)
def test_every_api(tmp_path: Path) -> None:
    folder = write_mock_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    flags = ("--port", "0", "--max-total-token-num", "2000000", "--resume-window", "0", "--response-window", "0")
    with mock_serving(folder, *flags, worker=PACED) as server:
        before = ask(server.port, "POST", "/generate", BODY)[1]
        steps = {name: leave(server, path, body) for name, (path, body) in ASKED.items()}
        assert {name: count for name, count in steps.items() if count > MOST_STEPS} == {}
        assert metric(server.port, "constrained_answers") == 0
        assert ask(server.port, "POST", "/generate", BODY)[1] == before
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
