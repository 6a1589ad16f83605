"""A server of chats that answers what a test tells it, breaks connections, and lets clients come back."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BREAK, HANG = object(), object()
"""Steps of an answer: the connection breaks; nothing more comes until the client leaves."""
TIMINGS = {"predicted_n": 7, "predicted_per_second": 12.5, "ttft_ms": 34.0}

Step = Any
"""A text, a delta, BREAK or HANG."""


class FakeChatServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[list[Step]] = []
        """One for each question to come; without one the question is said again."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.knows_timings = True
        self.key = ""
        self.returns = 0
        """How often a client came back."""
        self.kept: dict[str, list[Step]] = {}
        self.left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeChatServer

    def do_GET(self) -> None:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._json(401, {"error": {"message": "no key"}})
        elif self.path == "/v1/models":
            self._json(200, {"data": [{"id": "fake"}]})
        elif self.path.startswith("/requests/") and (kept := self.server.kept.get(self.path.split("/")[2])):
            self.server.returns += 1
            self._stream([step for step in kept if step is not BREAK], int(self.headers.get("Last-Event-ID", "0")))
        else:
            self._json(404, {"error": {"message": "nothing is here"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "return_timings" in body and not self.server.knows_timings:
            self._json(400, {"error": {"message": "'return_timings' is not a field that this server knows"}})
            return
        self.server.bodies.append(body)
        answer = self.server.answers.pop(0) if self.server.answers else [f"echo {body['messages'][-1]['content']}"]
        if isinstance(answer[0], int):
            self._json(answer[0], {"error": {"message": answer[1]}})
            return
        self.server.kept[str(self.headers["X-Request-Id"])] = answer
        self._stream(answer, 0)

    def _stream(self, steps: list[Step], last: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(OSError):
            number = 0
            for step in steps:
                if step is BREAK:
                    return
                if step is HANG:
                    self._until_the_client_leaves()
                    return
                number += 1
                if number > last:
                    delta = {"content": step} if isinstance(step, str) else step
                    self._send({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}, number)
            timings = {"timings": TIMINGS} if self.server.knows_timings else {}
            self._send({"choices": [], "usage": {"completion_tokens": number}, **timings})
            self.wfile.write(b"data: [DONE]\n\n")

    def _until_the_client_leaves(self) -> None:
        self.connection.settimeout(20)
        with contextlib.suppress(OSError):
            self.connection.recv(1)
        self.server.left.set()

    def _send(self, chunk: dict[str, Any], number: int | None = None) -> None:
        head = f"id: {number}\n" if number else ""
        self.wfile.write(f"{head}data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def fake_chat_server() -> Iterator[FakeChatServer]:
    with FakeChatServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
