"""What every view of the page has: its policy, themes, weight, and that it can be switched off."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import Visit
from tests.browser.scripted import ScriptedEngine, ScriptedServer, scripted
from tools.bench.page_weight import files, load, sent_bytes

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MOST_BYTES = 400_000
"""Of all files of the page, compressed."""
MOST_FIRST = 100_000
"""Of those that the browser fetches by itself."""


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted(ScriptedEngine()) as running:
        yield running


def background(page: Page) -> int:
    """The lightness of the page's ground, from 0 to 255."""
    colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    return max(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))


def test_a_theme_is_the_systems_until_one_is_chosen(server: ScriptedServer, visit: Visit) -> None:
    page = visit(server.base_url, color_scheme="dark")
    theme = page.get_by_role("button", name="Theme")
    theme.wait_for()
    assert background(page) < 80
    page.emulate_media(color_scheme="light")
    assert background(page) > 200
    for _ in range(3):  # system, light, dark
        if background(page) < 80:
            break
        theme.click()
    assert background(page) < 80
    page.reload()
    theme.wait_for()
    assert background(page) < 80


def test_the_browser_obeys_the_policy(server: ScriptedServer, visit: Visit, expected_faults: list[str]) -> None:
    """The page's own faults are none; a script and a style that somebody injects do nothing."""
    page = visit(server.base_url)
    page.get_by_role("main").wait_for()
    expected_faults += ["Content Security Policy", "document requires .Trusted"]
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          try { script.textContent = "window.injected = true" } catch {}
          document.body.append(script);
          const image = document.createElement("div");
          try { image.innerHTML = "<img src=x onerror='window.injected = true'>" } catch {}
          document.body.append(image);
          image.setAttribute("style", "position: fixed");
        }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("() => window.injected") is None
    assert page.evaluate("() => document.body.lastChild.childElementCount") == 0
    assert page.evaluate("() => getComputedStyle(document.body.lastChild).position") == "static"
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate("() => fetch('http://127.0.0.1:9/')")


def test_no_other_page_may_frame_it(server: ScriptedServer, visit: Visit, expected_faults: list[str]) -> None:
    expected_faults += ["frame", "ERR_BLOCKED_BY_RESPONSE", "status of 404"]  # of the icon of a page that is none
    page = visit(server.base_url, "/healthz")
    page.evaluate("() => { document.body.append(document.createElement('iframe')) }")
    page.evaluate("() => { document.querySelector('iframe').src = '/' }")
    page.wait_for_timeout(200)
    assert [frame.url for frame in page.frames[1:]] == ["chrome-error://chromewebdata/"]


def test_it_is_light_and_asks_nobody_else(server: ScriptedServer, browser: Browser) -> None:
    seen = load(browser, server.base_url)
    sizes = {path: sent_bytes(server.base_url + path)[0] for path in files()}
    assert seen.elsewhere == []
    assert sum(sizes.values()) <= MOST_BYTES
    assert sum(sizes.get(path, 0) for path in set(seen.paths)) <= MOST_FIRST
    assert {path for path in seen.paths if path not in sizes} <= {"/get_server_info"}


@pytest.mark.parametrize("path", ["/", "/live", "/assets/main.js"])
def test_it_can_be_switched_off(path: str) -> None:
    with scripted(ScriptedEngine(), no_ui=True) as server:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(server.base_url + path, timeout=10)
        assert refused.value.code in (404, 405)
        body = urllib.request.Request(server.base_url + "/", b'{"inputs": "a", "parameters": {"max_new_tokens": 1}}')
        assert urllib.request.urlopen(body, timeout=10).status == 200
