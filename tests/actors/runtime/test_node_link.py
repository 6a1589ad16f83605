"""The connection between two machines: who gets in, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import pytest

from lightllm_mp.actors.runtime import node_link
from lightllm_mp.actors.runtime.node_link import CHALLENGE, DIGEST, MOST, PIECE, FrameKind, NodeLink, NodeLost, greet
from lightllm_mp.messages import Ping
from tests.actors.embedded import in_time

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Ends, Ends]]:
    found: asyncio.Future[Ends] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda *ends: found.set_result(ends), "127.0.0.1", 0)
    one = await asyncio.open_connection(*server.sockets[0].getsockname())
    other = await found
    try:
        yield one, other
    finally:
        for _, writer in (one, other):
            writer.transport.abort()
        server.close()


async def greeted(first: bytes, node: bytes, numbers: tuple[int, int] = (1, 1)) -> list[BaseException | None]:
    """What both ends think of each other, with their keys."""
    async with pair() as (one, other):
        return await asyncio.gather(
            greet(*one, first, node=numbers[0], first=True),
            greet(*other, node, node=numbers[1], first=False),
            return_exceptions=True,
        )


@in_time
async def test_the_key_and_the_number_are_shown_by_both() -> None:
    assert await greeted(b"key", b"key") == [None, None]
    for found in (await greeted(b"key", b"other"), await greeted(b"key", b"key", (1, 2))):
        assert all(isinstance(one, NodeLost) and "another key or number" in one.message for one in found)


@in_time
async def test_what_an_end_says_is_no_proof_of_another() -> None:
    """Whoever has no key sends back what it gets."""
    async with pair() as (one, other):
        greeting = asyncio.create_task(greet(*one, b"key", node=1, first=True))
        reader, writer = other
        writer.write(await reader.readexactly(CHALLENGE))
        writer.write(await reader.readexactly(DIGEST))
        with pytest.raises(NodeLost, match="another key"):
            await greeting


@in_time
async def test_who_says_nothing_gets_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "HANDSHAKE", 0.05)
    async with pair() as (one, _):
        with pytest.raises(NodeLost, match="before it has shown its key"):
            await greet(*one, b"key", node=1, first=True)


@in_time
async def test_frames_of_every_size_in_order() -> None:
    async with pair() as (one, other):
        a, b = NodeLink(*one, "a"), NodeLink(*other, "b")
        image = bytes(range(256)) * (PIECE // 128)
        a.send(FrameKind.PLAN, b"plan")
        a.send_image(7, memoryview(image))
        a.send_message(Ping(5))
        assert await b.receive() == (FrameKind.PLAN, b"plan")
        for at in (0, PIECE):
            kind, payload = await b.receive()
            assert kind is FrameKind.IMAGE
            offset, data = node_link.decode_image(payload)
            assert (offset, data) == (7 + at, image[at : at + PIECE])
        assert node_link.decode_message((await b.receive())[1]) == Ping(5)
        await a.finish()
        with pytest.raises(NodeLost, match="the connection to b is lost"):
            await b.receive()
        b.send(FrameKind.PLAN, b"lost")
        b.close()


@in_time
async def test_silence_ends_it_and_signs_of_life_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_link, "SILENCE", 0.3)
    monkeypatch.setattr(node_link, "BEAT", 0.05)
    async with pair() as (one, other):
        a, b = NodeLink(*one, "a"), NodeLink(*other, "b")
        waiting = asyncio.create_task(b.receive())
        await asyncio.sleep(1.0)
        assert not waiting.done()
        a._beating.cancel()  # it hangs
        with pytest.raises(NodeLost, match="b is silent"):
            await waiting
        for link in (a, b):
            link.close()


@in_time
@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (struct.pack("<IB", MOST + 1, 2), "a frame of"),
        (struct.pack("<IB", 0, 77), "kind 77"),
        (struct.pack("<IB", 9, 2) + b"half", "is lost"),
    ],
)
async def test_what_is_no_frame_ends_it(sent: bytes, why: str) -> None:
    async with pair() as (one, other):
        link = NodeLink(*one, "a")
        other[1].write(sent)
        other[1].write_eof()
        with pytest.raises(NodeLost, match=why):
            await link.receive()
        link.close()


def test_what_cannot_be_decoded() -> None:
    for decode in (node_link.decode_launch, node_link.decode_message, node_link.decode_image):
        with pytest.raises(NodeLost):
            decode(b"?")
