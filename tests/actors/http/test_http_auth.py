"""With a key set, nothing but health is served without it, whatever the path looks like."""

from __future__ import annotations

from hashlib import sha256

import pytest
from http_harness import Site, run

from lightllm_mp.actors.http.auth import load_keys
from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import ConfigError

KEYS = frozenset(sha256(key).digest() for key in (b"first-key", b"second-key"))
BODY = b'{"inputs":"a","parameters":{"max_new_tokens":1}}'
POSTS = ["/generate", "/generate_stream", "/", "/tokens"]
GETS = ["/metrics", "/token_load", "/get_server_info", "/nope"]
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
    path.write_text("# comment\n first-key \n\n")
    keys = load_keys(HttpConfig(api_key_file=str(path)), {"LIGHTLLM_MP_API_KEYS": "second-key, third\n"})
    assert keys == KEYS | {sha256(b"third").digest()}
    assert load_keys(HttpConfig(), {}) == frozenset()


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
