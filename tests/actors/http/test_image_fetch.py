"""Fetching images from URLs that clients name: where from, how much, how long, and never twice."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from lightllm_mp.actors.http.image_fetch import Fetcher, FetchFailed, checked
from lightllm_mp.actors.http.security.url_guard import ForbiddenAddress, UrlGuard, is_public
from lightllm_mp.config import MultimodalConfig
from lightllm_mp.errors import EngineError, Overloaded, PayloadTooLarge

HOST = "localhost"


def nothing(size: int) -> None:
    """Does not count."""


class Origin:
    """A server of images on the loopback interface, and what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.gone = 0
        self.port = 0

    def url(self, path: str, host: str = HOST) -> str:
        return f"http://{host}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.headers.append(dict(request.headers))
        match request.path.split("/")[1:]:
            case ["size", size]:
                return web.Response(body=b"x" * int(size))
            case ["to", *rest]:
                return web.Response(status=302, headers={"Location": request.query.get("url", "/".join(["", *rest]))})
            case ["endless"]:
                return await self.endless(request, b"x" * 65536, 0.0)
            case ["drip"]:
                return await self.endless(request, b"x", 0.05)
            case ["gzip"]:
                return web.Response(body=b"x", headers={"Content-Encoding": "gzip"})
            case ["again"]:
                return web.Response(status=302, headers={"Location": "/again"})
            case ["short"]:
                return await self.cut(request)
        return web.Response(status=404)

    async def endless(self, request: web.Request, piece: bytes, pause: float) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(piece)
                await asyncio.sleep(pause)
        except (ConnectionError, asyncio.CancelledError):
            self.gone += 1
            raise

    async def cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"x")
        assert request.transport is not None
        request.transport.close()
        return response


@contextlib.asynccontextmanager
async def origin() -> AsyncIterator[Origin]:
    found = Origin()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.port = runner.addresses[0][1]
    try:
        yield found
    finally:
        await runner.cleanup()


def run(test: Callable[[Origin, Fetcher], Awaitable[None]], **options) -> None:
    async def main() -> None:
        fetcher = Fetcher(MultimodalConfig(**{"allow_media_host": (HOST,), "media_timeout": 2.0, **options}))
        async with asyncio.timeout(15), origin() as source:
            await test(source, fetcher)

    asyncio.run(main())


def fails(kind: type[EngineError], saying: str):
    return pytest.raises(kind, match=saying)


def test_an_allowed_host_is_fetched_from() -> None:
    async def body(source: Origin, fetcher: Fetcher) -> None:
        taken: list[int] = []
        assert await fetcher.fetch(source.url("/size/100000"), taken.append) == b"x" * 100_000
        assert sum(taken) == 100_000
        assert await fetcher.fetch(source.url("/to/size/5"), nothing) == b"x" * 5
        headers = source.headers[0]
        assert headers["Accept-Encoding"] == "identity"
        assert "Cookie" not in headers
        assert "Authorization" not in headers

    run(body)


def test_the_environments_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(source: Origin, fetcher: Fetcher) -> None:
        assert await fetcher.fetch(source.url("/size/5"), nothing) == b"x" * 5

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    run(body)


LOOPBACK = ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_is_refused_in_every_spelling(host: str) -> None:
    async def body(source: Origin, fetcher: Fetcher) -> None:
        with pytest.raises((ForbiddenAddress, FetchFailed)) as caught:
            await fetcher.fetch(source.url("/size/5", host), nothing)
        assert caught.value.status == 400
        assert source.asked == []

    run(body, allow_media_host=())


def test_a_redirect_to_a_private_address_is_refused() -> None:
    async def body(source: Origin, fetcher: Fetcher) -> None:
        for target in ("127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]"):
            with fails(ForbiddenAddress, "not public"):
                await fetcher.fetch(source.url(f"/to?url=http://{target}:{source.port}/size/5"), nothing)
        assert all(path == "/to" for path in source.asked)
        for target in ("file:///etc/passwd", "ftp://localhost/x", "http://a:b@localhost/"):
            with fails(FetchFailed, "URL"):
                await fetcher.fetch(source.url(f"/to?url={target}"), nothing)
        with fails(FetchFailed, "more than 3 times"):
            await fetcher.fetch(source.url("/again"), nothing)
        assert source.asked.count("/again") == 4

    run(body)


def test_a_name_is_resolved_once_and_the_connection_goes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is judged and private when it is connected to."""
    answers = [("93.184.216.34", 80), ("127.0.0.1", 80)]
    asked: list[str] = []

    def rebinding(host: str, *arguments: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", answers[min(len(asked) - 1, 1)])]

    async def body(source: Origin, fetcher: Fetcher) -> None:
        for _ in range(2):
            with pytest.raises((FetchFailed, ForbiddenAddress)):
                await fetcher.fetch(source.url("/size/5", "rebinding.example"), nothing)
        assert source.asked == []
        assert asked == ["rebinding.example"] * 2

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    run(body, allow_media_host=(), media_timeout=0.3)


def test_one_bad_address_of_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.216.34", "192.168.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: both)

    async def body(source: Origin, fetcher: Fetcher) -> None:
        with fails(ForbiddenAddress, "not public"):
            await fetcher.fetch("http://two.example/", nothing)

    run(body, allow_media_host=())


def test_too_many_bytes() -> None:
    async def body(source: Origin, fetcher: Fetcher) -> None:
        for path in ("/size/200000", "/endless"):
            with fails(PayloadTooLarge, "larger than 100000 bytes"):
                await fetcher.fetch(source.url(path), nothing)

        def full(size: int) -> None:
            raise Overloaded("full", retry_after=1.0)

        with fails(Overloaded, "full"):
            await fetcher.fetch(source.url("/size/10"), full)

    run(body, max_bytes_per_image=100_000)


def test_a_server_that_drips_is_given_up_in_time() -> None:
    async def body(source: Origin, fetcher: Fetcher) -> None:
        begin = time.monotonic()
        with fails(FetchFailed, r"not fetched within 0.5 s"):
            await fetcher.fetch(source.url("/drip"), nothing)
        assert time.monotonic() - begin < 10
        while not source.gone:
            await asyncio.sleep(0.01)

    run(body, media_timeout=0.5)


def test_a_cancelled_fetch_leaves_at_once() -> None:
    async def body(source: Origin, fetcher: Fetcher) -> None:
        task = asyncio.create_task(fetcher.fetch(source.url("/drip"), nothing))
        while not source.asked:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not source.gone:
            await asyncio.sleep(0.01)

    run(body)


@pytest.mark.parametrize(
    ("path", "saying"), [("/nowhere", "status 404"), ("/gzip", "compressed"), ("/short", "could not be fetched")]
)
def test_answers_that_are_no_image(path: str, saying: str) -> None:
    async def body(source: Origin, fetcher: Fetcher) -> None:
        with fails(FetchFailed, saying):
            await fetcher.fetch(source.url(path), nothing)

    run(body)


def test_a_closed_port() -> None:
    async def body(source: Origin, fetcher: Fetcher) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closing:
            port = closing.getsockname()[1]
        with fails(FetchFailed, "could not be fetched"):
            await fetcher.fetch(f"http://{HOST}:{port}/", nothing)

    run(body)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "//host/x",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "data:image/png;base64,AAAA",
        "http://",
        "http://user@example.com/",
        "http://user:word@example.com/",
        "http://[::1",
        "http://example.com:99999/",
        "gopher://example.com/",
        "http://example.com/" + "x" * 9000,
    ],
)
def test_what_is_no_plain_url(url: str) -> None:
    with pytest.raises(FetchFailed) as caught:
        checked(url)
    assert caught.value.status == 400
    assert "passwd" not in caught.value.message


PRIVATE = """0.0.0.0 0.1.2.3 10.1.2.3 100.64.0.1 127.0.0.1 127.8.8.8 169.254.169.254 172.16.0.1 192.0.0.1 192.0.2.1
    192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b:1::808:808
    2002:7f00:1:: 2002:a00:1:: 2001:0:808:808::f5ff:fffe 2001:db8::1 fc00::1 fd00::1 fe80::1 fec0::1 ff02::1 ff0e::1
    100::1"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(ForbiddenAddress):
        UrlGuard(()).check_literal(f"[{address}]" if ":" in address else address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_allowed_hosts_are_themselves_only() -> None:
    guard = UrlGuard(("Images.Local", "10.0.0.5"))
    assert guard.allows("images.local.")
    assert not guard.allows("evil.images.local")
    guard.check_literal("10.0.0.5")
    with pytest.raises(ForbiddenAddress):
        guard.check_literal("10.0.0.6")
