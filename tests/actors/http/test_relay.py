"""Answers in frames, and requests that go on at another engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lightllm_mp.actors.front.request_journal import RequestJournal
from lightllm_mp.actors.http.relayed_answer import ACCESS_HEADER, KEY_HEADER, TENANT_HEADER, split_frames
from lightllm_mp.actors.http.security.keys import ApiKeys, digest
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.messages import Generate
from lightllm_mp.shm import Journal
from tests.actors.http.harness import Engine, Site, site

RELAY = {KEY_HEADER: "between us", ACCESS_HEADER: "relay", "X-Request-Id": "mine"}
KEYS = ApiKeys(users=frozenset({digest("user")}), relays=frozenset({digest("between us")}))
HELLO = [{"role": "user", "content": "Hello"}]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 12, "logprobs": 2, "seed": 5}}),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 40, "return_details": True, "n": 2, "best_of": 2}}),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 12, "stream": True, "n": 3, "logprobs": True}),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 40}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 12, "stream": True}),
    ("/v1/responses", {"input": "a", "max_output_tokens": 12, "stream": True}),
    ("/v1/messages", {"model": "m", "messages": HELLO, "max_tokens": 12, "stream": True}),
]


class Relayed:
    """What a front has of an answer."""

    def __init__(self) -> None:
        self.record: list[bytes] = []
        self.status, self.headers = 0, dict[str, str]()
        self.body, self.events, self.complete = b"", 0, False
        self._rest = b""

    def feed(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= 5:
            kind, length = struct.unpack_from("<cI", self._rest)
            if len(self._rest) < 5 + length:
                return
            payload, self._rest = self._rest[5 : 5 + length], self._rest[5 + length :]
            match kind:
                case b"R":
                    self.status, self.headers = struct.unpack_from("<H", payload)[0], json.loads(payload[2:])
                case b"B":
                    self.events, self.body = struct.unpack_from("<I", payload)[0], self.body + payload[4:]
                case b"Z":
                    self.complete = True
                case b"H":
                    self.record = [frame for frame in self.record if frame[:1] == b"F"] + [kind + payload]
                case _:
                    self.record.append(kind + payload)

    def framed(self) -> bytes:
        return b"".join(struct.pack("<cI", f[:1], len(f) - 1) + f[1:] for f in self.record)


@contextlib.asynccontextmanager
async def engine(**options: Any) -> AsyncIterator[Site]:
    memory = Journal.create(1 << 20)
    journal = Journal.open(os.dup(memory.fd))
    try:
        async with site(journal=RequestJournal(journal), engine=Engine(**options), keys=KEYS) as s:
            yield s
    finally:
        journal.close()
        memory.close()


async def relay(s: Site, path: str, body: Any, into: Relayed, *, until: int = 1 << 30, **headers: str) -> None:
    """Read an answer until the client has so many events, or the record has some of a whole one; then break the
    connection."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with s.session.post(path, data=data, headers=RELAY | headers) as response:
        assert response.status == 200
        async for piece in response.content.iter_any():
            into.feed(piece)
            if into.events >= until or (until < 1 << 30 and into.record[-1][:1] == b"E" and not into.status):
                response.close()
                return


def run(body, seconds: float = 60.0) -> None:
    async def main() -> None:
        async with asyncio.timeout(seconds):
            await body()

    asyncio.run(main())


def test_an_answer_in_frames_is_the_answer():
    async def body():
        async with engine() as s:
            for path, asked in ASKED:
                found = Relayed()
                await relay(s, path, asked, found)
                user = {"Authorization": "Bearer user", "X-Request-Id": "mine"}
                async with s.session.post(path, json=asked, headers=user) as response:
                    plain = await response.read()
                assert (found.status, found.complete, found.headers["Content-Type"]) == (
                    response.status,
                    True,
                    response.headers["Content-Type"],
                )
                assert _without_ids(found.body) == _without_ids(plain)
                assert found.record[0][:1] == b"H"

    run(body)


@pytest.mark.parametrize(("path", "asked"), ASKED)
@pytest.mark.parametrize("events", [1, 5])
def test_a_request_goes_on_at_another_engine(path: str, asked: dict[str, Any], events: int):
    async def body():
        async with engine() as s:
            whole = Relayed()
            await relay(s, path, asked, whole)
        async with engine(pace=0.002) as first, engine() as second:
            found = Relayed()
            await relay(first, path, asked, found, until=events, **{TENANT_HEADER: digest("user").hex()})
            assert not found.complete
            rest = {"Last-Event-ID": str(found.events), TENANT_HEADER: digest("user").hex()}
            await relay(second, "/relay", found.framed(), found, **rest)
            assert found.complete
            assert _without_times(found.body) == _without_times(whole.body)
            sent = [m for m in second.engine.tokenizer if isinstance(m, Generate)]
            assert sent
            assert any(m.emitted for m in sent)
            assert {m.terms.tenant for m in sent} == {digest("user")}
            before = next(m for m in first.engine.tokenizer if isinstance(m, Generate)).terms.sampling.seed
            assert {m.terms.sampling.seed - before for m in sent} <= {0, 1, 2}
            # The second engine keeps it like its own.
            again = Relayed()
            headers = {**RELAY, TENANT_HEADER: digest("user").hex()}
            async with second.session.get("/requests/mine", headers=headers) as response:
                again.feed(await response.read())
            assert _without_times(again.body) == _without_times(whole.body)
            await first.settled(lambda: not first.engine.running)

    run(body)


def test_only_the_relay_key_opens_it():
    async def body():
        async with engine() as s:
            bad = {KEY_HEADER: "another"}
            for headers in ({}, bad, {"Authorization": "Bearer user"}, {"Authorization": "Bearer user"} | bad):
                async with s.session.post("/relay", data=b"", headers=headers) as response:
                    assert response.status in (401, 403)
            async with s.session.post("/generate", json={"inputs": "a"}, headers=bad) as response:
                assert response.status == 401
        async with site() as s, s.session.post("/relay", data=b"", headers=RELAY) as response:
            assert response.status == 404  # without a relay key there is no such route

    run(body)


def test_errors_are_relayed_and_damaged_records_refused():
    async def body():
        async with engine() as s:
            found = Relayed()
            await relay(s, "/generate", {"inputs": 7}, found)
            assert (found.status, found.complete, found.record) == (400, True, [])
            assert "error" in json.loads(found.body)
            for access in ("public", "user", "admin", "all"):  # for clients the route is closed
                found = Relayed()
                await relay(s, "/relay", b"", found, **{ACCESS_HEADER: access})
                assert found.status in (401, 403), access
            for record in (b"", b"H", b"H\x01\0\0\0\xc1", b"Z\0\0\0\0", b"H\xff\xff\xff\xff", b"E\x01\0\0\0\x90"):
                found = Relayed()
                await relay(s, "/relay", record, found)
                assert (found.status, found.complete) == (400, True), record
            assert s.frontend.live == 0

    run(body)


def test_frames_of_a_record():
    framed = b"H" + struct.pack("<I", 2) + b"ab" + b"E" + struct.pack("<I", 0)
    assert list(split_frames(framed)) == [b"Hab", b"E"]
    for cut in range(1, len(framed)):
        if cut not in (7,):
            with pytest.raises(InvalidRequest):
                list(split_frames(framed[:cut]))


def _without_ids(data: bytes) -> bytes:
    return _without_times(b"\n".join(line for line in data.split(b"\n") if not line.startswith(b"id:")))


def _without_times(data: bytes) -> bytes:
    return re.sub(rb'"(created|created_at|completed_at)":[0-9.]+', b"", data)
