"""The load generator: sends requests and records when each event arrives.

It does little while requests run: bodies are encoded before the start, events are only counted, and the last event of
an answer is decoded. With a rate, latencies count from the time a request was due, so a client that falls behind does
not make the server look faster.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from lightllm_mp.cli.bench.events import EventCounter, decode, failure
from lightllm_mp.cli.bench.workload import Request
from lightllm_mp.machine import raise_open_file_limit

EVENTS = {"Accept": "text/event-stream"}
"""A header with which the events of a stream have numbers."""
RESUMES, RESUME_PAUSE = 3, 0.2
"""How often a client reconnects after a broken connection, and after how many seconds."""


@dataclass(slots=True)
class RequestOutcome:
    """The result of one request. Times are seconds of one clock. `arrivals`: one entry per event of a stream."""

    start: float
    end: float = 0.0
    arrivals: array[float] = field(default_factory=lambda: array("d"))
    input_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    resumed: int = 0
    """How often the client reconnected after a broken connection."""


@dataclass(slots=True, frozen=True)
class BenchTarget:
    """The server under test, and how to send requests to it."""

    url: str
    stream: bool = True
    ignore_eos: bool = False
    timeout: float = 600.0
    api_key: str | None = None
    entry: Callable[[str], dict[str, str]] | None = None
    """From the name of an image to its entry in a request (pictures.py)."""

    @property
    def endpoint(self) -> str:
        return self.url.rstrip("/") + ("/generate_stream" if self.stream else "/generate")

    def body(self, request: Request) -> bytes:
        parameters: dict[str, Any] = {"max_new_tokens": request.output_len, "do_sample": False}
        if self.ignore_eos:
            parameters["ignore_eos"] = True
        if not isinstance(request.prompt, str):
            parameters["add_special_tokens"] = False
        body = {"inputs": request.prompt, "parameters": parameters}
        if request.images and self.entry is not None:
            body["multimodal_params"] = {"images": [self.entry(name) for name in request.images]}
        return json.dumps(body).encode()

    def session(self) -> aiohttp.ClientSession:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            headers=headers,
        )


Tick = Callable[[RequestOutcome], None]
Send = Callable[[Request, bytes, float], Coroutine[Any, Any, None]]


async def drive(
    target: BenchTarget,
    requests: list[Request],
    *,
    rate: float | None = None,
    concurrency: int = 1,
    seed: int = 0,
    on_done: Tick = lambda outcome: None,
) -> list[RequestOutcome]:
    """Send all requests: `rate` per second with Poisson arrivals (inf: all at once), else `concurrency` at a time."""
    raise_open_file_limit()  # each request has its own socket
    jobs = [(request, target.body(request)) for request in requests]
    outcomes: list[RequestOutcome] = []
    async with target.session() as session:

        async def send(request: Request, body: bytes, start: float) -> None:
            outcome = await _one(session, target, request, body, start)
            outcomes.append(outcome)
            on_done(outcome)

        if rate is None:
            queue = iter(jobs)
            await asyncio.gather(*(_closed_loop(queue, send) for _ in range(concurrency)))
        else:
            await _open_loop(jobs, send, rate, seed)
    return outcomes


async def _closed_loop(queue: Iterator[tuple[Request, bytes]], send: Send) -> None:
    for request, body in queue:
        await send(request, body, time.perf_counter())


async def _open_loop(jobs: list[tuple[Request, bytes]], send: Send, rate: float, seed: int) -> None:
    rng = random.Random(f"arrivals-{seed}")
    due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for request, body in jobs:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(send(request, body, due))
            due += rng.expovariate(rate) if rate < float("inf") else 0.0


async def _one(
    session: aiohttp.ClientSession, target: BenchTarget, request: Request, body: bytes, start: float
) -> RequestOutcome:
    """Send a request. If the connection breaks, reconnect for the rest, as a client of a server under repair does."""
    outcome = RequestOutcome(start=start, input_tokens=request.input_len)
    name, events = secrets.token_hex(16), EventCounter()
    again = target.url.rstrip("/") + f"/requests/{name}"
    try:
        for attempt in range(1 + RESUMES):
            try:
                if attempt:
                    await asyncio.sleep(RESUME_PAUSE)
                    sending = session.get(again, headers={"Last-Event-ID": events.id.decode(), **EVENTS})
                else:
                    sending = session.post(target.endpoint, data=body, headers={"X-Request-Id": name, **EVENTS})
                async with sending as response:
                    await _read(response, target, outcome, events)
                break
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                if attempt == RESUMES:
                    raise
                outcome.resumed += 1
    except TimeoutError:
        outcome.error = "timeout"
    except aiohttp.ClientError as error:
        outcome.error = type(error).__name__
    outcome.end = time.perf_counter()
    return outcome


async def _read(
    response: aiohttp.ClientResponse, target: BenchTarget, outcome: RequestOutcome, events: EventCounter
) -> None:
    if response.status != 200:
        outcome.error = f"HTTP {response.status}: {_reason(await response.read())}"
    elif target.stream:
        await _read_stream(response, outcome, events)
    else:
        _note(outcome, decode(await response.read()))


async def _read_stream(response: aiohttp.ClientResponse, outcome: RequestOutcome, events: EventCounter) -> None:
    async for chunk in response.content.iter_any():
        count = events.feed(chunk)
        if count:
            outcome.arrivals.extend([time.perf_counter()] * count)
    if not outcome.arrivals:
        outcome.error = "the stream has no events"
        return
    last = decode(events.last)
    _note(outcome, {**last, **(last.get("token") or {})})
    outcome.output_tokens = outcome.output_tokens or len(outcome.arrivals)


def _note(outcome: RequestOutcome, answer: dict[str, Any]) -> None:
    """Use the server's token counts if the answer has them."""
    outcome.error = failure(answer)
    count = answer.get("count_output_tokens") or 0
    outcome.output_tokens = sum(count) if isinstance(count, list) else count
    outcome.input_tokens = answer.get("prompt_tokens") or outcome.input_tokens


def _reason(body: bytes) -> str:
    error = decode(body).get("error")
    if isinstance(error, dict):
        return str(error.get("code") or error.get("message"))[:200]
    return body[:200].decode("utf-8", "replace")
