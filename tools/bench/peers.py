"""Starts, asks and ends the programs that cpu_peers.py compares."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import Any, ClassVar, NamedTuple

import aiohttp

from lightllm_mp.cli.bench.events import EventCounter, decode

Prompts = list[list[int]]
LIMIT = 600.0
"""Seconds that a start or an answer may take."""


class PeerError(Exception):
    """A program did not start, or gave a wrong answer. The message has one line."""


class Times(NamedTuple):
    """One answer: seconds from the request to its first and last token, and its number of tokens."""

    first: float
    last: float
    tokens: int


class Peer(ABC):
    """One program. Its output goes to `log`."""

    def __init__(self, name: str, environment: dict[str, str], log: Path) -> None:
        self.name = name
        self._environment = os.environ | environment
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Starts it, waits until it answers, and returns the seconds that this took. Raises PeerError."""
        with self._log.open("ab") as log:
            start = time.perf_counter()
            self._process = self._launch(log)
            self._wait_ready(start + LIMIT)
            return time.perf_counter() - start

    def stop(self) -> None:
        """Ends it and all its processes. Idempotent."""
        if self._process is None:
            return
        for number, seconds in ((signal.SIGTERM, 0.2), (signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            if self._process.poll() is None:
                self._process.send_signal(number)
                try:
                    self._process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
        self._process = None

    @abstractmethod
    def generate(self, prompts: Prompts, tokens: int) -> list[Times]:
        """Exactly `tokens` greedy tokens for each prompt, all asked at once. Raises PeerError."""

    @abstractmethod
    def _launch(self, log: Any) -> subprocess.Popen[bytes]: ...

    @abstractmethod
    def _wait_ready(self, deadline: float) -> None: ...

    def _died(self) -> PeerError:
        assert self._process is not None
        return PeerError(f"{self.name} ended with code {self._process.wait()}: {_last_line(self._log)}")


@dataclass(frozen=True)
class Api:
    """How to ask an HTTP server for a stream of tokens, and where its last event gives their number."""

    path: str
    body: Callable[[list[int], int], dict[str, Any]]
    count: Callable[[dict[str, Any]], Any]


ENGINE = Api(
    "/generate_stream",
    lambda ids, tokens: {
        "inputs": ids,
        "parameters": {"max_new_tokens": tokens, "do_sample": False, "ignore_eos": True, "add_special_tokens": False},
    },
    lambda last: last.get("token", {}).get("count_output_tokens"),
)
LLAMA = Api(
    "/completion",
    # top_k 1 is greedy too, and spares llama.cpp the sort of the best 40 ids.
    lambda ids, tokens: {
        "prompt": ids,
        "n_predict": tokens,
        "temperature": 0,
        "top_k": 1,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
    },
    lambda last: last.get("tokens_predicted"),
)


class HttpPeer(Peer):
    """A server that streams server-sent events. `command` makes its command line for a port."""

    def __init__(
        self, name: str, api: Api, command: Callable[[int], list[str]], environment: dict[str, str], log: Path
    ) -> None:
        super().__init__(name, environment, log)
        self._api = api
        self._command = command
        self._url = ""

    def generate(self, prompts: Prompts, tokens: int) -> list[Times]:
        return asyncio.run(self._all(prompts, tokens))

    def _launch(self, log: Any) -> subprocess.Popen[bytes]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        return subprocess.Popen(self._command(port), env=self._environment, stdout=log, stderr=log, process_group=0)

    def _wait_ready(self, deadline: float) -> None:
        assert self._process is not None
        while time.perf_counter() < deadline:
            if self._process.poll() is not None:
                raise self._died()
            try:
                with urllib.request.urlopen(self._url + "/health", timeout=LIMIT):
                    return
            except (urllib.error.URLError, OSError):  # not listening yet, or 503 while it loads
                time.sleep(0.01)
        raise PeerError(f"{self.name} is not ready after {LIMIT:.0f} s")

    async def _all(self, prompts: Prompts, tokens: int) -> list[Times]:
        bodies = [json.dumps(self._api.body(ids, tokens)).encode() for ids in prompts]
        timeout, connector = aiohttp.ClientTimeout(total=LIMIT), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, headers={"Content-Type": "application/json"}
        ) as session:
            start = time.perf_counter()
            answers = await asyncio.gather(*(self._one(session, body, start) for body in bodies))
        wrong = next((answer for answer in answers if answer.tokens != tokens), None)
        if wrong:
            raise PeerError(f"{self.name} made {wrong.tokens} tokens instead of {tokens}")
        return answers

    async def _one(self, session: aiohttp.ClientSession, body: bytes, start: float) -> Times:
        events, first = EventCounter(), 0.0
        try:
            async with session.post(self._url + self._api.path, data=body) as response:
                if response.status != 200:
                    raise PeerError(f"{self.name}: HTTP {response.status}: {(await response.text())[:200]}")
                async for chunk in response.content.iter_any():
                    if events.feed(chunk) and not first:
                        first = time.perf_counter() - start
        except (aiohttp.ClientError, TimeoutError) as error:
            raise PeerError(f"{self.name}: {type(error).__name__}: {error}") from error
        last = time.perf_counter() - start
        return Times(first, last, int(self._api.count(decode(events.last)) or 0))


class TransformersPeer(Peer):
    """`generate` of transformers in a child process, all prompts as one batch."""

    PROGRAM: ClassVar = [sys.executable, "-m", "tools.bench.transformers_child"]

    def __init__(self, folder: Path, dtype: str, threads: int, environment: dict[str, str], log: Path) -> None:
        super().__init__(f"transformers {dtype}", environment, log)
        self._arguments = [str(folder), dtype, str(threads)]

    def generate(self, prompts: Prompts, tokens: int) -> list[Times]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._line(time.perf_counter() + LIMIT))
        if answer["tokens"] != tokens:
            raise PeerError(f"{self.name} made {answer['tokens']} tokens instead of {tokens}")
        return [Times(answer["first"], answer["last"], tokens)] * len(prompts)

    def _launch(self, log: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.PROGRAM, "serve", *self._arguments],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,
        )

    def _wait_ready(self, deadline: float) -> None:
        self._line(deadline)

    def _line(self, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select([self._process.stdout], [], [], max(0.0, deadline - time.perf_counter()))[0]:
            raise PeerError(f"{self.name} does not answer")
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        return line


def engine(model: Path, threads: int, data_type: str, environment: dict[str, str], log: Path) -> HttpPeer:
    """This repository's server; its prefix cache is off."""
    command = [sys.executable, "-m", "lightllm_mp", "serve", "--model-dir", str(model), "--threads", str(threads)]
    command += ["--data-type", data_type, "--disable-prompt-cache"]
    return HttpPeer("engine", ENGINE, lambda port: [*command, "--port", str(port)], environment, log)


def llama(
    server: Path, model: Path, threads: int, slots: int, context: int, more: Sequence[str], log: Path
) -> HttpPeer:
    """llama.cpp's own server. All slots share one KV memory of `context` tokens; its prompt caches are off. `more`:
    flags that overrule these."""
    command = [str(server), "--model", str(model), "--threads", str(threads), "--parallel", str(slots)]
    command += ["--ctx-size", str(context), "--kv-unified", "--no-cache-prompt", "--cache-ram", "0", "--offline"]
    command += more
    return HttpPeer("llama.cpp", LLAMA, lambda port: [*command, "--port", str(port)], {}, log)


def llama_facts(server: Path) -> tuple[str, str]:
    """(version, instruction sets) of a llama-server. Raises PeerError."""
    try:
        version = _output([str(server), "--version"])
        # It prints its build before it looks for the model.
        start = _output([str(server), "--log-verbosity", "4", "--offline", "--model", "/nonexistent"])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{server} does not run: {error}") from error
    named, used = re.search(r"version: (.+)", version), re.search(r"system_info: .*\| CPU : (.+)", start)
    if named is None or used is None:
        raise PeerError(f"{server} is not a llama-server that this tool knows")
    return named[1].strip(), ", ".join(re.findall(r"(\w+) = 1", used[1]))


def _output(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
    return done.stdout.decode("utf-8", "replace")


def convert(model: Path, folder: Path, log: Path) -> None:
    """The model's weights, made dense, into `folder`. Raises PeerError."""
    command = [*TransformersPeer.PROGRAM, "convert", str(model), str(folder)]
    with log.open("ab") as file:
        if subprocess.run(command, stdout=file, stderr=file, check=False).returncode:
            raise PeerError(f"the weights cannot be converted for transformers: {_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
