"""The route table and the aiohttp application built from it."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.http.access_log import observe, sign
from lightllm_mp.actors.http.arrival import Arrivals
from lightllm_mp.actors.http.context import Context, Stats
from lightllm_mp.actors.http.error_responses import failures
from lightllm_mp.actors.http.image_inputs import ImageInputs
from lightllm_mp.actors.http.live.feed import LiveFeed
from lightllm_mp.actors.http.live.history import LiveHistory
from lightllm_mp.actors.http.metrics import HttpMetrics
from lightllm_mp.actors.http.openapi.document import OpenApiPage
from lightllm_mp.actors.http.relayed_answer import relays
from lightllm_mp.actors.http.route import Route
from lightllm_mp.actors.http.routes.anthropic import AnthropicRoutes
from lightllm_mp.actors.http.routes.embeddings import EmbeddingRoutes
from lightllm_mp.actors.http.routes.generate import GenerateRoutes
from lightllm_mp.actors.http.routes.live import LiveRoutes
from lightllm_mp.actors.http.routes.openai import OpenAIRoutes
from lightllm_mp.actors.http.routes.page import PageRoutes, page_routes
from lightllm_mp.actors.http.routes.prometheus import PrometheusPage
from lightllm_mp.actors.http.routes.relay import RelayRoutes, relay_routes
from lightllm_mp.actors.http.routes.responses import ResponseRoutes
from lightllm_mp.actors.http.routes.resume import ResumeRoutes
from lightllm_mp.actors.http.routes.status import StatusRoutes
from lightllm_mp.actors.http.routes.tokenize import TokenizeRoutes
from lightllm_mp.actors.http.security.auth import Access, guard
from lightllm_mp.actors.http.security.cors import preflights
from lightllm_mp.actors.http.security.keys import ApiKeys
from lightllm_mp.actors.http.security.local_hosts import local_only
from lightllm_mp.actors.http.security.origins import Origins
from lightllm_mp.actors.http.sockets.address_limit import CONNECTIONS, connection_counts
from lightllm_mp.actors.http.traces import Traces
from lightllm_mp.config import HttpConfig, ModelConfig, MultimodalConfig

LOOK = ("GET", "HEAD")
ACCESS = web.AppKey("access", dict[Handler, Access])
"""The application's map from handler to access."""


def routes(context: Context, exposition: PrometheusPage, feed: LiveFeed, openapi: OpenApiPage) -> tuple[Route, ...]:
    arrivals = Arrivals(context)
    generate, openai = GenerateRoutes(context, arrivals), OpenAIRoutes(context, arrivals)
    responses, anthropic = ResponseRoutes(context, arrivals), AnthropicRoutes(context, arrivals)
    pooled, tokenize = EmbeddingRoutes(context, arrivals), TokenizeRoutes(context, arrivals)
    resume, status, live = ResumeRoutes(context), StatusRoutes(context), LiveRoutes(feed)
    return (
        Route(("POST",), ("/generate",), generate.whole, "user"),
        Route(("POST",), ("/generate_stream",), generate.streamed, "user"),
        Route(("POST",), ("/",), generate.either, "user"),
        Route(("POST",), ("/get_score",), generate.score, "user"),
        Route(("POST",), ("/v1/embeddings",), pooled.embed, "user"),
        Route(("POST",), ("/v1/rerank", "/v2/rerank", "/rerank"), pooled.rerank, "user"),
        Route(("POST",), ("/v1/score", "/score"), pooled.score, "user"),
        Route(("GET", "POST"), ("/tokens",), generate.tokens, "user"),
        Route(("POST",), ("/v1/chat/completions",), openai.chat, "user"),
        Route(("POST",), ("/v1/completions",), openai.complete, "user"),
        Route(LOOK, ("/v1/models",), openai.models, "user"),
        Route(LOOK, ("/v1/models/{id:.+}",), openai.model, "user"),
        Route(("POST",), ("/v1/responses",), responses.create, "user"),
        Route(("GET",), ("/v1/responses/{id}",), responses.fetch, "user"),
        Route(("DELETE",), ("/v1/responses/{id}",), responses.delete, "user"),
        Route(("POST",), ("/v1/messages",), anthropic.messages, "user"),
        Route(("POST",), ("/v1/messages/count_tokens",), anthropic.count_tokens, "user"),
        Route(("POST",), ("/tokenize",), tokenize.tokenize, "user"),
        Route(("POST",), ("/detokenize",), tokenize.detokenize, "user"),
        Route(("GET",), ("/requests/{id}",), resume.fetch, "user"),
        Route(("DELETE",), ("/requests/{id}",), resume.discard, "user"),
        Route(LOOK, ("/health", "/healthz"), status.health, "public", quiet=True),
        Route((*LOOK, "POST"), ("/liveness",), status.liveness, "public", quiet=True),
        Route((*LOOK, "POST"), ("/readiness",), status.readiness, "public", quiet=True),
        Route(LOOK, ("/metrics",), exposition.handler, "user", quiet=True),
        Route(("GET",), ("/live/events",), live.events, "admin", quiet=True),
        Route(LOOK, ("/token_load",), status.token_load, "user"),
        Route((*LOOK, "POST"), ("/get_server_info",), status.server_info, "user"),
        Route((*LOOK, "POST"), ("/get_model_name",), status.model_name, "user"),
        Route(LOOK, ("/openapi.json",), openapi.handler, "user"),
    )


def create_app(
    frontend: ResumableTable,
    config: HttpConfig,
    *,
    model: ModelConfig,
    multimodal: MultimodalConfig | None = None,
    stats: Stats,
    keys: ApiKeys | None = None,
    public_metrics: bool = False,
    traces: Traces | None = None,
    feed: LiveFeed | None = None,
) -> web.Application:
    """The HTTP API over `frontend`.

    `stats` returns every actor's numbers. Without `keys` any client may call any route. `public_metrics` serves
    /metrics without a key. `feed`: what /live/events sends; the default one knows the front alone. `traces` gets every
    request that has ended. Raises ConfigError for an invalid origin.
    """
    meter = HttpMetrics()
    media = ImageInputs(multimodal or MultimodalConfig(), frontend.images, meter.fetch.add)
    context = Context(frontend, config, model, stats, media, authenticated=bool(keys))
    frontend.observer = meter
    connections = connection_counts(config)
    exposition = PrometheusPage(context, meter, connections)
    openapi = OpenApiPage()
    feed = feed or LiveFeed(frontend, lambda peer, inspect: False, LiveHistory(dict, dict))
    table = routes(context, exposition, feed, openapi)
    openapi.describe(table)
    if not config.no_ui:
        table += page_routes(PageRoutes())
    keys = ApiKeys() if keys is None else keys
    if keys.relays:
        table += relay_routes(RelayRoutes(context))
    access = {route.handler: route.access for route in table}
    if public_metrics:
        access[exposition.handler] = "public"
    quiet = {route.handler for route in table if route.quiet}
    origins = Origins(config.cors_allow_origin)

    def record(request: web.Request, status: int, begin: float, end: float) -> None:
        assert traces is not None
        traces.record(request, context.model_name, status, begin, end)

    write_log = not config.disable_access_log
    middlewares = [observe(meter, quiet, write_log=write_log, record=record if traces else None)]
    if keys.relays:
        middlewares.append(relays(keys.relays))
    middlewares.append(failures)
    if local := local_only(config, len(keys), origins):
        middlewares.append(local)
    middlewares += [preflights(origins)] if origins else []
    app = web.Application(middlewares=[*middlewares, guard(keys, access)])
    app[ACCESS], app[CONNECTIONS] = access, connections
    _add_signals(app, frontend, feed, origins)
    for route in table:
        for path in route.paths:
            for method in route.methods:
                app.router.add_route(method, path, route.handler)
    return app


def _add_signals(app: web.Application, frontend: ResumableTable, feed: LiveFeed, origins: Origins) -> None:
    """What happens before each response's headers, and at the end."""

    async def end_streams(app: web.Application) -> None:
        feed.close()

    async def part(request: web.Request, response: web.StreamResponse) -> None:
        if frontend.state.draining:
            response.headers["Connection"] = "close"
            response.force_close()

    app.on_shutdown.append(end_streams)
    app.on_response_prepare.extend([sign, part])
    if origins:
        app.on_response_prepare.append(origins.sign)
