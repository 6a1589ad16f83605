#!/usr/bin/env python3
"""Stands for llama-server: not ready at first, then streams the requested number of tokens less FAKE_MISSING."""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

READY = time.monotonic() + 0.3
MISSING = int(os.environ.get("FAKE_MISSING", "0"))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if time.monotonic() > READY else 503)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["ignore_eos"]
        assert body["stream"]
        assert not body["cache_prompt"]
        self.send_response(200)
        self.end_headers()
        tokens = body["n_predict"] - MISSING
        for count in range(tokens + 1):
            time.sleep(0.02)
            event = {"stop": count == tokens, "tokens_predicted": min(count + 1, tokens)}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


if "--version" in sys.argv:
    print("version: 1.2.3 (fake)")
elif "/nonexistent" in sys.argv:
    print("system_info: n_threads = 2 / 2 | CPU : AVX2 = 1 | AVX512 = 1 | NEON = 0 |")
elif "--broken" in " ".join(sys.argv):
    sys.exit("no such model")
else:
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
