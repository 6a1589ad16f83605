"""A front with its port, and an engine that answers from a script."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from lightllm_mp import messages as say
from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.http.app import create_app
from lightllm_mp.actors.http.security.tls import server_context
from lightllm_mp.actors.http.sockets.listener import serve
from lightllm_mp.config import HttpConfig, ModelConfig
from lightllm_mp.errors import EngineError
from lightllm_mp.facts import EngineLimits, Facts

PATIENCE = 20.0
"""Seconds that a busy machine has for what happens at once; the server's own time-outs are 30 and more."""
FACTS = Facts(
    model_name="fake",
    engine=EngineLimits(vocab_size=1000, max_context=2048, max_input=2000, rows=64, kv_tokens=4096),
)


def column(code: str, values) -> bytes:
    return array(code, values).tobytes()


def texts(*rows, top=(), top_texts=()) -> say.Texts:
    """rows of (rid, id, text, count, finish)"""
    rids, ids, words, counts, finish = zip(*rows, strict=True)
    return say.Texts(
        rids=column("q", rids),
        ids=column("i", ids),
        logprobs=column("f", [-0.5] * len(rows)),
        counts=column("i", counts),
        prompt_tokens=column("i", [7] * len(rows)),
        cached_tokens=column("i", [3] * len(rows)),
        special=bytes(len(rows)),
        finish=bytes(finish),
        texts=words,
        top=top,
        top_texts=top_texts,
    )


def word(position: int) -> tuple[int, str]:
    """The token that the engine produces at a position: deterministic, so a resumed answer can be compared."""
    return 100 + position, f" {position}é"


@dataclass
class Engine:
    """Produces `word(position)` for every running sequence in every tick, until max_new_tokens."""

    frontend: ResumableTable = None  # type: ignore[assignment]
    facts: Facts = FACTS
    pace: float = 0.0
    """Seconds between ticks."""
    paused: bool = False
    room: bool = True
    """The lanes take messages."""
    reject: say.ErrorInfo | None = None
    tokenizer: list[say.Wire] = field(default_factory=list)
    """Everything ever received on the lane."""
    router: list[say.Wire] = field(default_factory=list)
    running: dict[int, list] = field(default_factory=dict)
    """rid -> [produced, most, alternatives, request]"""
    row: Callable[[say.Generate], list[float]] = lambda request: [-1.5]
    """The numbers of an embedding or score."""
    at_once: int = 1 << 30
    """Rows of numbers of one tick."""
    text: str = ""
    """Said instead of the words."""
    script: list[str] = field(default_factory=list)
    """Texts of an answer's tokens; the last one ends it."""
    stop_after: int = 1 << 30
    """Sequences end with `stop` after this many tokens."""

    def to_tokenizer(self, message: say.Wire) -> bool:
        if not self.room:
            return False
        self.tokenizer.append(message)
        if isinstance(message, say.Generate):
            self.start(message)
        elif isinstance(message, say.Count):
            words = message.text.split() if message.chat is None else [message.chat.messages.decode()]
            ids = column("i", map(len, words)) if message.listed else b""
            self.later(say.Counted(message.rid, len(words), ids))
        elif isinstance(message, say.Detokenize):
            self.later(say.Detokenized(message.rid, " ".join(map(str, array("i", message.ids)))))
        return True

    def to_router(self, message: say.Wire) -> bool:
        if not self.room:
            return False
        self.router.append(message)
        self.running.pop(message.rid, None)
        return True

    def later(self, message: say.Wire) -> None:
        asyncio.get_running_loop().call_soon(self.frontend.deliver, message)

    def start(self, m: say.Generate) -> None:
        if self.reject is not None:
            self.later(say.Rejected(m.rid, self.reject))
            return
        if m.terms.sampling.prompt_logprobs >= 0:
            ids, tops = column("i", [4, 5, 6]), column("i", [5, 9])
            self.later(say.PromptLogprobs(m.rid, ids, column("f", [-1, -2]), 1, tops, column("f", [-1, -0.25])))
            asyncio.get_running_loop().call_soon(self.go, m)  # tokens come after them
        else:
            self.go(m)

    def go(self, m: say.Generate) -> None:
        for index in range(m.terms.n):
            self.running[m.rid + index] = [
                len(m.emitted) // 4,
                m.terms.sampling.max_new_tokens,
                m.terms.sampling.top_logprobs,
                m,
            ]

    def script_of(self, rid: int) -> list[str]:
        return self.script

    def step(self) -> None:
        """One token for everybody."""
        rows, top, top_texts = [], [], []
        for rid in [rid for rid, state in self.running.items() if not state[1]][: self.at_once]:
            request = self.running.pop(rid)[3]
            self.frontend.deliver(say.Pooled(rid, column("f", self.row(request)), 7, 3))
        for rid, state in [(rid, state) for rid, state in self.running.items() if state[1]]:
            token, text = word(state[0])
            script = self.script_of(rid)
            text = script[state[0]] if script else self.text or text
            state[0] += 1
            finish = (
                say.STOP
                if state[0] >= (len(script) or self.stop_after)
                else say.LENGTH
                if state[0] >= state[1]
                else say.RUNNING
            )
            if state[2]:
                top.append((len(rows), column("i", [1, token]), column("f", [-0.25, -0.5])))
                top_texts.append(("one", text))
            rows.append((rid, token, text, state[0], finish))
            if finish:
                del self.running[rid]
        if rows:
            self.frontend.deliver(texts(*rows, top=tuple(top), top_texts=tuple(top_texts)))

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self.pace if self.running else 0.001)
            if not self.paused:
                self.step()

    def crash(self) -> None:
        """What a repair does: every actor but the front loses its requests."""
        self.running.clear()
        self.frontend.reset()

    def begin(self) -> None:
        self.frontend.begin(say.Begin(epoch=1, facts=self.facts))


@dataclass
class Site:
    session: aiohttp.ClientSession
    engine: Engine
    frontend: ResumableTable
    address: tuple[str, int]

    async def post(self, path: str, body, **options) -> tuple[int, dict, aiohttp.typedefs.CIMultiDictProxy]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(path, data=data, **options) as response:
            text = await response.read()
            return response.status, json.loads(text), response.headers

    async def get(self, path: str, **options):
        async with self.session.get(path, **options) as response:
            return response.status, await response.text(), response.headers

    async def events(self, body, path: str = "/generate_stream") -> list[dict]:
        async with self.session.post(path, json=body) as response:
            assert response.status == 200, await response.text()
            return parse(await response.read())

    def fail(self, error: EngineError) -> None:
        """The engine fails every request."""
        for live in list(self.frontend.requests):
            self.frontend.deliver(say.Rejected(live.rid, say.ErrorInfo.of(error)))

    async def raw(self, data: bytes, *, until_close: bool = True, seconds: float = PATIENCE) -> bytes:
        """Send bytes as they are; what comes back until the server closes."""
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.read(-1 if until_close else 65536), seconds)
        finally:
            writer.close()

    async def settled(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)


async def resumed_at_every_event(s: Site, path: str, asked: dict, read: Callable[[bytes], object]) -> None:
    """Break the stream before and behind each event that has a number: with the rest it reads as the whole."""
    headers = {"X-Request-Id": "mine", "Accept": "text/event-stream"}
    async with s.session.post(path, json=asked | {"stream": True}, headers=headers) as response:
        data = await response.read()
    whole, blocks = read(data), data.split(b"\n\n")
    numbers = [int(block.split(b"\n")[0][4:]) for block in blocks if block.startswith(b"id: ")]
    assert numbers
    assert numbers == sorted(set(numbers))
    for number in (0, *numbers):
        cut = next((i for i, block in enumerate(blocks) if block.startswith(b"id: %d\n" % number)), -1) + 1
        async with s.session.get("/requests/mine", headers={"Last-Event-ID": str(number)}) as response:
            rest = await response.read()
        assert read(b"".join(block + b"\n\n" for block in blocks[:cut]) + rest) == whole


def parse(data: bytes) -> list[dict]:
    """The events of a stream, whether or not they have numbers."""
    return [event for _, event in _events(data)]


def numbered(data: bytes) -> list[tuple[int | None, dict]]:
    """(id, event) of a stream; each has a line `id:` unless it is an error."""
    events = _events(data)
    assert all((number is None) == ("error" in event) for number, event in events)
    return events


def _events(data: bytes) -> list[tuple[int | None, dict]]:
    """An event may begin with a line `id:`, has one `data:` without a space, and ends with a blank line."""
    chunks = data.decode().split("\n\n")
    assert chunks.pop() == ""
    found = []
    for chunk in chunks:
        *ids, line = chunk.split("\n")
        assert line.startswith("data:{")
        found.append((int(ids[0].removeprefix("id:")) if ids else None, json.loads(line[5:])))
    return found


@contextlib.asynccontextmanager
async def site(
    *, begun: bool = True, engine: Engine | None = None, stats=None, feed=None, journal=None, **options
) -> AsyncIterator[Site]:
    app_options = {key: options.pop(key) for key in ("keys", "public_metrics", "traces") if key in options}
    config = HttpConfig(port=0, **{"allowed_host": ("x",), **options})  # bytes of tests say Host: x
    engine = engine or Engine()
    limits = RequestLimits(config.max_live_requests, len(app_options.get("keys") or ()))
    frontend = ResumableTable(
        engine.to_tokenizer,
        engine.to_router,
        limits=limits,
        queue_seconds=config.max_queue_seconds,
        resume_window=config.resume_window,
        journal=journal,
    )
    engine.frontend = frontend
    if feed is not None:
        app_options["feed"] = feed(frontend)
    app = create_app(frontend, config, model=ModelConfig(), stats=stats or dict, **app_options)
    sock = socket.create_server(("127.0.0.1", 0))
    port = await serve(app, sock, config, tls=server_context(config), shutdown=0.1)
    if begun:
        engine.begin()
    ticking = asyncio.create_task(engine.run())
    base = "http{}://{}:{}".format("s" if config.ssl_certfile else "", *port.address)
    trust = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=config.ssl_certfile))
    try:
        timeout = aiohttp.ClientTimeout(total=10)
        headers = {"Accept": "text/event-stream, application/json"}
        async with aiohttp.ClientSession(
            base, connector=trust, timeout=timeout, auto_decompress=False, headers=headers
        ) as session:
            yield Site(session, engine, frontend, port.address)
    finally:
        ticking.cancel()
        await port.close()


def run(test: Callable[[Site], Awaitable[None]], *, seconds: float = 15.0, **options) -> None:
    """Run a test body against a site, for at most so many seconds."""

    async def main() -> None:
        async with asyncio.timeout(seconds), site(**options) as s:
            await test(s)

    asyncio.run(main())
