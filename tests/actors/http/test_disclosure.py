"""No answer tells where this server is installed, what it is made of, or where in memory something lies."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightllm_mp import messages as say
from lightllm_mp.actors.http import responses
from lightllm_mp.actors.http.error_responses import error_response
from lightllm_mp.errors import ConfigError, EngineError, ModelError, Overloaded, StartupError
from tests.actors.http.harness import Engine, Site, run
from tests.paths import ROOT

SECRET = "/srv/models/secret-model/weights.safetensors"
SHAPES = re.compile(
    r"""/(?:home|root|srv|usr|etc|proc|dev|tmp|opt|var|work|venv|lib)\b   # a path
    | \.py\b | \.safetensors | Traceback | File\ " | line\ \d+            # a traceback
    | 0x[0-9a-f]{4,} | \bat\ 0x | object\ at                              # an address
    | \b(?:asyncio|aiohttp|msgspec|lightllm_mp)\.                         # a module
    | Error\( | Exception | \bNone\b""",
    re.VERBOSE,
)
HERE = {str(ROOT), sys.prefix, sys.executable, os.getcwd(), str(Path.home()) + "/", SECRET}
HERE |= {name for name in (socket.gethostname(),) if len(name) > 4}


def disclosures(text: str) -> list[str]:
    return [*SHAPES.findall(text), *(name for name in HERE if name in text)]


def kinds(base: type[EngineError] = EngineError) -> Iterator[type[EngineError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_the_check_sees():
    for text in (SECRET, "module.py", "<object at 0x7f12ab>", 'File "x", line 3', "asyncio.locks", sys.prefix):
        assert disclosures(text), text


@pytest.mark.parametrize("kind", sorted(set(kinds()), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_errors_for_the_operator_are_not_told_to_clients(kind: type[EngineError]):
    """They name files. All others are written for clients, and are answered as they are."""
    options = {"retry_after": 1.0} if issubclass(kind, Overloaded) else {}
    message = f"cannot read {SECRET}"
    text = error_response(kind(message, **options)).body.decode()
    hidden = issubclass(kind, ConfigError | ModelError | StartupError)
    assert (SECRET in text) is not hidden
    assert (SECRET in responses.failure_event(kind(message, **options)).decode()) is not hidden


BUGS = [
    RuntimeError(f"cannot open {SECRET}"),
    FileNotFoundError(2, "No such file or directory", SECRET),
    KeyError(SECRET),
    RecursionError("maximum recursion depth exceeded"),
    UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "invalid"),
    AssertionError(f"<object at 0x7f0000001234> {SECRET}"),
    TimeoutError(SECRET),
    ModelError(f"cannot read {SECRET}"),
    OSError(28, "No space left on device", SECRET),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
def test_bugs_in_every_handler(bug: Exception, monkeypatch: pytest.MonkeyPatch):
    async def body(s: Site):
        def broken(*_: object, **__: object) -> None:
            raise bug

        monkeypatch.setattr(s.frontend, "submit", broken)
        monkeypatch.setattr(s.frontend, "count", broken)
        for path in ("/generate", "/generate_stream", "/", "/get_score", "/tokens"):
            sent = {"inputs": "a", "text": "a", "chat": "a"}
            status, answer, _ = await s.post(path, sent)
            assert status == 500
            assert answer["error"]["message"] == "internal error"
            assert not disclosures(json.dumps(answer)), answer

    run(body)


def test_what_other_actors_say():
    """A bug in another actor ends it; a typed error of its own comes as it is, unless it is the operator's."""
    info = say.ErrorInfo(500, f"cannot read {SECRET}", "server_error", "model_error")

    async def body(s: Site):
        for path in ("/generate", "/generate_stream"):
            status, answer, _ = await s.post(path, {"inputs": "a"})
            assert (status, answer["error"]["message"]) == (500, "internal error")

    run(body, engine=Engine(reject=info))


REQUESTS = [
    ("GET", "/nope", {}, b""),
    ("GET", "/../../etc/passwd", {}, b""),
    ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, b""),
    ("GET", "/generate", {}, b""),
    ("DELETE", "/generate", {}, b""),
    ("BREW", "/generate", {}, b""),
    ("POST", "/generate", {}, b""),
    ("POST", "/generate", {}, b"{"),
    ("POST", "/generate", {}, b"\xff\xfe"),
    ("POST", "/generate", {}, b"[" * 5000),
    ("POST", "/generate", {}, b'{"inputs": 1}'),
    ("POST", "/generate", {}, b'{"inputs": "\\ud800"}'),
    ("POST", "/generate", {}, b'{"inputs": [5000]}'),
    ("POST", "/generate", {}, b'{"inputs": []}'),
    ("POST", "/generate", {}, b'{"inputs": "a", "parameters": {"n": 1e9}}'),
    ("POST", "/generate", {}, b'{"inputs": "a", "parameters": {"guided_json": "{"}}'),
    ("POST", "/generate", {}, b'{"inputs": "a", "parameters": {"stop_sequences": [[1, 2]]}}'),
    ("POST", "/generate_stream", {}, b'{"inputs": "a", "parameters": {"n": 2}}'),
    (
        "POST",
        "/generate",
        {},
        b'{"inputs": "a", "multimodal_params": {"images": [{"type": "url", "data": "file:///etc"}]}}',
    ),
    ("POST", "/generate", {}, b'{"inputs": "a", "multimodal_params": {"images": [5]}}'),
    ("POST", "/get_score", {}, b'{"chat": "a"}'),
    ("POST", "/tokens", {}, b"{}"),
    ("POST", "/generate", {}, b" " * 5000),
    ("POST", "/generate", {"Content-Encoding": "gzip"}, b"x"),
    ("POST", "/generate", {"Expect": "nonsense"}, b"{}"),
    ("GET", "/health", {"X": "a" * 100_000}, b""),
    ("GET", "/" + "a" * 100_000, {}, b""),
    ("GET", "/health", {f"X-{i}": "a" for i in range(500)}, b""),
    ("GET", "/health", {"Bad\x00": "a"}, b""),
    ("POST", "/generate", {"Transfer-Encoding": "nonsense"}, b"{}"),
    ("GET", "/get_server_info", {}, b""),
    ("GET", "/get_model_name", {}, b""),
    ("GET", "/metrics", {}, b""),
    ("GET", "/token_load", {}, b""),
]


def test_every_answer_keeps_quiet():
    async def body(s: Site):
        statuses = set()
        for method, path, headers, data in REQUESTS:
            head = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(data)}"]
            head += [f"{name}: {value}" for name, value in headers.items()]
            answer = await s.raw("\r\n".join([*head, "", ""]).encode() + data)
            top, _, rest = answer.partition(b"\r\n\r\n")
            statuses.add(int(top.split(b" ", 2)[1]))
            said = re.sub(r"(?m)^(# HELP|# TYPE|Date:).*$", "", f"{top.decode()}\n{rest.decode()}")
            assert not disclosures(said), (method, path[:50], said[:300])
            assert b"Server: lightllm-mp" in top or b" 400 " in top or b" 431 " in top
        assert statuses >= {200, 400, 404, 405, 413, 415, 417, 431}

    run(body, max_body_bytes=4000)


def test_nothing_is_told_before_the_start_and_about_a_repair():
    async def body(s: Site):
        s.frontend.health(say.Health(ok=False, reason="worker0 was killed by SIGKILL and is being replaced"))
        for path in ("/health", "/readiness"):
            status, text, _ = await s.get(path)
            assert status == 503
            assert not disclosures(text)

    run(body, begun=False)
