"""A collector of traces: takes OTLP over HTTP and keeps the spans."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

PATIENCE = 20.0
"""Seconds until spans have come on a busy machine."""


class Collector:
    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}/v1/traces"
        self.bodies: list[bytes] = []
        self.spans: list[Any] = []
        """opentelemetry.proto's spans."""
        self.resources: list[dict[str, Any]] = []

    def take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.bodies.append(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes(group.resource))
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def roots(self, prefix: str = "") -> list[Any]:
        """Spans of requests whose name begins so."""
        return [span for span in self.spans if span.kind == span.SPAN_KIND_SERVER and span.name.startswith(prefix)]

    def children(self, root: Any) -> dict[str, Any]:
        return {span.name: span for span in self.spans if span.parent_span_id == root.span_id}

    def root(self, request_id: str) -> Any:
        """The span of the request with this X-Request-Id, once it has come with all of its children."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for span in self.roots():
                if attributes(span)["lightllm_mp.request_id"] == request_id:
                    return span
            time.sleep(0.02)
        raise AssertionError(f"no span of {request_id}")


def attributes(holder: Any) -> dict[str, Any]:
    """Of a span, event or resource."""
    return {entry.key: _value(entry.value) for entry in holder.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [_value(entry) for entry in found.values] if kind == "array_value" else found


@contextlib.contextmanager
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Spans come within 50 ms; skips without the packages of the extra `tracing`."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
