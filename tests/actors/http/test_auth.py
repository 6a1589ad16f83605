"""With a key set, nothing but health is served without it, whatever the path looks like."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from hashlib import sha256

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.http.app import ACCESS, Route, create_app
from lightllm_mp.actors.http.error_responses import failures
from lightllm_mp.actors.http.security.auth import guard
from lightllm_mp.actors.http.security.keys import ApiKeys, load_keys
from lightllm_mp.config import HttpConfig, ModelConfig
from lightllm_mp.errors import ConfigError
from tests.actors.http.harness import Site, run


def digests(*keys: str) -> frozenset[bytes]:
    return frozenset(sha256(key.encode()).digest() for key in keys)


KEYS = ApiKeys(users=digests("first-key", "second-key"), admins=digests("boss"))
BODY = b'{"inputs":"a","parameters":{"max_new_tokens":1}}'
PAGE = ("/live", "/assets/{name}", "/favicon.ico")
POSTS = ["/generate", "/generate_stream", "/", "/tokens"]
GETS = ["/metrics", "/token_load", "/get_server_info", "/get_model_name", "/nope"]
TRICKS = [
    "//generate",
    "/generate/",
    "/./generate",
    "/health/../generate",
    "/health/..%2fgenerate",
    "/%67enerate",
    "/GENERATE",
    "/generate?x=/health",
    "/generate#/health",
    "/generate;/health",
    "/health/generate",
    "\\generate",
    "http://other/generate",
    "/%2fgenerate",
    "/metrics/",
    "//metrics",
]


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_a_key_opens_every_route():
    async def body(s: Site):
        for key in ("first-key", "second-key"):
            headers = {"Authorization": f"Bearer {key}"}
            assert (await s.post("/generate", BODY, headers=headers))[0] == 200
            assert (await s.get("/get_server_info", headers=headers))[0] == 200
        assert (await s.post("/generate", BODY, headers={"Authorization": "bearer  first-key"}))[0] == 200

    run(body, keys=KEYS)


def test_without_a_key_only_health_is_served():
    wrong = ["", "Bearer", "Bearer ", "Bearer nope", "Basic first-key", "first-key", "Bearer first-key x", "Bearer é"]

    async def body(s: Site):
        for value in wrong:
            headers = {"Authorization": value} if value else {}
            for path in POSTS:
                status, answer, back = await s.post(path, BODY, headers=headers)
                assert (status, answer["error"]["code"]) == (401, "unauthorized"), (path, value)
                assert back["WWW-Authenticate"] == "Bearer"
        for path in GETS:
            assert (await s.get(path))[0] == 401
        for path in ("/health", "/healthz", "/liveness", "/readiness"):
            assert (await s.get(path))[0] == 200
        assert not s.engine.tokenizer

    run(body, keys=KEYS)


def test_no_bypass_by_path_or_method():
    async def body(s: Site):
        for path in TRICKS:
            for method in ("POST", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"):
                head = (
                    f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(BODY)}\r\n\r\n"
                )
                status = status_of(await s.raw(head.encode() + BODY))
                assert status in (400, 401), (method, path, status)
        assert not s.engine.tokenizer

    run(body, keys=KEYS)


def test_metrics_are_public_by_choice():
    async def body(s: Site):
        assert (await s.get("/metrics"))[0] == 200
        assert (await s.get("/token_load"))[0] == 401

    run(body, keys=KEYS, public_metrics=True)


def test_keys_from_file_and_environment(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# comment\n first-key \n\nadmin:boss\n admin: chief\nadmin:\n")
    environment = {"LIGHTLLM_MP_API_KEYS": "second-key, third\n", "LIGHTLLM_MP_ADMIN_KEYS": "owner"}
    keys = load_keys(HttpConfig(api_key_file=str(path)), environment)
    assert keys == ApiKeys(digests("first-key", "second-key", "third"), digests("boss", "chief", "owner"))
    assert not load_keys(HttpConfig(), {})
    assert load_keys(HttpConfig(), {"LIGHTLLM_MP_ADMIN_KEYS": "owner"}) == ApiKeys(admins=digests("owner"))


def application(table: tuple[Route, ...], keys: ApiKeys) -> web.Application:
    app = web.Application(middlewares=[failures, guard(keys, {route.handler: route.access for route in table})])
    for route in table:
        app.router.add_get(route.paths[0], route.handler)
    return app


def test_the_three_kinds_of_routes():
    def route(access: str) -> Route:
        async def handler(request: web.Request) -> web.Response:
            return web.Response(text="ok")

        return Route(("GET",), (f"/{access}",), handler, access)

    async def main():
        table = tuple(route(access) for access in ("public", "user", "admin"))
        for keys, who, expected in (
            (KEYS, "boss", [200, 200, 200]),
            (KEYS, "first-key", [200, 200, 403]),
            (KEYS, "nope", [200, 401, 401]),
            (KEYS, "", [200, 401, 401]),
            (ApiKeys(users=KEYS.users), "first-key", [200, 200, 403]),
            (ApiKeys(admins=KEYS.admins), "first-key", [200, 401, 401]),
            (ApiKeys(), "", [200, 200, 200]),
        ):
            async with TestClient(TestServer(application(table, keys))) as client:
                headers = {"Authorization": f"Bearer {who}"}
                statuses = [(await client.get(route.paths[0], headers=headers)).status for route in table]
                assert statuses == expected, who
                assert (await client.get("/nope", headers=headers)).status == (404 if expected[1] == 200 else 401)

    asyncio.run(main())


def test_a_route_that_was_not_declared_is_an_admin_route():
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def main():
        app = web.Application(middlewares=[failures, guard(KEYS, {})])
        app.router.add_get("/forgotten", handler)
        async with TestClient(TestServer(app)) as client:
            for who, status in (("boss", 200), ("first-key", 403), ("nope", 401)):
                got = await client.get("/forgotten", headers={"Authorization": f"Bearer {who}"})
                assert got.status == status

    asyncio.run(main())


def test_every_route_says_who_may_call_it():
    frontend = ResumableTable(lambda message: True, lambda message: True, limits=RequestLimits(1))
    app = create_app(frontend, HttpConfig(), model=ModelConfig(), stats=dict)
    declared = app[ACCESS]
    undeclared = [str(route) for route in app.router.routes() if route.handler not in declared]
    assert undeclared == []
    assert set(declared.values()) <= {"public", "user", "admin"}
    public = {route.resource.canonical for route in app.router.routes() if declared[route.handler] == "public"}
    assert public == {"/health", "/healthz", "/liveness", "/readiness", "/", *PAGE}
    with pytest.raises(TypeError):
        Route(("GET",), ("/new",), lambda request: None)  # type: ignore[call-arg]


def test_keys_are_compared_in_constant_time(monkeypatch):
    """Each key is compared with in full, whether one before it fitted or not."""
    seen = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append(b) or real(a, b))

    async def body(s: Site):
        for key in ("first-key", "second-key", "boss", "nope", ""):
            seen.clear()
            await s.get("/get_server_info", headers={"Authorization": f"Bearer {key}"})
            assert set(seen) == KEYS.users | KEYS.admins

    run(body, keys=KEYS)


def test_keys_are_not_logged(caplog):
    async def body(s: Site):
        for key in ("first-key", "boss", "nope-key"):
            await s.post("/generate", BODY, headers={"Authorization": f"Bearer {key}"})

    with caplog.at_level(logging.DEBUG):
        run(body, keys=KEYS)
    lines = [record.getMessage() for record in caplog.records if record.name == "lightllm_mp.access"]
    assert len(lines) == 3
    assert not any(secret in caplog.text for secret in ("first-key", "boss", "nope-key"))
    assert not any(digest.hex()[:8] in caplog.text for digest in KEYS.users | KEYS.admins)
    client = [re.search(r" client=([0-9a-f]{8}) ", line) for line in lines]
    assert client[0]
    assert client[1]
    assert client[0][1] != client[1][1]
    assert client[2] is None


@pytest.mark.parametrize("content", ["", "# only a comment\n", None, b"\xff\xfe"])
def test_a_file_without_keys_does_not_open_the_server(tmp_path, content):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_keys(HttpConfig(api_key_file=str(path)), {})
    assert str(tmp_path) not in caught.value.message
    with pytest.raises(ConfigError):
        load_keys(HttpConfig(), {"LIGHTLLM_MP_API_KEYS": " ,"})
