"""The routes, and the aiohttp application made of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler

from lightllm_mp.actors.frontend import Frontend
from lightllm_mp.actors.http.access import observe, sign
from lightllm_mp.actors.http.auth import guard
from lightllm_mp.actors.http.context import Context, Stats
from lightllm_mp.actors.http.exposition import Exposition
from lightllm_mp.actors.http.failures import failures
from lightllm_mp.actors.http.generate import Generate
from lightllm_mp.actors.http.metrics import Meter
from lightllm_mp.actors.http.status import Status
from lightllm_mp.config import HttpConfig, ModelConfig


@dataclass(frozen=True)
class Route:
    methods: tuple[str, ...]
    paths: tuple[str, ...]
    handler: Handler
    access: Literal["public", "user"] = "user"
    """public: served without a key."""
    quiet: bool = False
    """Not in the access log."""


LOOK = ("GET", "HEAD")


def routes(generate: Generate, status: Status, exposition: Exposition) -> tuple[Route, ...]:
    return (
        Route(("POST",), ("/generate",), generate.whole),
        Route(("POST",), ("/generate_stream",), generate.streamed),
        Route(("POST",), ("/",), generate.either),
        Route(("POST",), ("/get_score",), generate.score),
        Route(("GET", "POST"), ("/tokens",), generate.tokens),
        Route(LOOK, ("/health", "/healthz"), status.health, "public", quiet=True),
        Route((*LOOK, "POST"), ("/liveness",), status.liveness, "public", quiet=True),
        Route((*LOOK, "POST"), ("/readiness",), status.readiness, "public", quiet=True),
        Route(LOOK, ("/metrics",), exposition.handler, quiet=True),
        Route(LOOK, ("/token_load",), status.token_load),
        Route((*LOOK, "POST"), ("/get_server_info",), status.server_info),
    )


def create_app(
    frontend: Frontend,
    config: HttpConfig,
    *,
    model: ModelConfig,
    stats: Stats,
    keys: Collection[bytes] = (),
    public_metrics: bool = False,
) -> web.Application:
    """The HTTP API over `frontend`.

    `stats` returns every actor's numbers. `keys` are SHA-256 digests (auth.load_keys); with none, everybody may do
    everything. `public_metrics` serves /metrics without a key.
    """
    context = Context(frontend, config, model, stats, authenticated=bool(keys))
    meter = Meter()
    frontend.observer = meter
    exposition = Exposition(context, meter)
    table = routes(Generate(context), Status(context), exposition)
    public = {route.handler for route in table if route.access == "public"}
    if public_metrics:
        public.add(exposition.handler)
    quiet = {route.handler for route in table if route.quiet}
    app = web.Application(
        middlewares=[observe(meter, quiet, write_log=not config.disable_access_log), failures, guard(keys, public)]
    )
    app.on_response_prepare.append(sign)
    for route in table:
        for path in route.paths:
            for method in route.methods:
                app.router.add_route(method, path, route.handler)
    return app
