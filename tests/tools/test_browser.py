"""The browser of tests and tools leaves nothing behind, however its program ends; faults of its pages are recorded."""

from __future__ import annotations

import http.server
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.paths import ROOT
from tools.harness.browser import BrowserMissing, chromium, new_context
from tools.harness.procfs import alive, descendants

PROGRAM = """
from tools.harness.browser import chromium
with chromium() as browser:
    browser.new_page()
    print("open", flush=True)
    {}
"""
PAGE = b"""<!doctype html><title>x</title><h1>x</h1><script src="/s.js"></script>
<img src="http://127.0.0.2:9/x.png"><p onclick="x">"""
SCRIPT = b"""console.info("fine");
console.error("a fault");
setTimeout(() => { throw new Error("thrown") });
alert("a dialog");"""
POLICY = "default-src 'none'; script-src 'self'; img-src *"


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "import time; time.sleep(600)"], ids=["raised", "killed"])
def test_nothing_is_left_of_a_browser(end: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(end)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "open\n":
        process.wait(20)
        pytest.skip("there is no browser")
    started = descendants(process.pid)
    if "sleep" in end:
        assert len(started) > 3
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while left := alive(started):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


class Hostile(http.server.BaseHTTPRequestHandler):
    """A page with every kind of fault."""

    def do_GET(self) -> None:
        body, kind = (SCRIPT, "text/javascript") if self.path == "/s.js" else (PAGE, "text/html")
        self.send_response(200 if self.path in ("/", "/s.js") else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_kind_of_fault_is_found(hostile: str) -> None:
    try:
        with chromium() as browser:
            context, faults = new_context(browser, hostile)
            page = context.new_page()
            page.goto("/")
            page.wait_for_timeout(200)
            context.close()
    except BrowserMissing as missing:
        pytest.skip(str(missing))
    for kind in (
        "console error: a fault",
        "exception: thrown",
        "dialog: a dialog",
        "request to another host: http://127.0.0.2:9/x.png",
        "inline event handler violates",
    ):
        assert any(kind in fault for fault in faults.found), (kind, faults.found)
    assert not any("fine" in fault for fault in faults.found)
    assert faults.besides([""]) == []
