"""HTTPS: what is spoken, and what is said about files that do not fit."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest

from lightllm_mp.actors.http.security.tls import server_context
from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import ConfigError
from tests.actors.http.harness import PATIENCE, Site, run
from tests.paths import ROOT

DATA = ROOT / "tests" / "data" / "tls"
CERTIFICATE, KEY = str(DATA / "server.crt"), str(DATA / "server.key")
TLS = {"ssl_certfile": CERTIFICATE, "ssl_keyfile": KEY}
BODY = {"inputs": "a", "parameters": {"max_new_tokens": 20}}


def test_https_is_spoken_and_http_is_not():
    async def body(s: Site):
        assert (await s.post("/generate", BODY))[0] == 200
        assert len(await s.events(BODY)) == 20
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in await s.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await s.get("/health"))[0] == 200

    run(body, **TLS)


def test_old_versions_are_refused():
    async def body(s: Site):
        client = ssl.create_default_context(cafile=CERTIFICATE)
        client.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        client.maximum_version = ssl.TLSVersion.TLSv1_1
        client.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(*s.address, ssl=client)
        client = ssl.create_default_context(cafile=CERTIFICATE)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        _, writer = await asyncio.open_connection(*s.address, ssl=client)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.2"
        writer.close()

    run(body, **TLS)


def test_a_client_that_does_not_shake_hands_is_closed_and_others_are_served():
    async def body(s: Site):
        silent = [await asyncio.open_connection(*s.address) for _ in range(20)]
        assert (await s.get("/health"))[0] == 200
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()

    run(body, header_timeout=0.3, **TLS)


def test_a_reader_that_does_not_read_is_cut_off():
    async def body(s: Site):
        client = ssl.create_default_context(cafile=CERTIFICATE)
        _, writer = await asyncio.open_connection(*s.address, ssl=client, limit=1024)
        data = b'{"inputs":"a","parameters":{"max_new_tokens":100000,"ignore_eos":true}}'
        writer.write(b"POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        await s.settled(lambda: s.frontend.live == 1)
        await s.settled(lambda: s.frontend.live == 0)
        writer.close()

    run(body, write_timeout=0.3, **TLS)


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        (None, KEY, "--ssl-keyfile without --ssl-certfile"),
        ("/nowhere/a.crt", KEY, "--ssl-certfile /nowhere/a.crt: No such file or directory"),
        (CERTIFICATE, "/nowhere/a.key", "--ssl-keyfile /nowhere/a.key: No such file or directory"),
        (CERTIFICATE, str(DATA / "other.key"), "the key does not belong to the certificate"),
        (CERTIFICATE, str(DATA / "encrypted.key"), "the key is encrypted"),
        (CERTIFICATE, None, "not a certificate and its private key in PEM format"),
        (KEY, KEY, "not a certificate and its private key in PEM format"),
        (str(DATA / "README"), KEY, "not a certificate and its private key in PEM format"),
        (str(DATA), KEY, "Is a directory"),
    ],
)
def test_wrong_files_are_one_line(certificate: str | None, key: str | None, said: str):
    with pytest.raises(ConfigError) as caught:
        server_context(HttpConfig(ssl_certfile=certificate, ssl_keyfile=key))
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_one_file_may_hold_both(tmp_path: Path):
    both = tmp_path / "both.pem"
    both.write_text(Path(CERTIFICATE).read_text() + Path(KEY).read_text())
    context = server_context(HttpConfig(ssl_certfile=str(both)))
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert server_context(HttpConfig()) is None
