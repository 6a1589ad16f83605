"""The proxy settings of docs/deployment.md, in the real proxies: events pass at once, and large bodies pass."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.actors.http.harness import PATIENCE, Engine, site
from tests.docs.examples import ADDRESS
from tests.paths import ROOT

TLS = ROOT / "tests" / "data" / "tls"
HOST = "llm.example.org"


def settings(heading: str) -> str:
    """The fenced block below a heading of the page."""
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    found = re.search(rf"^### {heading}\n+```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def nginx(text: str, port: int, folder: Path) -> tuple[list[str], str]:
    """Command and address of nginx with the page's block inside of `http`."""
    for old, new in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        (f"/etc/ssl/{HOST}.pem", str(TLS / "server.crt")),
        (f"/etc/ssl/{HOST}.key", str(TLS / "server.key")),
    ):
        assert old in text
        text = text.replace(old, new)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{kind}_temp_path {folder / kind};" for kind in kinds)
    main = f"daemon off; master_process off; pid {folder / 'pid'}; error_log stderr; events {{}}"
    file = folder / "nginx.conf"
    file.write_text(f"{main} http {{ access_log off; {paths}\n{text}\n}}\n")
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(file)], f"https://127.0.0.1:{port}"


def caddy(text: str, port: int, folder: Path) -> tuple[list[str], str]:
    """Command and address of Caddy, without the certificate that it would fetch."""
    assert text.startswith(HOST)
    file = folder / "Caddyfile"
    file.write_text("{\n    admin off\n}\n" + text.replace(HOST, f"http://127.0.0.1:{port}"))
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)], f"http://127.0.0.1:{port}"


@contextlib.asynccontextmanager
async def running(command: list[str], port: int, folder: Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *command, env={"PATH": "/usr/sbin:/usr/bin:/bin", "HOME": str(folder)}, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(OSError):
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                assert process.returncode is None, (await process.communicate())[1].decode()
                await asyncio.sleep(0.05)
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(("heading", "proxy"), [("nginx", nginx), ("Caddy", caddy)])
def test_streams_and_bodies_pass(
    heading: str, proxy: Callable[[str, int, Path], tuple[list[str], str]], tmp_path: Path
) -> None:
    program = heading.lower()
    if shutil.which(program, path="/usr/sbin:/usr/bin") is None:
        pytest.skip(f"needs {program} (Debian, Ubuntu: apt-get install {program})")

    async def main() -> None:
        engine = Engine(paused=True)
        async with site(engine=engine, allowed_host=(HOST,)) as served:
            text = settings(heading)
            assert ADDRESS in text
            port = free_port()
            command, url = proxy(text.replace(ADDRESS, "{}:{}".format(*served.address)), port, tmp_path)
            async with running(command, port, tmp_path), aiohttp.ClientSession() as client:
                body = {"inputs": "a", "parameters": {"max_new_tokens": 3}}
                asked = asyncio.ensure_future(client.post(f"{url}/generate_stream", json=body, ssl=False))
                async with asyncio.timeout(PATIENCE):
                    for number in range(3):  # the engine makes the next token when this one has arrived
                        await served.settled(lambda: bool(engine.running))
                        engine.step()
                        event = await (await asked).content.readuntil(b"\n\n")
                        assert f" {number}é" in event.decode()
                large = {"inputs": "a" * (20 << 20)}
                async with asyncio.timeout(PATIENCE), client.post(f"{url}/generate", json=large, ssl=False) as got:
                    assert (await got.json())["error"]["code"] == "prompt_too_long"

    asyncio.run(main())
