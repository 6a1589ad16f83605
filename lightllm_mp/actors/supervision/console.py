"""What the operator sees of a start: stages that last, a progress bar for the weights, one block when it serves."""

from __future__ import annotations

import json
import logging
import sys
import time

from lightllm_mp.config import HttpConfig
from lightllm_mp.facts import EngineLimits, Facts
from lightllm_mp.machine import format_bytes
from lightllm_mp.messages import Loading

log = logging.getLogger("lightllm_mp.supervisor")

BAR = 30
CLEAR = "\r\x1b[K"
"""Moves to the start of the terminal line and erases it."""


class Console:
    """Writes to standard error. On a terminal the bar and stages are redrawn in place; in a file each is one line. With
    `json` they are log records."""

    def __init__(self, *, json: bool = False) -> None:
        self._json = json
        self._terminal = sys.stderr.isatty() and not json
        self._started = time.monotonic()
        self._drawn = 0.0

    def progress(self, name: str, loading: Loading) -> None:
        if not loading.total:
            self._stage(f"{name}: {loading.what}")
            return
        finished = loading.done >= loading.total
        now = time.monotonic()
        if not self._terminal and not finished:
            return
        if not finished and now - self._drawn < 0.1:
            return
        self._drawn = now
        if self._json:
            log.info("%s loaded %s", name, loading.what, extra={"fields": {"bytes": loading.total}})
            return
        share = loading.done / max(loading.total, 1)
        filled = int(BAR * share)
        bar = "#" * filled + "." * (BAR - filled)
        text = f"{name}: loading {loading.what} [{bar}] {share:4.0%} of {format_bytes(loading.total)}"
        end = "\n" if finished or not self._terminal else ""
        print((CLEAR if self._terminal else "") + text, end=end, file=sys.stderr, flush=True)

    def _stage(self, text: str) -> None:
        if self._json:
            log.info("%s", text)
        elif self._terminal:
            print(f"{CLEAR}{text} ...", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def serving(self, url: str, facts: Facts, http: HttpConfig, processes: int, *, keys: bool) -> None:
        seconds = time.monotonic() - self._started
        memory = f"{format_bytes(facts.weight_bytes)} weights, {format_bytes(facts.kv_bytes)} KV"
        memory += f", {format_bytes(facts.state_bytes)} states" if facts.state_bytes else ""
        lines = (
            ("url", url),
            ("model", f"{facts.model_name} ({facts.dtype} on {facts.device}, {memory})"),
            ("context", f"{facts.engine.max_context:,} tokens"),
            ("KV tokens", described_tokens(facts.engine)),
            ("processes", f"{processes}, ready after {seconds:.1f} s"),
            ("access", "API key required" if keys else f"open to everybody who reaches {http.host}"),
        )
        if self._json:
            log.info("serving", extra={"fields": {name.replace(" ", "_").lower(): value for name, value in lines}})
            return
        print((CLEAR if self._terminal else "") + "\nlightllm-mp is serving", file=sys.stderr)
        for name, value in lines:
            print(f"  {name:<10} {value}", file=sys.stderr)
        print(f"  try        {example(url, facts)}", file=sys.stderr)
        if not http.no_ui and facts.has_tokenizer and facts.engine.task == "generate":
            print(f"\nOpen {url}/ in a browser, or chat here: lightllm-mp chat{elsewhere(url)}", file=sys.stderr)
        print(file=sys.stderr, flush=True)


def described_tokens(limits: EngineLimits) -> str:
    near = f", and {limits.window_tokens:,} in layers with a sliding window" if limits.window_tokens else ""
    return f"{limits.kv_tokens:,}{near}"


def elsewhere(url: str) -> str:
    """The flag with which `lightllm-mp chat` finds a server that is not at the default address."""
    usual = HttpConfig()
    return "" if url == f"http://{usual.host}:{usual.port}" else f" --url {url}"


def example(url: str, facts: Facts) -> str:
    """A shell command that this model answers."""
    prompt: object = "What is AI?" if facts.has_tokenizer else [1, 2, 3]
    score = "get_score", "chat" if facts.has_tokenizer else "ids"
    path, field = {"embed": ("v1/embeddings", "input"), "score": score}.get(facts.engine.task, ("generate", "inputs"))
    return f"curl {url}/{path} -d '{json.dumps({field: prompt})}'"
