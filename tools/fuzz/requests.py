"""Targets for data from clients: bodies, URLs of images, and whole connections with heads, chunks and keys."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
from array import array
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.helpers import is_ip_address

from lightllm_mp import messages as say
from lightllm_mp import sampling_parameters
from lightllm_mp.actors.http import image_inputs, schema
from lightllm_mp.actors.http.body import BodyReader
from lightllm_mp.actors.http.dialects import pooled_request
from lightllm_mp.actors.http.error_responses import failures
from lightllm_mp.actors.http.image_fetch import MAX_URL, checked
from lightllm_mp.actors.http.security.auth import guard
from lightllm_mp.actors.http.security.keys import ApiKeys, load_keys
from lightllm_mp.actors.http.security.url_guard import UrlGuard, is_public
from lightllm_mp.actors.http.sockets.connection import Connection
from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import EngineError
from tools.fuzz.features import seen, size_class
from tools.fuzz.refusal import check_refusal

T = TypeVar("T")

MAX_BODY = 2000
KEY, ADMIN_KEY = "user-key", "admin-key"
_encoder, _decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(say.Message)


def body(data: bytes) -> None:
    """Reads a body of one of the routes up to the message for the tokenizer: within its bounds, or a short 4xx."""
    try:
        kinds = (_generate, _tokens, _score, _embed, _rerank, _score_pairs)
        kinds[data[0] % len(kinds) if data else 0](data[1:])
    except EngineError as error:
        check_refusal(error)
        seen(error.message[:100])


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for its turn only."""
    while True:
        try:
            work.send(None)
        except StopIteration as end:
            found: T = end.value
            return found


def _generate(data: bytes) -> None:
    _at_once(schema.check_nesting(data))
    found = schema.generate_body(data)
    parameters = _parameters(found.parameters)
    terms = sampling_parameters.terms(parameters)
    _check_rules(terms.sampling)
    assert 1 <= terms.n <= 64
    assert len(terms.output.stop) <= 16
    assert all(1 <= len(stop.encode()) <= sampling_parameters.MAX_STOP_BYTES for stop in terms.output.stop)
    _images(found.multimodal_params)
    prompt = _at_once(schema.prompt(found.inputs, 0))
    if isinstance(prompt, str):
        _sent(say.Generate(1, terms, text=prompt))
    else:
        ids = array("i", prompt)
        assert 1 <= len(ids) <= schema.MAX_INPUT_IDS
        assert min(ids) >= -200
        _sent(say.Generate(1, terms, ids=ids.tobytes()))


def _tokens(data: bytes) -> None:
    found = schema.tokens_body(data)
    _parameters(found.parameters)
    _images(found.multimodal_params)
    _sent(say.Count(1, schema.text(found.text, "text", 0)))


def _score(data: bytes) -> None:
    found = schema.score_body(data)
    _parameters(found.parameters)
    prompt = _at_once(schema.conversation(found, 0))
    text, ids = (prompt, None) if isinstance(prompt, str) else (None, prompt)
    _sent(say.Generate(1, say.Terms(sampling_parameters.POOLED), text=text, ids=ids))


def _embed(data: bytes) -> None:
    found = pooled_request.embedding_body(data)
    terms = pooled_request.pooled_terms(found, b"", "embed")
    inputs = _at_once(pooled_request.embedding_inputs(found, 100))
    assert 1 <= len(inputs) <= pooled_request.MAX_INPUTS
    for one in inputs:
        text, ids = (one, None) if isinstance(one, str) else (None, one)
        _sent(say.Generate(1, terms, text=text, ids=ids))


def _rerank(data: bytes) -> None:
    found = pooled_request.rerank_body(data)
    terms = pooled_request.pooled_terms(found, b"", "score")
    for document in _at_once(pooled_request.rerank_documents(found, 100)):
        _sent(say.Generate(1, terms, pair=say.TextPair(found.query, document)))


def _score_pairs(data: bytes) -> None:
    found = pooled_request.score_pairs_body(data)
    terms = pooled_request.pooled_terms(found, b"", "score")
    for pair in _at_once(pooled_request.score_pairs(found, 100)):
        _sent(say.Generate(1, terms, pair=pair))


def _parameters(raw: msgspec.Raw) -> schema.RequestParameters:
    known, unknown = schema.parameters(raw)
    assert len(unknown) <= 16
    assert all(name.isascii() and name.isprintable() and len(name) <= 64 for name in unknown)
    assert known.priority is None or abs(known.priority) <= schema.MAX_ID
    for name in known.__struct_fields__:
        seen(name, size_class(getattr(known, name)))
    return known


def _check_rules(rules: say.Sampling) -> None:
    """Checks the bounds that the documents promise and the samplers rely on."""
    assert 0 <= rules.seed < 2**63
    assert 0.0 <= rules.temperature <= 1000.0
    assert 0 <= rules.top_k <= schema.MAX_ID
    assert 0.0 < rules.top_p <= 1.0
    assert 0.0 <= rules.min_p <= 1.0
    assert -100.0 <= rules.presence_penalty <= 100.0
    assert -100.0 <= rules.frequency_penalty <= 100.0
    assert 0.0 < rules.repetition_penalty <= 100.0
    assert 1 <= rules.min_new_tokens <= rules.max_new_tokens <= schema.MAX_ID
    assert 0 <= rules.top_logprobs <= 20
    assert -1 <= rules.prompt_logprobs <= 20
    assert len(rules.stop_ids) <= 16 * 4
    assert len(rules.bias_ids) == len(rules.bias_values) <= 1024 * 4
    assert len(rules.allowed_ids) <= 256 * 4
    assert all(id_ >= 0 for id_ in array("i", rules.bias_ids + rules.allowed_ids))
    assert all(math.isfinite(value) for value in array("f", rules.bias_values))


def _images(found: schema.Multimodal | None) -> None:
    images = schema.items(found.images, "images") if found is not None else []
    assert len(images) <= 64
    for raw in images:
        item = image_inputs.item(raw)
        if bytes(item.data)[:1] == b'"':
            if item.type == "url":
                url(schema.text(item.data, "data", 0).encode())
            elif item.type == "base64":
                assert len(image_inputs.decoded(item.data, MAX_BODY)) <= len(bytes(item.data))


def _sent(message: say.Wire) -> None:
    """Checks that the message can be sent and arrives unchanged."""
    assert _decoder.decode(_encoder.encode(message)) == message


EVERY = """{
    "do_sample": true, "temperature": 0.5, "top_p": 1, "top_k": -1, "min_p": 0.1, "presence_penalty": 1.5,
    "frequency_penalty": -2, "repetition_penalty": 1.1, "ignore_eos": true, "max_new_tokens": 20, "min_new_tokens": 2,
    "stop_sequences": ["a", [5]], "n": 2, "best_of": 2, "seed": 9223372036854775807, "return_details": true,
    "logprobs": 3, "prompt_logprobs": 1, "logit_bias": {"5": 1.5}, "allowed_token_ids": [1, 2], "priority": -3,
    "guided_json": null, "unknown": {"a": [1e300, "\\u00e9"]}
}"""
PICTURES = """[
    {"type": "base64", "data": "iVBORw0KGgo="},
    {"type": "url", "data": "https://example.com/a.png", "image_size": [30, 40]},
    {"type": "image_size", "data": [30, 40]}
]"""


def body_seeds() -> list[bytes]:
    bodies: list[tuple[int, Any]] = [
        (0, {"inputs": "text", "parameters": json.loads(EVERY)}),
        (0, {"inputs": [1, 2, 3], "parameters": {"stop_sequences": "a", "logprobs": True}, "stream": True}),
        (0, {"inputs": "<img></img> text", "parameters": None, "multimodal_params": {"images": json.loads(PICTURES)}}),
        (1, {"text": "count me", "parameters": {"add_special_tokens": False}}),
        (2, {"chat": "user: hello"}),
        (2, {"ids": [1, 2], "parameters": {"priority": 1}}),
    ]
    return [bytes([route]) + json.dumps(value).encode() for route, value in bodies]


def body_words() -> list[str]:
    """Names, and numbers at the bounds."""
    structs = (
        schema.GenerateBody,
        schema.TokensBody,
        schema.ScoreBody,
        schema.RequestParameters,
        schema.Multimodal,
        image_inputs.ImageItem,
    )
    names = sorted({f'"{name}":' for struct in structs for name in struct.__struct_fields__})
    numbers = [-201, -1, 0, 64, 65, 1024, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, "1e400", "-1e-400", "1e-5", "NaN"]
    return [*names, *map(str, numbers), "null", "true", "{}", "[]", '"', "\\ud800", "\\u0000", "data:", "https://"]


def url(data: bytes) -> None:
    """Checks an image's URL: it is refused, or its host is a name (checked when it is resolved) or a public address."""
    text = data.decode("utf-8", "replace")
    try:
        found = checked(text)
        UrlGuard(()).check_literal(found.host or "")
    except EngineError as error:
        check_refusal(error)
        return
    assert len(text) <= MAX_URL
    assert found.scheme in ("http", "https")
    assert found.raw_host
    for host in (found.host, found.raw_host):
        if host and is_ip_address(host):  # hosts that aiohttp connects to without a resolver
            assert is_public(ipaddress.ip_address(host.strip("[]").rstrip("."))), host
    seen(
        "url", found.scheme, size_class(found.raw_host), found.explicit_port is None, size_class(found.raw_query_string)
    )


def url_seeds() -> list[bytes]:
    hosts = [
        "example.com",
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "a。b",
    ]
    more = rb"https://u:p@example.com/ file:///etc/passwd http:\\127.0.0.1\ http://%31.1/?q=1#f //a/b".split()
    return [*(f"http://{host}:8080/a.png".encode() for host in (*hosts, "a。b")), b"http://[::]@", *more]


class Wire(asyncio.Transport):
    """The other end of a connection; it keeps the written bytes."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5)})
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def writelines(self, data: Any) -> None:
        for part in data:
            self.write(part)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        """A seed stays short."""

    resume_reading = pause_reading


class Server:
    """The server's connections, keys, bodies and errors in front of a handler that only decodes."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._bodies = BodyReader(most=MAX_BODY, seconds=HttpConfig().header_timeout)
        keys = load_keys(HttpConfig(), {"LIGHTLLM_MP_API_KEYS": KEY, "LIGHTLLM_MP_ADMIN_KEYS": ADMIN_KEY})
        self._manager = self.loop.run_until_complete(self._start(keys))

    async def _start(self, keys: ApiKeys) -> web.Server:
        app = web.Application(middlewares=[failures, guard(keys, {self._decode: "user", self._hello: "public"})])
        app.router.add_post("/generate", self._decode)
        app.router.add_post("/admin", self._admin)
        app.router.add_get("/health", self._hello)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        assert runner.server is not None
        return runner.server

    async def _decode(self, request: web.Request) -> web.Response:
        async with self._bodies.receive(request) as data:
            found = schema.generate_body(data)
        _check_rules(sampling_parameters.sampling(_parameters(found.parameters)))
        return web.Response(text="decoded")

    async def _admin(self, request: web.Request) -> web.Response:
        return web.Response(text="admin")

    async def _hello(self, request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def talk(self, pieces: list[bytes]) -> bytes:
        """The answer to a connection that sends `pieces` and then nothing."""
        options = {"access_log": None, "keepalive_timeout": 75.0, "lingering_time": 0.0, "auto_decompress": False}
        wire = Wire()
        protocol = Connection(self._manager, header_timeout=30, write_timeout=30, loop=self.loop, **options)
        protocol.connection_made(wire)
        for piece in pieces:
            if not wire.closed:
                protocol.data_received(piece)
                await asyncio.sleep(0)
        for _ in range(40):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        for _ in range(5):
            await asyncio.sleep(0)
        return bytes(wire.written)


@cache
def engine_server() -> Server:
    return Server()


def http(data: bytes) -> None:
    """The bytes of one connection, in pieces of the length that the first byte gives. Answers are 1xx, 2xx or 4xx."""
    size, rest = (data[0] if data else 0) * 8 or len(data) + 1, data[1:]
    pieces = [rest[at : at + size] for at in range(0, len(rest), size)]
    server = engine_server()
    answer = server.loop.run_until_complete(server.talk(pieces))
    assert len(asyncio.all_tasks(server.loop)) < 10, "tasks are left"
    for start in answer.split(b"HTTP/1.")[1:]:
        seen((start[:40] + start[-120:]).decode("latin-1"))
        assert start[2:3] in b"124", start[:200]
        if start[2:3] == b"4":
            assert b"Content-Type: application/json" in start, "an error that is not ours"
        if start[2:5] == b"200":
            keys = (KEY, ADMIN_KEY) if b"decoded" in start else (ADMIN_KEY,) if b"admin" in start else ()
            assert not keys or any(key.encode() in rest for key in keys), "without a key"


def http_seeds() -> list[bytes]:
    key = b"Authorization: Bearer user-key\r\n"
    decoded = b'{"inputs":"a"}'
    post = b"POST /generate HTTP/1.1\r\nHost: a\r\n" + key
    whole = post + b"Content-Length: 14\r\n\r\n" + decoded
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\ne\r\n" + decoded + b"\r\n0\r\n\r\n"
    admin = b"POST /admin HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer admin-key\r\nContent-Length: 0\r\n\r\n"
    return [
        b"\0" + whole,
        b"\3" + whole + chunked,
        b"\0" + post + b"Content-Length: 14\r\nTransfer-Encoding: chunked\r\n\r\n" + decoded,
        b"\0" + post + b"Content-Encoding: gzip\r\nContent-Length: 14\r\n\r\n" + decoded,
        b"\0" + post + b"Content-Length: 99999\r\n\r\n" + decoded,
        b"\0" + post + b"Expect: 100-continue\r\nContent-Length: 14\r\n\r\n" + decoded,
        b"\1GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + whole,
        b"\0" + admin + b"GET //generate HTTP/1.0\r\n\r\n",
        b"\0GET /health HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ]


def http_words() -> list[str]:
    names = ["Host", "Content-Length", "Transfer-Encoding", "Content-Encoding", "Authorization", "Expect", "Connection"]
    values = ["chunked", "identity", "gzip", "100-continue", "close", "HTTP/1.1", "HTTP/1.0"]
    paths = ["/generate", "/admin", "/health", "//", "/..", "%2e", "*"]
    spaced = ("Bearer user-key", "bearer  ", "CONNECT ", "OPTIONS ", "HEAD ", "PRI * HTTP/2.0")
    return [*(f"\r\n{name}: " for name in names), *values, *paths, *spaced, "\r\n\r\n", "\r\n0\r\n\r\n"]
