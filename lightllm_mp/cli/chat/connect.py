"""Finds the server to chat with, or starts one."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from lightllm_mp.cli.chat.answers import ChatServer, status
from lightllm_mp.cli.safe_text import printable
from lightllm_mp.client import get_json
from lightllm_mp.config import Config, HttpConfig, ModelConfig, MultimodalConfig, SupervisorConfig
from lightllm_mp.errors import ConfigError, EngineError, StartupError
from lightllm_mp.model_files.default_model import find_model
from lightllm_mp.server import launch

DEFAULT_URL = f"http://{HttpConfig().host}:{HttpConfig().port}"
KEY_VARIABLE = "LIGHTLLM_MP_API_KEY"
CLEAR = "\r\x1b[K"
UNREACHED = (OSError, http.client.HTTPException)


@contextlib.contextmanager
def chat_server(url: str | None, model_dir: str | None, asked: dict[str, Any]) -> Iterator[ChatServer]:
    """Yields the server at `url`, else the one at the default address, else an own server, which ends with the context.

    With `model_dir` always an own server. EngineError if there is none.
    """
    key = os.environ.get(KEY_VARIABLE, "")
    found = None
    if url is not None:
        found = _running(_checked(url), key, asked)
    elif model_dir is None:
        with contextlib.suppress(*UNREACHED):
            found = _running(DEFAULT_URL, key, asked, may_be_another=True)
    if found is not None:
        yield found
        return
    with own_server(model_dir) as own:
        found = _running(own, key, asked)
        assert found is not None
        yield found


def _checked(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--url: expected http://HOST:PORT, got {url!r}")
    return f"{parts.scheme}://{parts.netloc}"


def _running(url: str, key: str, asked: dict[str, Any], *, may_be_another: bool = False) -> ChatServer | None:
    """The server at `url`. With `may_be_another`, None if what listens there does not speak OpenAI's API."""
    try:
        model = str(get_json(url, "/v1/models", key=key)["data"][0]["id"])
    except UNREACHED as error:
        if may_be_another:
            return None
        reason = getattr(error, "strerror", None) or error
        raise EngineError(f"no server answers at {url}: {reason}; start one with lightllm-mp serve") from None
    except EngineError as error:
        if error.status in (401, 403):
            raise EngineError(f"{url} wants an API key: set {KEY_VARIABLE}") from None
        if may_be_another:
            return None
        raise
    except (KeyError, IndexError, TypeError):
        if may_be_another:
            return None
        raise EngineError(f"{url} does not list its model as a server of OpenAI's API does") from None
    return ChatServer(url, model, key, asked)


@contextlib.contextmanager
def own_server(model_dir: str | None) -> Iterator[str]:
    """Starts a server on a free port and yields its address. Its log is shown only if it does not start."""
    find_model(model_dir, images=True)  # downloads the default model and shows the progress
    config = Config(
        model=ModelConfig(model_dir=model_dir),
        http=HttpConfig(port=0, disable_access_log=True),
        multimodal=MultimodalConfig(enable_multimodal=True),
        supervisor=SupervisorConfig(log_level="warning"),
    )
    log = StartLog()
    with launch(config, stderr=log.fd) as server:
        log.follow()
        try:
            server.wait_ready()
        except StartupError:
            log.finish(shown=True)
            raise
        except BaseException:
            log.finish()
            raise
        log.finish()
        yield server.base_url
        if server.exit_code is not None:
            status("\n".join(log.lines))


class StartLog:
    """Reads a server's log in a thread. A terminal shows only the newest line, until the server is ready."""

    def __init__(self) -> None:
        self._read, self.fd = os.pipe()
        self.lines: deque[str] = deque(maxlen=40)
        self._showing = sys.stderr.isatty()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def follow(self) -> None:
        """Begin to read: the server has its own copy of the descriptor."""
        os.close(self.fd)
        self._show("starting a server")
        self._thread.start()

    def finish(self, *, shown: bool = False) -> None:
        """Clear the line. `shown`: the server has ended, so write its log instead."""
        if self._showing:
            self._showing = False
            print(CLEAR, end="", file=sys.stderr, flush=True)
        if shown:
            self._thread.join(5)
            print("\n".join(map(printable, self.lines)), file=sys.stderr)

    def _run(self) -> None:
        with os.fdopen(self._read, encoding="utf-8", errors="replace") as log:
            for line in log:
                self.lines.append(line.rstrip("\n"))
                self._show(line.strip())

    def _show(self, line: str) -> None:
        if self._showing and line:
            room = shutil.get_terminal_size().columns - 1
            print(f"{CLEAR}\x1b[2m{printable(line)[:room]}\x1b[0m", end="", file=sys.stderr, flush=True)
