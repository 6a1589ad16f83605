"""Run a server as a child of another program: `with launch(config) as server: ... server.base_url ...`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from select import select
from typing import Any

import msgspec
from msgspec.structs import replace

from lightllm_mp import client
from lightllm_mp.config import Config
from lightllm_mp.errors import ConfigError, StartupError
from lightllm_mp.shm.memfd import create_memfd

PROGRAM = "import sys; from lightllm_mp.server import _child; sys.exit(_child())"


class Server:
    """A running `lightllm-mp serve`, of one engine or of a fleet. It ends when the launching program ends, even by a
    crash."""

    def __init__(self, config: Config | None = None, *, stderr: int | None = None) -> None:
        """`stderr`: a descriptor for the server's log; by default it writes to this program's standard error."""
        config_fd = create_memfd("config")
        os.write(config_fd, msgspec.msgpack.encode(config or Config()))
        os.lseek(config_fd, 0, os.SEEK_SET)
        parent_read, self._parent_write = os.pipe()
        self._status, status_write = os.pipe()
        fds = (config_fd, parent_read, status_write)
        try:
            # The server gets its own process group: a Ctrl-C in the terminal reaches only the launching program.
            self._popen = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *map(str, fds)],
                pass_fds=fds,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"},
                process_group=0,
                stderr=stderr,
            )
        finally:
            for fd in fds:
                os.close(fd)
        self._trust = _trust(config.http.ssl_certfile) if config else None
        self.facts: dict[str, Any] = {}
        """Facts about the served model: name, context, KV tokens, ... (of a fleet: of one replica). Set by
        wait_ready."""

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs. 0: clean end; 2: wrong configuration; 69: start failed; 70: restart budget spent."""
        return self._popen.poll()

    @property
    def base_url(self) -> str:
        """Available after wait_ready; StartupError before."""
        if not self.facts:
            raise StartupError("the server is not ready yet: call wait_ready first")
        return str(self.facts["url"])

    def wait_ready(self, timeout: float = 1800.0) -> Server:
        """Wait until the server accepts requests. StartupError if it ends, or after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select([self._status], [], [], left)[0]:
                raise StartupError(f"the server is not ready after {timeout:.0f} s")
            part = os.read(self._status, 65536)
            if not part:
                raise StartupError(f"the server ended with code {self._popen.wait()}; its log says why")
            line += part
        self.facts = json.loads(line)
        return self

    def health(self, timeout: float = 5.0) -> bool:
        """True if /health answers 200: requests make progress now."""
        try:
            with urllib.request.urlopen(f"{self.base_url}/health", timeout=timeout, context=self._trust) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stream(self, body: dict[str, Any], *, key: str = "") -> Iterator[dict[str, Any]]:
        """The events of an answer of /generate_stream, each once, although connections break and processes die. Raises
        like `client.stream`."""
        return client.stream(self.base_url, body, key=key, trust=self._trust)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the server ends of itself. Returns the exit code. subprocess.TimeoutExpired after `timeout`
        seconds."""
        return self._popen.wait(timeout)

    def drain(self, timeout: float | None = None) -> int:
        """Refuse new requests, finish running ones, then end. Returns the exit code. subprocess.TimeoutExpired after
        `timeout` seconds."""
        self._signal(signal.SIGTERM)
        return self._popen.wait(timeout)

    def stop(self, timeout: float = 15.0) -> int:
        """End now and abort running requests. Returns the exit code."""
        self._signal(signal.SIGTERM)
        time.sleep(0.05)  # the kernel would merge two signals at once
        self._signal(signal.SIGTERM)
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self._popen.kill()  # its children end with it
            return self._popen.wait()

    def close(self) -> None:
        """Stop the server if it runs, and close the descriptors. Idempotent."""
        if self.exit_code is None:
            self.stop()
        if self._parent_write >= 0:
            os.close(self._parent_write)
            os.close(self._status)
            self._parent_write = -1

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            self._popen.send_signal(number)


def _trust(certificate: str | None) -> ssl.SSLContext | None:
    """A TLS context that trusts only the server's own certificate, for any host name and any issuer."""
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    with contextlib.suppress(OSError):  # the server reports what is wrong with the file
        context.load_verify_locations(certificate)
    return context


def launch(config: Config | None = None, *, replicas: int | None = None, stderr: int | None = None) -> Server:
    """Start a server with this configuration. Returns at once; see Server. `replicas`: so many engines behind its port
    (needs the extra `ray`); default: as the configuration says. ConfigError for a number below 1."""
    config = config or Config()
    if replicas is not None:
        if replicas < 1:
            raise ConfigError(f"replicas is at least 1, not {replicas}", param="replicas")
        config = replace(config, fleet=replace(config.fleet, replicas=replicas))
    return Server(config, stderr=stderr)


def _child() -> int:
    from lightllm_mp.cli.serve import main

    config_fd, parent_fd, status_fd = map(int, sys.argv[1:4])
    with os.fdopen(config_fd, "rb") as file:
        config = msgspec.msgpack.decode(file.read(), type=Config)
    return main(config, parent_fd=parent_fd, status_fd=status_fd)
