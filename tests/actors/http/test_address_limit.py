"""One client address cannot take all connections: it is refused with a typed error, others are served."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import resource
import socket
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from lightllm_mp.actors.http.sockets.address_limit import ConnectionCounts, client_address, connection_counts
from lightllm_mp.actors.http.sockets.listener import serve
from lightllm_mp.config import HttpConfig
from tests.actors.http.harness import PATIENCE, Site, run
from tests.actors.http.test_tls import CERTIFICATE, TLS

LIVENESS = b"GET /liveness HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


async def connect(s: Site, address: str = "127.0.0.2", **options):
    return await asyncio.open_connection(*s.address, local_addr=(address, 0), **options)


async def crowd(s: Site, count: int):
    """Silent connections from one address."""
    return [await connect(s) for _ in range(count)]


async def metric(s: Site, name: str) -> float:
    lines = (await s.get("/metrics"))[1].splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"lightllm_{name}{{"))


async def served(s: Site, address: str = "127.0.0.1") -> bool:
    reader, writer = await connect(s, address)
    with contextlib.suppress(ConnectionError):
        writer.write(LIVENESS)
    try:
        return (await asyncio.wait_for(reader.read(), PATIENCE)).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()


def test_a_crowd_of_one_address_is_refused_and_others_are_served():
    async def body(s: Site):
        await s.get("/health")  # the session's own connection stays open
        silent = await crowd(s, 3)
        for _ in range(40):  # more than are refused in one turn of the loop
            reader, writer = await connect(s)
            head, _, content = (await asyncio.wait_for(reader.read(), PATIENCE)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nRetry-After: 1\r\n" in head
            error = json.loads(content)["error"]
            assert (error["code"], error["type"]) == ("too_many_connections", "overloaded_error")
            writer.close()
        assert await served(s)
        assert await metric(s, "connections") == 4
        assert await metric(s, "connections_refused_total") == 40
        silent.pop()[1].close()
        async with asyncio.timeout(PATIENCE):
            while not await served(s, "127.0.0.2"):
                await asyncio.sleep(0.01)
        for _, writer in silent:
            writer.close()

    run(body, max_connections_per_address=3)


def test_a_client_that_sends_first_reads_the_refusal():
    async def body(s: Site):
        silent = await crowd(s, 3)
        with socket.create_connection(s.address, source_address=("127.0.0.2", 0)) as client:
            client.sendall(LIVENESS)  # before the server accepts it
            answer = await asyncio.to_thread(client.recv, 65536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        for _, writer in silent:
            writer.close()

    run(body, max_connections_per_address=3)


def test_connections_without_a_tls_handshake_count():
    async def body(s: Site):
        silent = await crowd(s, 3)  # no handshake
        trust = ssl.create_default_context(cafile=CERTIFICATE)
        with pytest.raises((ConnectionError, ssl.SSLError, EOFError)):
            await asyncio.wait_for(connect(s, ssl=trust), PATIENCE)
        assert (await s.get("/health"))[0] == 200
        assert await metric(s, "connections_refused_total") == 1
        for _, writer in silent:
            writer.close()
        async with asyncio.timeout(PATIENCE):
            while await metric(s, "connections") > 1:
                await asyncio.sleep(0.01)
        _, writer = await connect(s, ssl=trust)
        writer.close()

    run(body, max_connections_per_address=3, **TLS)


def test_counts_return_to_zero_however_connections_end():
    async def body(s: Site):
        await s.get("/health")
        for ending in ("close", "reset", "served") * 5:
            reader, writer = await connect(s)
            if ending == "served":
                writer.write(LIVENESS)
                await reader.read()
            if ending == "reset":
                writer.transport.abort()
            writer.close()
        async with asyncio.timeout(PATIENCE):
            while await metric(s, "connections") > 1:
                gc.collect()
                await asyncio.sleep(0.01)

    run(body)


def test_zero_is_no_limit():
    async def body(s: Site):
        silent = await crowd(s, 50)
        assert await served(s, "127.0.0.2")
        for _, writer in silent:
            writer.close()

    run(body, max_connections_per_address=0)


@pytest.mark.parametrize(
    ("files", "live", "limit"),
    [
        (1 << 20, 1000, 4000),
        (1 << 20, 10, 1024),
        (1024, 1000, 512),
        (-1, 1000, 4000),
    ],
)
def test_the_default_leaves_half_of_the_descriptors_to_others(
    monkeypatch: pytest.MonkeyPatch, files: int, live: int, limit: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    assert connection_counts(HttpConfig(max_live_requests=live)).limit == limit
    assert connection_counts(HttpConfig(max_connections_per_address=7)).limit == 7


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_an_ipv6_client_is_its_network(host: str, address: str) -> None:
    assert client_address(host) == address


def test_counts_forget_addresses_that_left() -> None:
    counts = ConnectionCounts(1)
    assert counts.enter("a")
    assert counts.enter("b")
    assert not counts.enter("a")
    counts.leave("a")
    assert counts.enter("a")
    assert (counts.open, counts.refused) == (2, 1)
    for address in "ab":
        counts.leave(address)
    assert (counts.open, list(counts._by_address)) == (0, [])


def test_a_unix_socket_has_no_limit(tmp_path: Path) -> None:
    async def main() -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / "socket"))
        server = await serve(web.Application(), listening, HttpConfig(max_connections_per_address=1))
        for _ in range(3):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
            writer.write(LIVENESS)
            assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 404")
        await server.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
