"""The front of a fleet: it holds each request until its last byte is delivered, and sends it to another replica when
one is lost. The rule is the same as inside an engine (docs/architecture.md): a crash costs time, never a request."""

from __future__ import annotations

import logging
import math
from asyncio import gather, sleep
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from time import monotonic

import msgspec

from lightllm_mp.actors.http.access_log import checked_label
from lightllm_mp.errors import DeadlineExceeded, NotFound
from lightllm_mp.replicas import frames
from lightllm_mp.replicas.call import Fleet, RelayCall, ReplicaLost
from lightllm_mp.replicas.engine_client import LABEL
from lightllm_mp.replicas.footprint import Footprint, footprint
from lightllm_mp.replicas.frames import Head, Record
from lightllm_mp.replicas.routing import ReplicaRouter
from lightllm_mp.replicas.stored_responses import PREFIX, ROUTE, UNKNOWN, StoredResponses, previous_label
from lightllm_mp.replicas.whole_answer import whole_answer

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0
"""Seconds that each replica has to answer a question to the whole fleet."""
AVOIDED = 5.0
"""Seconds for which a request does not return to a replica that was lost."""
FRUITLESS = 3
"""A request that loses this many replicas in a row without a new token fails: it may be what crashes them."""
OWNERS = 100_000
"""The most requests whose replica the front remembers, for clients that reconnect."""
TIMEOUT = "X-Request-Timeout"
FORWARDED = (
    LABEL,
    "Accept",
    "Accept-Encoding",
    "Content-Encoding",
    "Content-Type",
    "If-None-Match",
    "Last-Event-ID",
    "traceparent",
    "tracestate",
)
"""Headers of the client that go to the engine. API keys do not."""
OWNED = ("/requests/", "/v1/responses/")
REFUSALS = (429, 503)
"""The replica is full or is starting: another one may take the request."""

Piece = Head | bytes
Answer = AsyncGenerator[Piece, None]
"""The head of an answer, then its bytes."""


class FleetFront:
    def __init__(self, fleet: Fleet, router: ReplicaRouter, *, wait: float = 30.0, begun_wait: float = 600.0) -> None:
        """`wait`: seconds that a request waits for a replica; `begun_wait`: the same for a request that has begun."""
        self._fleet, self._router, self._wait, self._begun_wait = fleet, router, wait, begun_wait
        self.stored = StoredResponses(fleet, router)
        self._owners: OrderedDict[tuple[str, str], str] = OrderedDict()
        """(tenant, label) -> replica."""
        self.moved = self.lost = 0
        """Requests that continued at another replica, and requests that could not."""

    @property
    def replicas(self) -> list[str]:
        """Names of all known replicas."""
        return list(self._router.replicas)

    @property
    def accepting(self) -> int:
        """Number of replicas that take requests."""
        return sum(replica.accepting for replica in self._router.replicas.values())

    async def ask_all(self, path: str, tenant: bytes, access: str) -> dict[str, tuple[int, bytes]]:
        """The status and body of each replica's answer to GET, without replicas that do not answer in ASK_SECONDS."""
        call = RelayCall(
            method="GET", path=path, headers={LABEL: checked_label("")}, tenant=tenant.hex(), access=access
        )
        names = self.replicas
        found = await gather(*(whole_answer(self._fleet, name, call, ASK_SECONDS) for name in names))
        return {
            name: (answer.head.status, answer.body)
            for name, answer in zip(names, found, strict=True)
            if answer is not None
        }

    def answer(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        tenant: bytes = b"",
        access: str = "user",
    ) -> Answer:
        """`access`: what the client's key permits. The caller closes the answer when the client disconnects."""
        given = {name.lower(): value for name, value in headers.items()}
        kept = {name: given[name.lower()] for name in FORWARDED if name.lower() in given}
        kept[LABEL] = checked_label(kept.get(LABEL, ""))
        call = RelayCall(method=method, path=path, headers=kept, body=body, tenant=tenant.hex(), access=access)
        asked = _Asked(call, given.get(TIMEOUT.lower()))
        if path.startswith(OWNED) and method == "DELETE":
            return self._deleted(asked)
        if path.startswith(OWNED) or "Last-Event-ID" in kept:
            return self._owned(asked)
        return self._routed(asked, footprint(body, tenant) if method == "POST" else Footprint())

    async def _routed(self, asked: _Asked, needs: Footprint) -> Answer:
        until, avoided, refused = self._patience(asked), dict[str, float](), list[list[Piece]]()
        tenant, previous = asked.call.tenant, previous_label(asked.call.path, asked.call.body)
        holders = self.stored.holders(previous, self._owners.get((tenant, previous))) if previous else []
        while True:
            now = monotonic()
            without = {name for name, end in avoided.items() if end > now}
            holder = next((name for name in holders if name not in without and self._router.accepts(name)), None)
            name = holder or self._router.choose(needs, without=without)
            if name is None and refused and not asked.record:
                for piece in min(refused, key=_retry_after):
                    yield piece
                return
            if name is None and now > until:
                self.lost += bool(asked.record)
                for piece in asked.expired() if asked.overdue else asked.failure(503, "no replica is ready"):
                    yield piece
                return
            if name is None:
                await sleep(0.1)
                continue
            work = self._router.sent(name, needs)
            self._remember(asked.call, name)
            withheld = list[Piece]()
            try:
                async with aclosing(asked.attempt(self._fleet, name)) as pieces:
                    async for piece in pieces:
                        if asked.refusal is None:
                            yield piece
                        else:
                            withheld.append(piece)
            except ReplicaLost as error:
                log.warning("replica %s is lost to a request: %s", name, error)
                if not asked.can_go_on or asked.fruitless == FRUITLESS:
                    self.lost += 1
                    why = "replicas are lost with this request repeatedly" if asked.can_go_on else "its replica is lost"
                    for piece in asked.failure(502, why):
                        yield piece
                    return
                avoided[name], refused = monotonic() + AVOIDED, []
                if error.reached:
                    self.moved += 1
                    until = self._patience(asked)
                continue
            finally:
                self._router.done(name, work)
            if asked.refusal is None:
                self._completed(asked, name)
                return
            if asked.refusal.status not in REFUSALS:
                unknown = previous and any(UNKNOWN in piece for piece in withheld if isinstance(piece, bytes))
                record = await self.stored.find(tenant, previous) if unknown else None
                if record is None:
                    for piece in withheld:
                        yield piece
                    return
                if await self.stored.give(name, tenant, previous, record):
                    previous, holders = "", [name]
                    continue
            else:
                refused.append(withheld)
            avoided[name] = monotonic() + self._wait

    async def _owned(self, asked: _Asked) -> Answer:
        """The answer about a request that one replica keeps. That replica is asked first, then the others."""
        call = asked.call
        label = call.headers[LABEL] if call.method == "POST" else _named(call.path)
        missing = asked.failure(404, "no replica has this request", NotFound.code, NotFound.type)
        for name in self.stored.order(label, self._owners.get((call.tenant, label))):
            asked.forget()
            try:
                async with aclosing(asked.attempt(self._fleet, name)) as pieces:
                    async for piece in pieces:
                        if asked.head is None or asked.head.status != 404:
                            yield piece
                        else:
                            missing = [piece] if isinstance(piece, Head) else [*missing, piece]
                if asked.head is not None and asked.head.status != 404:
                    return
            except ReplicaLost:
                if asked.shown:  # with its record it continues at another replica
                    if asked.record:
                        async with aclosing(self._routed(asked, Footprint())) as pieces:
                            async for piece in pieces:
                                yield piece
                    else:
                        yield asked.failure(502, "its replica is lost")[0]
                    return
        for piece in missing:
            yield piece

    async def _deleted(self, asked: _Asked) -> Answer:
        """Deletes a stored response at all replicas: several have it."""
        found = await self.stored.delete(asked.call)
        self._owners.pop((asked.call.tenant, _named(asked.call.path)), None)
        for piece in found or asked.failure(404, "no replica has this request", NotFound.code, NotFound.type):
            yield piece

    def _completed(self, asked: _Asked, name: str) -> None:
        if asked.call.path.startswith(ROUTE) and asked.record:
            self.stored.keep(asked.call.tenant, asked.call.headers[LABEL], asked.record, name)

    def _patience(self, asked: _Asked) -> float:
        """The time (monotonic) until which the request waits for a replica."""
        return min(monotonic() + (self._begun_wait if asked.record else self._wait), asked.deadline)

    def _remember(self, call: RelayCall, name: str) -> None:
        self._owners[call.tenant, call.headers[LABEL]] = name
        self._owners.move_to_end((call.tenant, call.headers[LABEL]))
        while len(self._owners) > OWNERS:
            self._owners.popitem(last=False)


class _Asked:
    """A request and the progress of its answer."""

    def __init__(self, call: RelayCall, timeout: str | None) -> None:
        self.call, self.record = call, Record()
        self.head: Head | None = None
        self.refusal: Head | None = None
        """The head of a replica's refusal that the client has not received."""
        self.shown = False
        """The client has received bytes of the answer."""
        self.fruitless = 0
        """Replicas that the request has reached since its last token."""
        self._events = call.taken
        self._timeout = timeout
        self.deadline = monotonic() + _seconds(timeout)

    @property
    def overdue(self) -> bool:
        """Its deadline has passed."""
        return monotonic() >= self.deadline

    @property
    def can_go_on(self) -> bool:
        """Another replica can continue the answer."""
        return bool(self.record) or not self.shown

    def forget(self) -> None:
        """Discard the answer of the replica that was asked before."""
        self.head, self.shown = None, False

    async def attempt(self, fleet: Fleet, name: str) -> Answer:
        """The pieces that one replica adds to the answer. Raises ReplicaLost."""
        self.refusal, whole = None, list[bytes]()
        self.fruitless += 1
        streamed = self.head is not None and self.head.streamed
        try:
            async with aclosing(fleet.call(name, self._next_call())) as answer:
                async for some in answer:
                    data = b""
                    for frame in some:
                        match frame[:1]:
                            case frames.BODY:
                                self._events, part = frames.body(frame)
                                if streamed:
                                    data += part
                                else:
                                    whole.append(part)
                            case frames.HEAD:
                                head, whole = frames.head(frame), []
                                if self.shown and head.status != 200:
                                    full = head.status in REFUSALS
                                    raise ReplicaLost(f"it answers {head.status}", reached=not full)
                                if not self.shown:
                                    self.refusal = head if head.status in (400, *REFUSALS) else None
                                    self.head, streamed = head, head.streamed
                                    if streamed:
                                        self.shown = True
                                        yield head
                            case frames.END:
                                if data:
                                    yield data
                                if not streamed and self.head is not None:
                                    self.shown = self.refusal is None
                                    yield self.head
                                    yield b"".join(whole)
                                return
                            case frames.ALIVE:
                                pass
                            case kind:
                                self.record.add(frame)
                                self.fruitless = 0 if kind == frames.EVENTS else self.fruitless
                    if data:
                        yield data
        except ReplicaLost as error:
            self.fruitless -= not error.reached
            raise
        raise ReplicaLost("its answer ends early")

    def failure(self, status: int, message: str, code: str = "replica_lost", type: str = "server_error") -> list[Piece]:
        """The end of an answer that no replica can give: an event if the client has received bytes, else a response."""
        error = msgspec.json.encode({"error": {"message": message, "type": type, "param": None, "code": code}})
        if self.shown:
            return [b"data:" + error + b"\n\n"]
        return [Head(status, {"Content-Type": "application/json", "Retry-After": "5"}), error]

    def expired(self) -> list[Piece]:
        """The end of an answer whose deadline has passed."""
        late = DeadlineExceeded("the deadline of this request has passed")
        return self.failure(late.status, late.message, late.code, late.type)

    def _next_call(self) -> RelayCall:
        headers = dict(self.call.headers)
        if self._timeout is not None:
            left = self.deadline - monotonic()
            # The engine refuses a value that is not a number, with its own message.
            headers[TIMEOUT] = f"{max(0.001, left):.3f}" if math.isfinite(left) else self._timeout
        if not self.record:
            return msgspec.structs.replace(self.call, headers=headers)
        return RelayCall(
            method="POST",
            path="/relay",
            headers=headers,
            body=self.record.framed(),
            tenant=self.call.tenant,
            access="relay",
            taken=self._events,
        )


def _named(path: str) -> str:
    """The label of the request at the end of a path."""
    return path.split("?")[0].rsplit("/", 1)[1].removeprefix(PREFIX)


def _retry_after(refusal: list[Piece]) -> float:
    """Seconds after which the replica says that it may take the request; infinity if it does not say."""
    head = refusal[0]
    assert isinstance(head, Head)
    return float(head.headers.get("Retry-After", "inf"))


def _seconds(timeout: str | None) -> float:
    """The header's value; infinity if it is absent or engines refuse it."""
    try:
        seconds = float(timeout or "inf")
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf
