"""State that the HTTP handlers share, and the keys of what a request carries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from lightllm_mp.actors.front.live_request import LiveRequest, Relay
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.http.image_inputs import ImageInputs
from lightllm_mp.actors.http.sockets.address_limit import client_address
from lightllm_mp.config import HttpConfig, ModelConfig

Stats = Callable[[], Mapping[str, Mapping[str, float]]]
"""The numbers of all actors: {actor: {name: value}}."""

LABEL: Any
LIVE: Any
TENANT: Any
FAILURE: Any
DEADLINE: Any
RELAYED: Any
if hasattr(web, "RequestKey"):  # aiohttp >= 3.14
    LABEL = web.RequestKey("label", str)
    LIVE = web.RequestKey("live", LiveRequest)
    TENANT = web.RequestKey("tenant", bytes)
    FAILURE = web.RequestKey("failure", str)
    DEADLINE = web.RequestKey("deadline", float)
    RELAYED = web.RequestKey("relayed", object)
else:
    LABEL, LIVE, TENANT, FAILURE, DEADLINE, RELAYED = "label", "live", "tenant", "failure", "deadline", "relayed"
"""Keys of a request's label, its LiveRequest, the digest of its API key, its error's code, its deadline (monotonic
seconds), and its RelayedAnswer (relayed_answer.py) if a front of several engines sent it."""


def tenant(request: web.Request) -> bytes:
    """The digest of the request's API key; empty without keys."""
    found: bytes = request.get(TENANT, b"")
    return found


def relay_of(request: web.Request) -> Relay | None:
    """Where the record of the request goes, beside the journal."""
    answer = request.get(RELAYED)
    return None if answer is None else answer.record


def payer(request: web.Request) -> bytes:
    """Whom memory, connections and look-ups are charged to: the tenant; without keys the client's address (see
    `client_address`)."""
    if key := tenant(request):
        return key
    try:
        return client_address(request.remote or "").encode()
    except ValueError:  # a Unix socket has none
        return b""


def is_anthropic(request: web.Request) -> bool:
    """Its client speaks Anthropic's API."""
    return is_anthropic_path(request.path)


def is_anthropic_path(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def unix_time() -> int:
    """Seconds since 1970, for clients."""
    return int(time.time())


@dataclass(frozen=True)
class Context:
    frontend: ResumableTable
    config: HttpConfig
    model: ModelConfig
    stats: Stats
    media: ImageInputs
    authenticated: bool
    """Clients need a key."""
    started: int = field(default_factory=unix_time)
    """Seconds since 1970."""

    @property
    def model_name(self) -> str:
        facts = self.frontend.facts
        return (facts.model_name if facts else "") or self.model.model_name or ""
