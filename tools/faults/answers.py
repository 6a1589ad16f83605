"""One request to a server that may be disturbed: its answer, and whether it is the expected one."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tools.faults.requests import Case
from tools.faults.streams import DONE, BadStream, Event, failure, is_last, whole

BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)
LOGPROB_TOLERANCE = 2e-3
"""Tolerance: sums in a batch of another size differ in their last digits."""

NATIVE = ("/generate", "/generate_stream", "/tokens")
OWN = {
    *("id", "call_id", "created", "created_at", "completed_at", "signature"),
    *("prompt_tokens_details", "input_tokens_details", "cache_read_input_tokens"),
}
"""Fields that differ in every answer: ids, times, and the cached part of the prompt."""


@dataclass
class Answer:
    """A client's answer: the parts that must be equal in a second answer, and the logprobs, which must be near."""

    status: int = 200
    exact: list[Any] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    pause: float = 0.0
    """Longest time between two events, in seconds."""
    resumed: int = 0
    """How often the connection broke and the client reconnected for the rest."""

    @property
    def text(self) -> str:
        """Of the first answer."""
        return self.exact[0] if isinstance(self.exact[0], str) else self.exact[0][0]

    def same(self, other: Answer) -> bool:
        return (
            (self.status, self.exact) == (other.status, other.exact)
            and len(self.near) == len(other.near)
            and all(abs(a - b) <= LOGPROB_TOLERANCE for a, b in zip(self.near, other.near, strict=True))
        )


def first_difference(got: Answer, want: Answer) -> str:
    """The first difference of two answers, in short."""
    if got.status != want.status:
        return f"status {got.status} {got.exact[:1]} instead of {want.status}"
    for index, (a, b) in enumerate(zip(got.exact, want.exact, strict=False)):
        if a != b:
            ours, theirs = (value[0] if isinstance(value, list) and len(value) == 1 else value for value in (a, b))
            if not isinstance(ours, list | str) or not isinstance(theirs, list | str):
                return f"part {index}: {ours!r} instead of {theirs!r}"
            at = next((i for i, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y), len(theirs))
            return (
                f"part {index} at {at} of {len(theirs)}: {str(ours[at:])[:40]!r} instead of {str(theirs[at:])[:40]!r}"
            )
    return f"{len(got.near)} logprobs instead of {len(want.near)}, or values that are too far apart"


class Refused(Exception):
    """Status 429 or 503: the server did not accept the request; try again."""


class WrongShape(Exception):
    """The answer breaks the API: an event after the last one, or data that cannot be read."""


class Broken(Exception):
    """The connection ended before the answer."""


RESUME_PAUSE = 0.05
"""Seconds until a client with a broken connection reconnects."""


@dataclass
class Reader:
    """One request and the events that its client has read; it survives the connection."""

    case: Case
    label: str = field(default_factory=lambda: secrets.token_hex(16))
    answer: Answer = field(default_factory=Answer)
    events: list[Event] = field(default_factory=list)
    number: int = 0
    """Number of the last event that has one."""
    kept: int = 0
    """Number of events up to that one. A client that reconnects gets the later events again."""
    over: bool = False
    last: float = field(default_factory=time.monotonic)


async def ask(session: aiohttp.ClientSession, case: Case) -> Answer | None:
    """Sends one request over as many connections as it takes. None: the client left, as planned. Raises Refused, Broken
    (the server does not know the request) or WrongShape."""
    if case.leave_after is not None and not case.streams:
        try:
            return await asyncio.wait_for(_ask(session, Reader(case)), case.leave_after)
        except TimeoutError:
            return None
    return await _ask(session, Reader(case))


async def _ask(session: aiohttp.ClientSession, reader: Reader) -> Answer | None:
    case = reader.case
    headers = {"X-Request-Id": reader.label, "Accept": "text/event-stream"}
    try:
        async with session.post(case.path, json=case.body, headers=headers) as reply:
            return await _read(reply, reader)
    except BROKEN as error:
        broken = error
    if not case.resumable:
        raise Broken(f"{type(broken).__name__}: {broken}")
    while True:
        reader.answer.resumed += 1
        await asyncio.sleep(RESUME_PAUSE)
        try:
            del reader.events[reader.kept :]
            headers = {"Last-Event-ID": str(reader.number), "Accept": "text/event-stream"}
            async with session.get(f"/requests/{reader.label}", headers=headers) as reply:
                if reply.status == 404 and not reader.number:
                    raise Broken(f"{type(broken).__name__}: {broken}")
                return await _read(reply, reader)
        except (Refused, *BROKEN):
            continue


async def _read(reply: aiohttp.ClientResponse, reader: Reader) -> Answer | None:
    if reply.status in (429, 503):
        if "Retry-After" not in reply.headers:
            raise WrongShape(f"{reply.status} without Retry-After")
        raise Refused
    if reply.status == 200 and reader.case.streams:
        return await _read_stream(reply, reader)
    data = await reply.read()
    try:
        value = json.loads(data)
    except ValueError:
        raise WrongShape(f"{reply.status}: {data[:200]!r}") from None
    if reply.status != 200:
        error = value["error"]
        return Answer(reply.status, [error.get("code") or error["type"]], resumed=reader.answer.resumed)
    answer = _native(value) if reader.case.path in NATIVE else _any(value)
    answer.resumed = reader.answer.resumed
    return answer


async def _read_stream(reply: aiohttp.ClientResponse, reader: Reader) -> Answer | None:
    answer, case = reader.answer, reader.case
    number = 0
    async for line in reply.content:
        if line.startswith(b"id:"):
            number = int(line[3:])
        if not line.startswith(b"data:"):
            continue
        now = time.monotonic()
        answer.pause, reader.last = max(answer.pause, now - reader.last), now
        if reader.over:
            raise WrongShape("an event after the last")
        text = line[5:].strip().decode()
        event = text if text == DONE else json.loads(text)
        if (code := failure(event)) is not None:
            return Answer(reply.status, [code])
        reader.events.append(event)
        _count(reader, number)
        number, reader.over = 0, is_last(case.path, event)
        if case.leave_after is not None and len(reader.events) > case.leave_after:
            return None
    if not reader.over:
        raise aiohttp.ClientPayloadError(f"the stream ended after {len(reader.events)} events without its last one")
    try:
        found = _native_stream(reader.events) if case.path in NATIVE else _any(whole(case.path, reader.events))
    except BadStream as error:
        raise WrongShape(str(error)) from None
    answer.exact, answer.near = found.exact, found.near
    return answer


def _count(reader: Reader, number: int) -> None:
    """Takes an event. It has a number if it is the last event of a token."""
    if reader.case.path in NATIVE and number != reader.number + 1:
        raise WrongShape(f"event {number} after event {reader.number}")
    if number:
        if number <= reader.number:
            raise WrongShape(f"event {number} after event {reader.number}")
        reader.number, reader.kept = number, len(reader.events)


def _native_stream(events: list[Event]) -> Answer:
    """Reads an answer of /generate_stream."""
    tokens = [event["token"] for event in events if event["token"]["id"] >= 0]
    text = "".join(event["token"]["text"] for event in events)
    exact = [text, [token["id"] for token in tokens], events[-1]["finish_reason"]]
    return Answer(exact=exact, near=[token["logprob"] for token in tokens])


def _any(value: Any) -> Answer:
    """Reads the answer of any other API."""
    near: list[float] = []
    return Answer(exact=[json.dumps(_same_again(value, near), sort_keys=True)], near=near)


def _same_again(value: Any, near: list[float]) -> Any:
    """The part of `value` that must be equal in another answer to the same request; its floats go to `near`."""
    if isinstance(value, dict):
        if "cache_read_input_tokens" in value:
            value = {**value, "input_tokens": value["input_tokens"] + value["cache_read_input_tokens"]}
        return {name: _same_again(part, near) for name, part in value.items() if name not in OWN}
    if isinstance(value, list):
        return [_same_again(part, near) for part in value]
    if isinstance(value, float):
        near.append(value)
        return None
    return value


def _native(value: dict[str, Any]) -> Answer:
    """Reads an answer of /generate and /tokens."""
    if "ntokens" in value:
        return Answer(exact=[value["ntokens"]])
    answer = Answer(exact=[value["generated_text"], value["finish_reason"], value["count_output_tokens"]])
    details = value.get("tokens") or []
    answer.exact += [[token["id"] for token in details], value.get("prompt_token_ids")]
    answer.near += [token["logprob"] for token in details]
    for ranked in [*(value.get("logprobs") or []), *(value.get("prompt_logprobs") or [])]:
        entries = ranked or {}
        answer.exact.append(sorted(entries))
        answer.near += [entries[key]["logprob"] for key in sorted(entries)]
    return answer
