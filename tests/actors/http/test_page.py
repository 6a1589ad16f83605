"""The page and its files: types, caching, compression, and what a browser may do with them."""

from __future__ import annotations

import gzip
import re

import pytest

from lightllm_mp.actors.http.page import FOLDER, PageFile, read_page
from lightllm_mp.actors.http.security.keys import ApiKeys
from tests.actors.http.harness import Site, run
from tests.actors.http.test_auth import digests

INDEX = (FOLDER / "index.html").read_bytes()
ASSETS = [name for name in read_page() if name != "index.html"]
LOOK = {"Accept-Encoding": "identity"}


@pytest.mark.parametrize("path", ["/", "/live"])
def test_the_page(path: str) -> None:
    async def body(s: Site) -> None:
        async with s.session.get(path, headers=LOOK) as response:
            assert (response.status, await response.read()) == (200, INDEX)
            assert response.headers["Content-Type"] == "text/html; charset=utf-8"
            assert response.headers["Cache-Control"] == "no-cache"
        async with s.session.head(path, headers=LOOK) as response:
            assert (response.status, response.headers["Content-Length"]) == (200, str(len(INDEX)))

    run(body)


def test_every_file() -> None:
    async def body(s: Site) -> None:
        for name in ASSETS:
            data = (FOLDER / "assets" / name).read_bytes()
            async with s.session.get(f"/assets/{name}", headers=LOOK) as response:
                assert (response.status, await response.read()) == (200, data)
                assert "immutable" in response.headers["Cache-Control"]
            async with s.session.get(f"/assets/{name}", headers={"Accept-Encoding": "gzip, br"}) as response:
                assert response.headers["Content-Encoding"] == "gzip"
                assert gzip.decompress(await response.read()) == data

    run(body)
    named = set(re.findall(rb'(?:href|src)="([^"]+)"', INDEX))
    assert len(named) >= 4
    assert named <= {f"assets/{name}".encode() for name in ASSETS}


def test_a_browser_keeps_what_has_not_changed() -> None:
    async def body(s: Site) -> None:
        tag = (await s.get("/", headers=LOOK))[2]["ETag"]
        for given, status in ((tag, 304), (f'"other", {tag}', 304), ("*", 304), ('"other"', 200)):
            async with s.session.get("/", headers={"If-None-Match": given}) as response:
                assert (response.status, response.headers["ETag"]) == (status, tag)
                assert "Content-Security-Policy" in response.headers

    run(body)


def test_the_icon_of_pages_that_name_none() -> None:
    async def body(s: Site) -> None:
        status, text, headers = await s.get("/favicon.ico", headers=LOOK)
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "image/svg+xml", "no-cache")
        assert text.startswith("<svg")

    run(body)


def test_what_the_page_may_do() -> None:
    async def body(s: Site) -> None:
        for path in ("/", "/live", *(f"/assets/{name}" for name in ASSETS)):
            headers = (await s.get(path, headers=LOOK))[2]
            policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
            assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["require-trusted-types-for"] == "'script'"
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"

    run(body)
    assert re.findall(rb"<script(?![^>]* src=)|<style| style=| on\w+=|//", INDEX) == []


def test_nothing_else_is_a_file_of_the_page() -> None:
    async def body(s: Site) -> None:
        for path in ("/assets/", "/assets/index.html", "/assets/nothing.js", "/assets/..%2findex.html", "/index.html"):
            assert (await s.get(path, headers=LOOK))[0] == 404
        assert (await s.get("/assets/%2e%2e/page.py", headers=LOOK))[0] == 404
        assert (await s.post("/generate", {"inputs": "x", "parameters": {"max_new_tokens": 1}}))[0] == 200
        assert (await s.post("/", {"inputs": "x", "parameters": {"max_new_tokens": 1}}))[0] == 200

    run(body)


def test_it_needs_no_key() -> None:
    async def body(s: Site) -> None:
        for path in ("/", "/live", f"/assets/{ASSETS[0]}"):
            assert (await s.get(path, headers=LOOK))[0] == 200
        assert (await s.get("/v1/models"))[0] == 401

    run(body, keys=ApiKeys(users=digests("a-key")))


def test_no_ui() -> None:
    async def body(s: Site) -> None:
        assert (await s.get("/", headers=LOOK))[0] == 405  # LightLLM's POST / is there
        assert (await s.get("/favicon.ico"))[0] == 404
        assert (await s.get("/live", headers=LOOK))[0] == (await s.get(f"/assets/{ASSETS[0]}", headers=LOOK))[0] == 404

    run(body, no_ui=True)


def test_only_names_with_a_hash_are_kept_for_ever() -> None:
    assert PageFile("main-7UJKMIUE.js", b"").hashed
    assert not PageFile("index.html", b"").hashed
    assert not PageFile("main-side.js", b"").hashed
