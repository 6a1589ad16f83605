"""Stored responses of a fleet. Two replicas keep each response, so one may die; a third gets it when it needs it.

The id alone finds a response. Rendezvous hashing gives every id its own order of replicas, the same for all fronts. The
copy goes to the first replica of this order that did not make the response, and each search begins there. The replicas
decide how long a response stays and how many bytes they keep, as on one machine (--response-window).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from hashlib import blake2b

import msgspec
from msgspec import Struct

from lightllm_mp.actors.http.access_log import is_label
from lightllm_mp.replicas.call import Fleet, RelayCall
from lightllm_mp.replicas.frames import Head, Record
from lightllm_mp.replicas.routing import ReplicaRouter
from lightllm_mp.replicas.whole_answer import whole_answer

log = logging.getLogger(__name__)

ROUTE = "/v1/responses"
PREFIX = "resp_"
UNKNOWN = b'"code":"previous_response_not_found"'
"""Part of a replica's refusal when it does not have the response that a request continues."""
KEPT, HERE = 200, 208
"""Status of a PUT: the replica keeps the copy; the replica already has the response."""
COPY_SECONDS = 30.0
MOST_BYTES = 256 << 20
"""The most bytes of copies in flight. A response that would exceed them gets no copy."""
TRIES = 3
"""The most replicas that are asked to take a copy."""


class _Asked(Struct):
    previous_response_id: str | None = None


_asked = msgspec.json.Decoder(_Asked)


def previous_label(path: str, body: bytes) -> str:
    """The label of the stored response that a request continues; empty if there is none."""
    if path.split("?")[0] != ROUTE:
        return ""
    try:
        id = _asked.decode(body).previous_response_id
    except msgspec.DecodeError:
        return ""
    label = id.removeprefix(PREFIX) if id is not None and id.startswith(PREFIX) else ""
    return label if is_label(label) else ""


class StoredResponses:
    def __init__(self, fleet: Fleet, router: ReplicaRouter) -> None:
        self._fleet, self._router = fleet, router
        self._copying = set[asyncio.Task[None]]()
        self._bytes = 0
        self.without_copy = 0
        """Count of responses without a copy since the start."""

    def order(self, label: str, *first: str | None) -> list[str]:
        """All replicas: `first`, then by the hash of the label, so that the probable holders come first."""
        known = [name for name in first if name in self._router.replicas]
        rest = sorted(self._router.replicas, key=lambda name: _rank(label, name))
        return list(dict.fromkeys([*known, *rest]))

    def holders(self, label: str, maker: str | None) -> list[str]:
        """The two replicas that have the response, if no replica has joined or left since."""
        return self.order(label, maker)[:2]

    def keep(self, tenant: str, label: str, record: Record, maker: str) -> None:
        """Copy the response that `maker` has completed to another replica, if it is to be stored. Returns at once."""
        if not record.keep:
            return
        data = record.framed()
        if self._bytes + len(data) > MOST_BYTES:
            self.without_copy += 1
            return
        self._bytes += len(data)
        task = asyncio.get_running_loop().create_task(self._copy(tenant, label, data, maker))
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)

    async def settled(self) -> None:
        """Wait until no copy is in flight."""
        while self._copying:
            await asyncio.wait(self._copying)

    async def find(self, tenant: str, label: str) -> bytes | None:
        """The record of a response, from a replica that has it; None if no replica does."""
        for name in self.order(label):
            found = await whole_answer(self._fleet, name, _call("GET", tenant, label), COPY_SECONDS)
            if found is not None and found.head.status == 200:
                return found.record.framed()
        return None

    async def give(self, name: str, tenant: str, label: str, record: bytes) -> bool:
        """Send the record to a replica. Returns whether the replica then has the response."""
        return await self._put(name, tenant, label, record) in (KEPT, HERE)

    async def hand_over(self, name: str, seconds: float) -> None:
        """Give the responses of a replica that is about to end to replicas that lack them, the newest first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                found = await whole_answer(self._fleet, name, _call("GET", "", "all", path="/relay/stored"), seconds)
                if found is not None and found.head.status == 200:
                    for tenant, label in reversed(msgspec.json.decode(found.body, type=list[tuple[str, str]])):
                        await self._hand_over_one(name, tenant, label)

    async def _hand_over_one(self, name: str, tenant: str, label: str) -> None:
        found = await whole_answer(self._fleet, name, _call("GET", tenant, label), COPY_SECONDS)
        if found is None or found.head.status != 200:
            return
        record = found.record.framed()
        others = [other for other in self.order(label) if other != name and self._router.accepts(other)]
        for other in others:
            if await self._put(other, tenant, label, record) == KEPT:
                return

    async def delete(self, call: RelayCall) -> tuple[Head, bytes] | None:
        """Ask every replica to delete. Returns the answer with the lowest status, so that of a replica that had the
        response comes first; None if no replica answers."""
        replicas = list(self._router.replicas)
        answers = await asyncio.gather(*(whole_answer(self._fleet, name, call, COPY_SECONDS) for name in replicas))
        found = [(answer.head, answer.body) for answer in answers if answer is not None]
        return min(found, key=lambda answer: answer[0].status, default=None)

    # --- internals ---

    async def _put(self, name: str, tenant: str, label: str, record: bytes) -> int:
        """The status of the replica's answer; 0 if it does not answer."""
        found = await whole_answer(self._fleet, name, _call("PUT", tenant, label, record), COPY_SECONDS)
        return found.head.status if found is not None else 0

    async def _copy(self, tenant: str, label: str, data: bytes, maker: str) -> None:
        try:
            replicas = self._router.replicas
            taking = [name for name in self.order(label) if name != maker and replicas[name].accepting]
            for name in taking[:TRIES]:
                if await self.give(name, tenant, label, data):
                    return
            self.without_copy += 1
            if taking:
                log.warning("no replica takes a copy of a stored response")
        finally:
            self._bytes -= len(data)


def _call(method: str, tenant: str, label: str, body: bytes = b"", path: str = "/relay") -> RelayCall:
    headers = {"X-Request-Id": label}
    return RelayCall(method=method, path=path, headers=headers, body=body, tenant=tenant, access="relay")


def _rank(label: str, name: str) -> bytes:
    return blake2b(f"{label}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
