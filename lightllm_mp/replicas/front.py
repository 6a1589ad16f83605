"""The front of a fleet: it holds each request until its last byte is delivered, and sends it to another replica when
one is lost. The same rule as inside an engine (docs/architecture.md): a crash costs time, never a request."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from time import monotonic

import msgspec

from lightllm_mp.replicas import frames
from lightllm_mp.replicas.call import Fleet, RelayCall, ReplicaLost
from lightllm_mp.replicas.engine_client import LABEL
from lightllm_mp.replicas.footprint import Footprint, footprint
from lightllm_mp.replicas.frames import FrameReader, Head, Record
from lightllm_mp.replicas.routing import ReplicaRouter

log = logging.getLogger(__name__)

AVOIDED = 5.0
"""Seconds for which a request does not go back to a replica that was lost or refused it."""
FRUITLESS = 3
"""A request that loses so many replicas without another token is given up: it may be what ends them."""
OWNERS = 100_000
"""Requests whose replica is remembered, for clients that come back."""
TIMEOUT = "X-Request-Timeout"
FORWARDED = ("Content-Type", LABEL, "Last-Event-ID", "Accept", "traceparent", "tracestate")
"""Headers of the client that the engine gets; keys stay here."""
OWNED = ("/requests/", "/v1/responses/")


class FleetFront:
    def __init__(self, fleet: Fleet, router: ReplicaRouter, *, wait: float = 30.0, begun_wait: float = 600.0) -> None:
        """`wait`: seconds for which a request waits while no replica takes it; `begun_wait`: one that has begun."""
        self._fleet, self._router, self._wait, self._begun_wait = fleet, router, wait, begun_wait
        self._owners: OrderedDict[tuple[str, str], str] = OrderedDict()
        """(tenant, label) -> replica."""
        self.moved = self.lost = 0
        """Requests that went on at another replica, and those that could not."""

    @property
    def ready(self) -> bool:
        """A replica accepts requests."""
        return any(replica.accepting for replica in self._router.replicas.values())

    async def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, tenant: bytes = b""
    ) -> AsyncIterator[Head | bytes]:
        """The head of the answer, then its bytes."""
        given = {name.lower(): value for name, value in headers.items()}
        kept = {name: given[name.lower()] for name in FORWARDED if name.lower() in given}
        kept.setdefault(LABEL, secrets.token_hex(16))
        call = RelayCall(method=method, path=path, headers=kept, body=body, tenant=tenant.hex())
        asked = _Asked(call, given.get(TIMEOUT.lower()))
        if path.startswith(OWNED) or "Last-Event-ID" in kept:
            pieces = self._owned(asked)
        else:
            pieces = self._routed(asked, footprint(body, tenant) if method == "POST" else Footprint())
        async for piece in pieces:
            yield piece

    async def _routed(self, asked: _Asked, needs: Footprint) -> AsyncIterator[Head | bytes]:
        until, avoided = min(monotonic() + self._wait, asked.deadline), dict[str, float]()
        refused: list[Head | bytes] = []
        while True:
            now = monotonic()
            without = {name for name, end in avoided.items() if end > now}
            name = self._router.choose(needs, without=without)
            if name is None and refused and not asked.record:
                for piece in refused:
                    yield piece
                return
            if name is None:
                if now > until:
                    self.lost += bool(asked.record)
                    for piece in asked.failure(503, "no replica is ready"):
                        yield piece
                    return
                await asyncio.sleep(0.1)
                continue
            work = self._router.sent(name, needs)
            self._remember(asked.call, name)
            try:
                refused = []
                async for piece in asked.attempt(self._fleet, name):
                    if asked.refusal is None:
                        yield piece
                    else:
                        refused.append(piece)
                if asked.refusal is None:
                    return
                avoided[name] = now + self._wait  # this one is full or starts: another may take it
            except ReplicaLost as error:
                log.warning("replica %s is lost to a request: %s", name, error)
                if not asked.can_go_on or asked.fruitless == FRUITLESS:
                    self.lost += 1
                    why = "replicas are lost with this request repeatedly" if asked.can_go_on else "its replica is lost"
                    for piece in asked.failure(502, why):
                        yield piece
                    return
                avoided[name] = monotonic() + AVOIDED
                if error.reached:
                    self.moved += 1
                    wait = self._begun_wait if asked.record else self._wait
                    until = min(monotonic() + wait, asked.deadline)
            finally:
                self._router.done(name, work)

    async def _owned(self, asked: _Asked) -> AsyncIterator[Head | bytes]:
        """What one replica keeps: it is asked first, then the others."""
        call = asked.call
        label = call.headers[LABEL] if call.method == "POST" else call.path.split("?")[0].rsplit("/", 1)[1]
        owner = self._owners.get((call.tenant, label))
        for name in sorted(self._router.replicas, key=lambda name: name != owner):
            try:
                async for piece in asked.attempt(self._fleet, name):
                    if isinstance(piece, Head) and piece.status == 404:
                        asked.forget()
                        break
                    yield piece
                else:
                    return
            except ReplicaLost:
                if asked.shown:  # with its record it goes on elsewhere
                    if asked.record:
                        async for piece in self._routed(asked, Footprint()):
                            yield piece
                    else:
                        yield asked.failure(502, "its replica is lost")[0]
                    return
        for piece in asked.failure(404, "no replica has this request"):
            yield piece

    def _remember(self, call: RelayCall, name: str) -> None:
        self._owners[call.tenant, call.headers[LABEL]] = name
        self._owners.move_to_end((call.tenant, call.headers[LABEL]))
        while len(self._owners) > OWNERS:
            self._owners.popitem(last=False)


class _Asked:
    """A request and how far its answer has come."""

    def __init__(self, call: RelayCall, timeout: str | None) -> None:
        self.call, self.record = call, Record()
        self.head: Head | None = None
        self.refusal: Head | None = None
        """The replica took it not."""
        self.shown = False
        """The client has bytes of the answer."""
        self.fruitless = 0
        """Replicas that were lost since the last token."""
        self._events = call.taken
        self._timeout = timeout
        self.deadline = monotonic() + _seconds(timeout)

    @property
    def can_go_on(self) -> bool:
        """Another replica can give the rest."""
        return bool(self.record) or not self.shown

    def forget(self) -> None:
        """The answer that came is none."""
        self.head, self.shown = None, False

    async def attempt(self, fleet: Fleet, name: str) -> AsyncIterator[Head | bytes]:
        """What a replica adds to the answer. Raises ReplicaLost."""
        self.refusal, whole, reader = None, list[bytes](), FrameReader()
        self.fruitless += 1
        streamed = self.head is not None and self.head.streamed
        pieces = fleet.call(name, self._next_call())
        try:
            while True:
                piece = await anext(pieces, None)
                if piece is None:
                    raise ReplicaLost("its answer ends early")
                for frame in reader.feed(piece):
                    match frame[:1]:
                        case frames.HEAD:
                            head, whole = frames.head(frame), []
                            if self.shown:
                                if head.status != 200:
                                    full = head.status in (429, 503)
                                    raise ReplicaLost(f"it answers {head.status}", reached=not full)
                                continue
                            self.refusal = head if head.status in (429, 503) else None
                            self.head, streamed = head, head.streamed
                            if streamed:
                                self.shown = True
                                yield head
                        case frames.BODY:
                            self._events, data = frames.body(frame)
                            if not streamed:
                                whole.append(data)
                            elif data:
                                yield data
                        case frames.END:
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
        except ReplicaLost as error:
            self.fruitless -= not error.reached
            raise
        finally:
            await pieces.aclose()

    def failure(self, status: int, message: str) -> list[Head | bytes]:
        """The end of an answer that nobody can give."""
        error = msgspec.json.encode(
            {"error": {"message": message, "type": "server_error", "param": None, "code": "replica_lost"}}
        )
        if self.shown:
            return [b"data:" + error + b"\n\n"]
        return [Head(status, {"Content-Type": "application/json", "Retry-After": "5"}), error]

    def _next_call(self) -> RelayCall:
        headers = dict(self.call.headers)
        if self._timeout is not None:
            left = self.deadline - monotonic()
            # Of one that is no number the engine says what is wrong with it.
            headers[TIMEOUT] = f"{max(0.001, left):.3f}" if math.isfinite(left) else self._timeout
        if not self.record:
            return msgspec.structs.replace(self.call, headers=headers)
        return RelayCall(
            method="POST",
            path="/relay",
            headers=headers,
            body=self.record.framed(),
            tenant=self.call.tenant,
            taken=self._events,
        )


def _seconds(timeout: str | None) -> float:
    """Infinity: there is none, or it is no number."""
    try:
        seconds = float(timeout or "inf")
    except ValueError:
        return math.inf
    return math.inf if math.isnan(seconds) else seconds
