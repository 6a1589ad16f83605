"""Without a key on a loopback address: no web page can use the server, by its own origin or by DNS rebinding."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from hashlib import sha256

import pytest

from lightllm_mp.actors.http.security.keys import ApiKeys
from lightllm_mp.cli.flags import resolve
from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import ConfigError
from tests.actors.http.harness import Site, run

BODY = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
KEYS = ApiKeys(users=frozenset({sha256(b"key").digest()}))
FOREIGN = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1:8000"]
FOREIGN += ["[2001:db8::1]:8000", "", "localhost:port", "127.0.0.1@evil.example", "[::1", "::1", "0.0.0.0:8000"]
LOCAL = [
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.3.2.1:1",
    "localhost",
    "LocalHost:8000",
    "localhost.",
    "[::1]:8000",
    "[::1]",
]


def code(answer: tuple) -> tuple[int, str | None]:
    status, content = answer[:2]
    content = json.loads(content) if isinstance(content, str) else content
    return status, content.get("error", {}).get("code") if isinstance(content, dict) else None


def test_only_loopback_hosts_are_served():
    async def body(s: Site):
        for host in LOCAL:
            assert (await s.post("/generate", BODY, headers={"Host": host}))[0] == 200, host
        for host in FOREIGN:
            head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
            answer = await s.raw(head.encode())
            assert b" 403 " in answer.partition(b"\r\n")[0], host
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "host_not_allowed"
        for path in ("/health", "/metrics", "/nope", "/liveness"):
            assert code(await s.get(path, headers={"Host": "evil.example"})) == (403, "host_not_allowed")
        assert len(s.engine.tokenizer) == len(LOCAL)

    run(body, allowed_host=())


def test_a_page_of_another_host_is_refused_before_it_costs_anything():
    async def body(s: Site):
        for origin in (*(f"http://{host}" for host in FOREIGN), "null", "https://evil.example", "", "localhost"):
            answer = await s.post("/generate", BODY, headers={"Origin": origin})
            assert code(answer) == (403, "origin_not_allowed"), origin
            assert "Access-Control-Allow-Origin" not in answer[2]
        preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        async with s.session.options("/generate", headers=preflight) as response:
            assert response.status == 403
        assert s.engine.tokenizer == []
        for origin in ("http://localhost:3000", "https://127.0.0.1", "http://[::1]:5173"):
            assert (await s.post("/generate", BODY, headers={"Origin": origin}))[0] == 200

    run(body, allowed_host=())


def test_a_client_of_http_1_0_needs_no_host():
    async def body(s: Site):
        assert b" 200 " in (await s.raw(b"GET /liveness HTTP/1.0\r\n\r\n")).partition(b"\r\n")[0]
        twice = b"GET /liveness HTTP/1.0\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
        assert (await s.raw(twice)).split(b" ", 2)[1] in (b"400", b"403")

    run(body, allowed_host=())


def test_names_that_the_operator_allows():
    async def body(s: Site):
        for host in ("llm.example", "LLM.example:443", "10.0.0.1:8000", "[2001:db8::1]", "localhost"):
            assert (await s.post("/generate", BODY, headers={"Host": host}))[0] == 200, host
            assert (await s.post("/generate", BODY, headers={"Origin": f"https://{host}"}))[0] == 200, host
        for host in ("evil.example", "a.llm.example"):
            assert code(await s.get("/health", headers={"Host": host})) == (403, "host_not_allowed")

    run(body, allowed_host=("llm.example", "10.0.0.1", "2001:db8::1"))


def test_a_port_of_a_container_that_is_published_on_loopback():
    """There the server listens on all addresses; a name says that only this machine reaches them."""

    async def body(s: Site):
        for host, status in (("localhost:8000", 200), ("127.0.0.1", 200), ("evil.example", 403)):
            assert (await s.post("/generate", BODY, headers={"Host": host}))[0] == status, host

    run(body, allowed_host=("localhost",), host="0.0.0.0")


def test_pages_that_may_call_by_cors_are_served():
    async def body(s: Site):
        page = {"Origin": "https://app.example"}
        assert (await s.post("/generate", BODY, headers=page))[0] == 200
        assert code(await s.post("/generate", BODY, headers={"Origin": "https://evil.example"}))[0] == 403
        rebound = {**page, "Host": "evil.example"}
        assert code(await s.post("/generate", BODY, headers=rebound)) == (403, "host_not_allowed")

    run(body, allowed_host=(), cors_allow_origin=("https://app.example",))


@pytest.mark.parametrize("options", [{"keys": KEYS}, {"host": "0.0.0.0"}, {"host": "192.0.2.1"}])
def test_with_a_key_or_on_a_public_address_every_name_is_served(options: dict):
    async def body(s: Site):
        headers = {"Host": "llm.example", "Origin": "https://page.example", "Authorization": "Bearer key"}
        assert (await s.post("/generate", BODY, headers=headers))[0] == 200

    run(body, allowed_host=(), **options)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_is_served(host: str):
    async def body(s: Site):
        # The harness listens on 127.0.0.1 only; curl sends the name that it was given.
        target = f"http://{host}:{s.address[1]}/liveness"
        command = ["curl", "-sS", "--connect-to", f"::127.0.0.1:{s.address[1]}", target]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=10, check=False)
        assert done.stdout == '{"status":"ok"}', done

    run(body, allowed_host=())


def test_the_flag_may_be_repeated_and_takes_names_only():
    words = ["--allowed-host", "a.example", "--allowed-host", "10.0.0.1"]
    assert resolve(words, {})[0].http.allowed_host == ("a.example", "10.0.0.1")
    for wrong in ("http://a", "a:80", "A", "*", "", "a/b", "-a"):
        with pytest.raises(ConfigError, match="--allowed-host"):
            HttpConfig(allowed_host=(wrong,))
    with pytest.raises(ConfigError, match="--allowed-host http://a"):
        resolve(["--allowed-host", "http://a"], {})
