"""A real Prometheus that scrapes one server every second."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.deploy.programs import program

START = 30.0
"""Seconds until it answers on a busy machine."""


class PrometheusServer:
    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer. AssertionError with Prometheus' words if it is an error."""
        body = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{body}", timeout=10) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def values(self, query: str) -> list[float]:
        """One for each series that the query gives now."""
        return [float(series["value"][1]) for series in self.get("query", query=query)["result"]]

    def wait(self) -> None:
        deadline = time.monotonic() + START
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self._url}/-/ready", timeout=1):
                return
            assert time.monotonic() < deadline, "Prometheus does not start"
            time.sleep(0.05)


@contextlib.contextmanager
def scraping(target: str, rules: Path, folder: Path) -> Iterator[PrometheusServer]:
    """Scrapes `target` (host:port), evaluates `rules`, and keeps its data in `folder`."""
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "lightllm-mp", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{port}",
        "log.level": "warn",
    }
    command = [program("prometheus"), *(f"--{name}={value}" for name, value in flags.items())]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            found = PrometheusServer(port)
            found.wait()
            yield found
        finally:
            process.kill()
