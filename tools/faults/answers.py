"""One request to a server that may be disturbed: what came of it, and whether that is what was to come."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tools.faults.requests import Case

BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)
LOGPROB_TOLERANCE = 2e-3
"""Sums of a batch of another size differ in their last digits."""


@dataclass
class Answer:
    """What a client has got: everything that must be the same again, and the logprobs, that must be near."""

    status: int = 200
    exact: list[Any] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    pause: float = 0.0
    """Longest time between two events, seconds."""
    resumed: int = 0
    """How often the connection broke and the client came back for the rest."""

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
    """Where two answers part, short."""
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
    """429 or 503: not accepted, try again."""


class WrongShape(Exception):
    """Not what the API promises: an event after the last, an answer that cannot be read."""


class Broken(Exception):
    """The connection ended before the answer."""


RESUME_PAUSE = 0.05
"""Seconds before a client whose connection broke comes back."""


@dataclass
class Reader:
    """One request and what its client has read so far; it survives the connection."""

    case: Case
    label: str = field(default_factory=lambda: secrets.token_hex(16))
    answer: Answer = field(default_factory=Answer)
    text: str = ""
    ids: list[int] = field(default_factory=list)
    events: int = 0
    finish: str | None = None
    last: float = field(default_factory=time.monotonic)


async def ask(session: aiohttp.ClientSession, case: Case) -> Answer | None:
    """One request, over as many connections as it takes. None: the client left, as it was to. Raises Refused, Broken
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
    if case.path == "/tokens":
        raise Broken(f"{type(broken).__name__}: {broken}")
    while True:
        reader.answer.resumed += 1
        await asyncio.sleep(RESUME_PAUSE)
        try:
            headers = {"Last-Event-ID": str(reader.events)}
            async with session.get(f"/requests/{reader.label}", headers=headers) as reply:
                if reply.status == 404 and not reader.events:
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
        return Answer(reply.status, [value["error"]["code"]], resumed=reader.answer.resumed)
    answer = _whole(value)
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
        event = json.loads(line[5:])
        if reader.finish is not None:
            raise WrongShape("an event after the last")
        if "error" in event:
            return Answer(reply.status, [event["error"]["code"]])
        if number != reader.events + 1:
            raise WrongShape(f"event {number} after event {reader.events}")
        token, reader.finish = event["token"], event["finish_reason"]
        reader.text += token["text"]
        if token["id"] >= 0:
            reader.ids.append(token["id"])
            answer.near.append(token["logprob"])
        reader.events += 1
        if case.leave_after is not None and reader.events > case.leave_after:
            return None
    if reader.finish is None:
        raise aiohttp.ClientPayloadError(f"the stream ended after {reader.events} events without its last one")
    answer.exact = [reader.text, reader.ids, reader.finish]
    return answer


def _whole(value: dict[str, Any]) -> Answer:
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
