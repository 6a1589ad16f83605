"""Two tenants at the port: what one of them holds, keeps or waits for does not shut out the other."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable

import pytest

from lightllm_mp.actors.http.body import BodyReader
from lightllm_mp.actors.http.fair_slots import FairSlots
from lightllm_mp.actors.http.image_fetch import MAX_AT_ONCE, Fetcher, FetchFailed
from lightllm_mp.actors.http.security.keys import ApiKeys, digest
from lightllm_mp.actors.http.security.name_lookups import MOST, NameLookups
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.errors import Overloaded
from tests.actors.http.harness import PATIENCE, Site, run
from tests.actors.http.test_image_fetch import HOST, nothing, origin

KEYS = ApiKeys(users=frozenset({digest("greedy"), digest("other")}))
GREEDY, OTHER = ({"Authorization": f"Bearer {key}"} for key in ("greedy", "other"))
SHORT = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
BODY = 1 << 20


def head(key: str, length: int) -> bytes:
    auth = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"POST /generate HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: {length}\r\n\r\n".encode()


async def stalled(s: Site, key: str, *, sent: int, source: str = "127.0.0.1") -> tuple:
    """A request whose body stops after `sent` bytes."""
    reader, writer = await asyncio.open_connection(*s.address, local_addr=(source, 0))
    writer.write(head(key, BODY) + b" " * sent)
    await writer.drain()
    return reader, writer


async def status(reader: asyncio.StreamReader) -> int:
    line = await asyncio.wait_for(reader.readline(), PATIENCE)
    return int(line.split()[1])


def served(test: Callable[[Site], Awaitable[None]], **options) -> None:
    run(test, **{"keys": KEYS, "max_body_bytes": BODY, "header_timeout": 60.0, **options})


# --- bodies ---


def test_stalled_bodies_of_one_key_leave_room_for_another() -> None:
    async def body(s: Site) -> None:
        held = [await stalled(s, "greedy", sent=BODY - 1) for _ in range(8)]
        await s.settled(lambda: s.frontend.live == 8)
        await asyncio.sleep(0.2)
        answers = await asyncio.gather(*(s.post("/generate", SHORT, headers=OTHER) for _ in range(20)))
        assert [code for code, _, _ in answers] == [200] * 20
        data = json.dumps(SHORT).encode()
        padded = data + b" " * (BODY - len(data))
        assert (await s.post("/generate", padded, headers=OTHER))[0] == 200
        assert (await s.post("/generate", SHORT, headers=GREEDY))[0] == 200  # its own large ones yield
        refused = [reader for reader, _ in held if reader._buffer]  # type: ignore[attr-defined]
        assert refused
        assert [await status(reader) for reader in refused] == [429] * len(refused)
        for _, writer in held:
            writer.transport.abort()
        await s.settled(lambda: s.frontend.live == 0)

    served(body)


def test_without_keys_the_address_is_the_tenant() -> None:
    """The address that holds most yields, although another one's body is the largest."""

    async def body(s: Site) -> None:
        _, single = alone = await stalled(s, "", sent=BODY - 1, source="127.0.0.3")
        many = [await stalled(s, "", sent=BODY // 2, source="127.0.0.2") for _ in range(15)]
        await s.settled(lambda: any(reader._buffer for reader, _ in many))  # type: ignore[attr-defined]
        single.write(b"x")  # the last byte
        assert await status(alone[0]) == 400
        for _, writer in many:
            writer.transport.abort()
        await s.settled(lambda: s.frontend.live == 0)

    served(body, keys=ApiKeys())


class Sent:
    """A request whose body has come in one piece."""

    def __init__(self, size: int) -> None:
        self.headers: dict[str, str] = {}
        self.content_length, self.content = size, self
        self._pieces = [b"x" * size, b""]

    async def readany(self) -> bytes:
        return self._pieces.pop(0)


def test_a_body_yields_also_while_its_images_are_fetched() -> None:
    async def body() -> None:
        reader, preparing = BodyReader(most=100, seconds=60.0), asyncio.Event()

        async def ask(size: int, tenant: bytes) -> None:
            async with reader.receive(Sent(size), tenant):  # type: ignore[arg-type]
                await preparing.wait()

        held = [asyncio.create_task(ask(100, b"greedy")) for _ in range(8)]
        await asyncio.sleep(0)
        other = asyncio.create_task(ask(50, b"other"))
        await asyncio.wait(held, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        preparing.set()
        errors = await asyncio.gather(*held, other, return_exceptions=True)
        assert [type(error) for error in errors if error is not None] == [Overloaded]
        assert errors[-1] is None
        with pytest.raises(TimeoutError):  # one that is not the reader's
            async with reader.receive(Sent(5), b"other"):  # type: ignore[arg-type]
                raise TimeoutError

    asyncio.run(body())


# --- requests that arrive ---


def test_requests_whose_bodies_arrive_are_live_and_leave_whatever_happens() -> None:
    async def body(s: Site) -> None:
        held = [await stalled(s, "greedy", sent=10) for _ in range(6)]
        await s.settled(lambda: s.frontend.live == 6)
        code, answer, headers = await s.post("/generate", SHORT, headers=GREEDY)
        assert (code, "this key's share" in answer["error"]["message"]) == (429, True)
        assert "Retry-After" in headers
        assert (await s.post("/generate", SHORT, headers=OTHER))[0] == 200
        assert (await s.post("/tokens", {"text": "a"}, headers=OTHER))[0] == 200
        held.pop()[1].transport.abort()  # a client that leaves
        await s.settled(lambda: s.frontend.live == 5)
        held.pop()[1].write(b" " * (BODY - 10))  # a body that is refused
        await s.settled(lambda: s.frontend.live == 4)
        for path in ("/generate", "/generate_stream", "/", "/get_score", "/tokens"):
            assert (await s.post(path, b"{", headers=GREEDY))[0] == 400
        assert s.frontend.live == 4
        await s.settled(lambda: s.frontend.live == 0)  # and those that come too late
        assert [await status(reader) for reader, _ in held] == [408] * 4

    served(body, max_live_requests=8, header_timeout=1.5)


def test_a_request_keeps_the_place_that_it_was_admitted_to() -> None:
    """Its place goes from the body that arrives to the request that runs, and nobody takes it in between."""

    async def body(s: Site) -> None:
        s.engine.paused = True
        answers = [asyncio.create_task(s.post("/generate", SHORT, headers=OTHER)) for _ in range(6)]
        await s.settled(lambda: len(s.engine.running) == 6)
        assert s.frontend.live == 6
        s.engine.paused = False
        assert [(await answer)[0] for answer in answers] == [200] * 6
        assert s.frontend.live == 0

    served(body, max_live_requests=8)


# --- connections for media, and look-ups ---


def test_slots_go_to_the_tenant_that_holds_fewest_and_cancelled_waits_leave_nothing() -> None:
    async def body() -> None:
        slots = FairSlots(12)
        for _ in range(9):
            await asyncio.wait_for(slots.acquire(b"greedy"), 1)
        waiting = [asyncio.create_task(slots.acquire(b"greedy")) for _ in range(5)]
        await asyncio.sleep(0)
        for _ in range(2):
            await asyncio.wait_for(slots.acquire(b"other"), 1)
        last = asyncio.create_task(slots.acquire(b"other"))
        await asyncio.sleep(0)
        for _ in range(2):
            slots.release(b"greedy")
        await asyncio.sleep(0)
        assert last.done()
        assert not any(task.done() for task in waiting)
        for _ in range(3):
            slots.release(b"other")
        assert slots.taken == 9  # two of those that wait have got slots in this very turn
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert slots.taken == 7
        for _ in range(7):
            slots.release(b"greedy")
        assert slots.taken == 0

    asyncio.run(body())


def test_dripping_hosts_of_one_tenant_leave_connections_to_another() -> None:
    async def body() -> None:
        async with asyncio.timeout(PATIENCE), origin() as source:
            fetcher = Fetcher(MultimodalConfig(allow_media_host=(HOST,), media_timeout=60.0))
            url = source.url("/drip")
            drips = [asyncio.create_task(fetcher.fetch(url, nothing, b"greedy")) for _ in range(MAX_AT_ONCE + 10)]
            while len(source.asked) < MAX_AT_ONCE * 3 // 4:
                await asyncio.sleep(0.01)
            assert await fetcher.fetch(source.url("/size/5"), nothing, b"other") == b"x" * 5
            assert source.asked.count("/drip") == MAX_AT_ONCE * 3 // 4
            for task in drips:
                task.cancel()
            await asyncio.gather(*drips, return_exceptions=True)
            assert await fetcher.fetch(source.url("/size/5"), nothing, b"greedy") == b"x" * 5

    asyncio.run(body())


def test_slow_names_of_one_tenant_leave_look_ups_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up outlives the request that wanted it; those that only waited for a thread are never begun."""
    usual, answer, asked = socket.getaddrinfo, threading.Event(), list[str]()

    def slow(host, *rest):
        asked.append(host)
        if host == "slow.example":
            answer.wait(PATIENCE)
            raise socket.gaierror("no answer")
        return usual("127.0.0.1", *rest)

    async def body() -> None:
        async with asyncio.timeout(PATIENCE), origin() as source:
            fetcher = Fetcher(MultimodalConfig(allow_media_host=("slow.example", "good.example"), media_timeout=1.0))
            slow_url, good_url = source.url("/size/5", "slow.example"), source.url("/size/5", "good.example")
            fetches = [fetcher.fetch(slow_url, nothing, b"greedy") for _ in range(200)]
            tasks = [asyncio.create_task(fetch) for fetch in fetches]
            await asyncio.sleep(0.1)
            assert await fetcher.fetch(good_url, nothing, b"other") == b"x" * 5
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(error) for error in errors} == {FetchFailed}
            assert await fetcher.fetch(good_url, nothing, b"other") == b"x" * 5  # the threads are still busy
            assert asked.count("slow.example") == MOST * 3 // 4
            answer.set()
            assert await fetcher.fetch(good_url, nothing, b"greedy") == b"x" * 5

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        asyncio.run(body())
    finally:
        answer.set()


def test_a_name_that_cannot_be_looked_up_is_the_clients_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        lookups = NameLookups(1)
        for _ in range(3):
            with pytest.raises(UnicodeError):
                await lookups.find(b"", "a" * 70 + ".example", 80, socket.AF_INET)

    asyncio.run(body())
