"""`lightllm-mp health`: finds the server of its container, and its exit code is the server's health."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightllm_mp.cli import health, main
from lightllm_mp.errors import ConfigError

TIMEOUT = 10.0


class Answers(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        assert self.path == "/health"
        self.send_response(type(self).status)
        self.end_headers()
        self.wfile.write(b"words")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(TIMEOUT)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_exit_code_is_the_health(port, capsys, monkeypatch, status, code) -> None:
    monkeypatch.setattr(Answers, "status", status)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not for this machine
    assert main.main(["health", "--url", f"http://127.0.0.1:{port}"]) == code
    assert capsys.readouterr().out == "words\n"


def test_nobody_who_listens_is_unhealthy(capsys) -> None:
    assert main.main(["health", "--url", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1 does not answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "environ", "url"),
    [
        ("lightllm-mp serve", {}, "http://127.0.0.1:8000"),
        ("python lightllm-mp serve", {"LIGHTLLM_MP_PORT": "81"}, "http://127.0.0.1:81"),
        ("lightllm-mp serve --port 9000", {"LIGHTLLM_MP_PORT": "81"}, "http://127.0.0.1:9000"),
        ("docker-init -- lightllm-mp serve --host :: --port=82", {}, "http://[::1]:82"),
        ("lightllm-mp serve --ssl-certfile cert.pem", {"LIGHTLLM_MP_HOST": "0.0.0.0"}, "https://127.0.0.1:8000"),
        ("python -m lightllm.server.api_server --model_dir m --port 83 --tp 1", {}, "http://127.0.0.1:83"),
        ("sleep 1000", {}, "http://127.0.0.1:8000"),
    ],
)
def test_the_server_of_the_container_is_found(tmp_path: Path, command: str, environ: dict[str, str], url: str) -> None:
    file = tmp_path / "cmdline"
    file.write_bytes("\0".join([*command.split(), ""]).encode())
    assert health.own_url(file, environ) == url


def test_the_file_of_settings_counts_too(tmp_path: Path) -> None:
    settings, file = tmp_path / "settings.toml", tmp_path / "cmdline"
    settings.write_text("port = 85\n")
    file.write_bytes(f"lightllm-mp\0serve\0--config\0{settings}\0".encode())
    assert health.own_url(file, {}) == "http://127.0.0.1:85"


def test_wrong_settings_are_told(tmp_path: Path) -> None:
    file = tmp_path / "cmdline"
    file.write_bytes(b"lightllm-mp\0serve\0--port\0x\0")
    with pytest.raises(ConfigError):
        health.own_url(file, {})
