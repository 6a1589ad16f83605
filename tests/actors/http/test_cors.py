"""Web pages of other origins: refused by the browser unless named, and never with credentials."""

from __future__ import annotations

from hashlib import sha256

import pytest

from lightllm_mp.actors.http.security.keys import ApiKeys
from lightllm_mp.actors.http.security.origins import Origins
from lightllm_mp.cli.flags import resolve
from lightllm_mp.errors import ConfigError
from tests.actors.http.harness import Engine, Site, run

BODY = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
GOOD, EVIL = "https://app.example:8443", "https://app.example.evil"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
KEYS = ApiKeys(users=frozenset({sha256(b"key").digest()}))


def allowed(headers) -> list[str]:
    assert "Access-Control-Allow-Credentials" not in headers
    return headers.getall("Access-Control-Allow-Origin", [])


async def preflight(s: Site, origin: str, path: str = "/generate"):
    async with s.session.options(path, headers={**PREFLIGHT, "Origin": origin}) as response:
        return response.status, response.headers


def test_off_by_default():
    async def body(s: Site):
        assert (await preflight(s, GOOD))[0] == 405
        status, _, headers = await s.post("/generate", BODY, headers={"Origin": GOOD})
        assert status == 200
        assert not [name for name in headers if name.lower().startswith("access-control")]

    run(body, host="0.0.0.0", allowed_host=())  # with a name, or on a loopback host, it is refused: test_local_hosts.py


def test_named_origins_only():
    async def body(s: Site):
        for path in ("/generate", "/generate_stream", "/nope"):  # a preflight tells nothing about paths
            status, headers = await preflight(s, GOOD, path)
            assert (status, allowed(headers)) == (204, [GOOD])
            assert "Authorization" in headers["Access-Control-Allow-Headers"]
            assert headers["Vary"] == "Origin"
        for origin in (EVIL, "null", "https://app.example", "http://app.example:8443", GOOD.upper(), GOOD + "/", "*"):
            status, headers = await preflight(s, origin)
            assert (status, allowed(headers)) == (401, []), origin
            answer = await s.post("/generate", BODY, headers={"Origin": origin, "Authorization": "Bearer key"})
            assert (answer[0], allowed(answer[2])) == (200, [])
        assert not s.engine.running

    run(body, cors_allow_origin=("https://other.example", GOOD), keys=KEYS, engine=Engine())


def test_answers_errors_and_streams_can_be_read_by_a_named_page():
    async def body(s: Site):
        page = {"Origin": GOOD}
        for status, _, headers in (await s.post("/generate", BODY, headers=page), await s.get("/nope", headers=page)):
            assert (status in (200, 404), allowed(headers)) == (True, [GOOD])
            assert "Retry-After" in headers["Access-Control-Expose-Headers"]
        async with s.session.post("/generate_stream", json=BODY, headers=page) as response:
            assert allowed(response.headers) == [GOOD]
        _, _, headers = await s.get("/health")
        assert (allowed(headers), headers["Vary"]) == ([], "Origin")
        async with s.session.options("/generate", headers=page) as response:
            assert response.status == 405  # no preflight

    run(body, cors_allow_origin=(GOOD,))


def test_every_origin_is_a_star_and_not_a_reflection():
    async def body(s: Site):
        assert allowed((await preflight(s, EVIL))[1]) == ["*"]
        assert allowed((await s.get("/health", headers={"Origin": EVIL}))[2]) == ["*"]

    run(body, cors_allow_origin=("*",))


def test_the_flag_may_be_repeated():
    words = ["--cors-allow-origin", "https://a", "--port", "1", "--cors_allow_origin", "https://b", "https://c"]
    assert resolve(words, {})[0].http.cors_allow_origin == ("https://a", "https://b", "https://c")
    environment = {"LIGHTLLM_MP_CORS_ALLOW_ORIGIN": "https://a,https://b"}
    assert resolve([], environment)[0].http.cors_allow_origin == ("https://a", "https://b")


@pytest.mark.parametrize("origin", ["null", "example.org", "https://a/b", "https://a/", "*.a", "https://a\r\nX: y", ""])
def test_what_is_no_origin_is_refused(origin: str):
    with pytest.raises(ConfigError):
        Origins([origin])
    assert Origins(["https://[::1]:3000", "http://localhost:5173", "*"])
    assert not Origins([])
