"""A hub of one repository, as the client library of Hugging Face asks it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class FakeHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.files = files
        self.sent: list[str] = []
        """Files that were downloaded."""
        self.gated = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        api, files = f"api/models/{self.server.name}", f"{self.server.name}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.server.files.items()]
            self._json(200, {"id": self.server.name, "sha": COMMIT, "siblings": siblings}, head)
        elif path.startswith(f"{api}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files.items()
            ]
            self._json(200, entries, head)
        elif path.startswith(f"{api}/revision/"):
            self._json(404, {"error": "no"}, head, "RevisionNotFound")
        elif path.startswith(files) and (data := self.server.files.get(path.removeprefix(files))) is not None:
            self._file(path.removeprefix(files), data, head)
        else:
            self._json(404, {"error": "no"}, head, "RepoNotFound")

    def _file(self, name: str, data: bytes, head: bool) -> None:
        if self.server.gated:
            self._json(403, {"error": "no"}, head, "GatedRepo")
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not head:
            self.server.sent.append(name)
            self.wfile.write(data)

    def _json(self, status: int, value: object, head: bool, error: str = "") -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if not head:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def fake_hub(name: str, files: dict[str, bytes]) -> Iterator[FakeHub]:
    with FakeHub(name, files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
