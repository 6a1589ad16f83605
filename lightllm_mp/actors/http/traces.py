"""OpenTelemetry: a span for each request, with a child for each stage and the actor that carried it out.

Spans are made when the request has ended, of times that the front has then, so nothing is added while tokens are
produced. They wait in a bounded queue for a thread of OpenTelemetry's, which sends them by OTLP over HTTP; while the
collector is away, they are lost. Attributes are those of the semantic conventions for generative AI, and latencies have
vLLM's names. No text of a prompt or an answer is among them.

OpenTelemetry is imported only where the server has an endpoint.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.http.context import FAILURE, LABEL, LIVE
from lightllm_mp.actors.http.live_group import LiveGroup

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger("lightllm_mp.traces")

FLUSH = 2.0
"""Seconds that the end of the server waits for the last spans to be sent."""
REPAIRS = 64
"""So many repairs are remembered for requests that ran through them."""
PARENT = ("traceparent", "tracestate")
"""Headers of the W3C trace context."""


class Stage(NamedTuple):
    name: str
    actor: str
    begin: float
    end: float
    """Monotonic, seconds."""


class Repair(NamedTuple):
    began: float
    ended: float
    """Monotonic, seconds: between them the engine stood still."""
    actors: tuple[str, ...]
    """Those that were replaced."""


class RepairTimes:
    """When the engine was repaired, as the front sees it."""

    def __init__(self) -> None:
        self._stopped = 0.0
        self._repairs = deque[Repair](maxlen=REPAIRS)

    def stopped(self) -> None:
        self._stopped = monotonic()

    def began(self, restarted: Sequence[str]) -> None:
        """An epoch begins, with these actors new."""
        if self._stopped and restarted:
            self._repairs.append(Repair(self._stopped, monotonic(), tuple(restarted)))
        self._stopped = 0.0

    def within(self, begin: float, end: float) -> Iterator[Repair]:
        return (repair for repair in self._repairs if begin <= repair.ended and repair.began <= end)


class Traces:
    """Makes spans of requests that have ended. Call `close` at the end."""

    def __init__(self, endpoint: str, repairs: RepairTimes) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it logs a line for each span that is lost
        self._repairs = repairs
        self._extract = TraceContextTextMapPropagator().extract
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({} if named else {"service.name": "lightllm-mp"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(_watched(OTLPSpanExporter(endpoint=endpoint))))
        self._tracer = self._provider.get_tracer("lightllm_mp")

    def record(self, request: web.Request, model: str, status: int, begin: float, end: float) -> None:
        """`begin`: when the headers were complete; `end`: when the answer had been sent (monotonic, seconds)."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        epoch = time.time_ns() - round(monotonic() * 1e9)
        live: LiveRequest | LiveGroup | None = request.get(LIVE)
        span = self._tracer.start_span(
            _name(request, live, model),
            self._extract({name: ",".join(request.headers.getall(name)) for name in PARENT if name in request.headers}),
            SpanKind.SERVER,
            start_time=_at(epoch, begin),
        )
        if span.is_recording():
            span.set_attributes(_http_attributes(request, status))
            if live is not None:
                span.set_attributes(_attributes(request, live, model, end))
                self._add_events(span, live, begin, end, epoch)
            _set_error(span, request, live, status)
            parent = set_span_in_context(span)
            for stage in _stages(live, begin, end) if live is not None else ():
                child = self._tracer.start_span(
                    stage.name,
                    parent,
                    attributes={"lightllm_mp.actor": stage.actor},
                    start_time=_at(epoch, stage.begin),
                )
                child.end(_at(epoch, stage.end))
        span.end(_at(epoch, end))

    def close(self) -> None:
        """Send what waits, for at most FLUSH seconds. The threads are daemons and end with the process."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH)

    def _add_events(self, span: Span, live: LiveRequest | LiveGroup, begin: float, end: float, epoch: int) -> None:
        if live.started < begin:
            span.add_event("resumed", {"lightllm_mp.first_request": live.label}, _at(epoch, begin))
        for repair in self._repairs.within(begin, end):
            details: dict[str, Any] = {
                "lightllm_mp.restarted": repair.actors,
                "lightllm_mp.pause": repair.ended - repair.began,
            }
            span.add_event("repaired", details, _at(epoch, min(repair.ended, end)))


def _watched(exporter: Any) -> Any:
    """The exporter; the log tells once when the collector is away, and once when it is back."""
    from opentelemetry.sdk.trace.export import SpanExportResult

    export, away = exporter.export, False

    def watched(spans: Sequence[Any]) -> Any:
        nonlocal away
        result = export(spans)
        if away != (result is not SpanExportResult.SUCCESS):
            away = not away
            log.warning("the collector of traces %s", "does not take them: they are lost" if away else "is back")
        return result

    exporter.export = watched
    return exporter


def _stages(live: LiveRequest | LiveGroup, begin: float, end: float) -> Iterator[Stage]:
    """The stages of a request that have begun, in order. Of an answer that is resumed, those that ended before are left
    out, and one that had begun starts with this request."""
    last = max(answer.last for answer in live.answers)
    came, computed = live.came, live.detokenized or last
    ready = max(live.started, came.tokenized, came.embedded)
    through, planned = max(ready, came.compiled), came.planned or live.scheduled
    found = [
        Stage("receive", "http", begin, live.started),
        Stage("tokenize", "tokenizer", live.started, came.tokenized),
        Stage("encode_images", "visual", live.started, came.embedded),
        Stage("compile_guide", "guide", ready, came.compiled),
        Stage("queue", "router", through, planned or live.first or end),
    ]
    if planned:
        found.append(Stage("prefill", "worker", planned, min(live.first, computed) or end))
    if live.first:
        found += [
            Stage("decode", "worker", live.first, computed),
            Stage("detokenize", "detokenizer", computed, last),
            Stage("deliver", "http", last, end),
        ]
    for stage in found:
        if stage.end > max(stage.begin, begin):
            yield stage._replace(begin=max(stage.begin, begin))


def _name(request: web.Request, live: LiveRequest | LiveGroup | None, model: str) -> str:
    if live is not None:
        return f"{_operation(live)} {model}"
    return f"{request.method[:16]} {_route(request)}".rstrip()


def _operation(live: LiveRequest | LiveGroup) -> str:
    request = live.request
    if request.terms.task != "generate":
        return "embeddings" if request.terms.task == "embed" else "score"
    return "chat" if request.chat is not None else "text_completion"


def _route(request: web.Request) -> str:
    """The route's pattern; empty if there is none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else ""


def _http_attributes(request: web.Request, status: int) -> dict[str, Any]:
    return {
        "http.request.method": request.method[:16],
        "http.route": _route(request),
        "http.response.status_code": status,
        "lightllm_mp.request_id": request[LABEL],
    }


def _attributes(request: web.Request, live: LiveRequest | LiveGroup, model: str, end: float) -> Mapping[str, Any]:
    first, terms = live.answers[0], live.request.terms
    sampling = terms.sampling
    found = {
        "gen_ai.operation.name": _operation(live),
        "gen_ai.provider.name": "lightllm_mp",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": request[LABEL],
        "gen_ai.usage.input_tokens": first.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": first.cached_tokens,
        "gen_ai.usage.output_tokens": sum(len(answer.ids) for answer in live.answers),
        "gen_ai.response.finish_reasons": tuple(answer.finish or "error" for answer in live.answers[:8]),
        "gen_ai.latency.e2e": end - live.started,
    }
    if terms.task == "generate":
        found |= {
            "gen_ai.request.choice.count": terms.n,
            "gen_ai.request.max_tokens": sampling.max_new_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
        }
    if live.scheduled:
        found["gen_ai.latency.time_in_queue"] = live.scheduled - live.started
    if live.first:
        last = max(answer.last for answer in live.answers)
        found["gen_ai.latency.time_to_first_token"] = live.first - live.started
        found["gen_ai.latency.time_in_model_decode"] = last - live.first
    if live.scheduled and live.first:
        found["gen_ai.latency.time_in_model_prefill"] = live.first - live.scheduled
    return found


def _set_error(span: Span, request: web.Request, live: LiveRequest | LiveGroup | None, status: int) -> None:
    """`error.type` is our code of the error. The status is an error where it is the server's."""
    from opentelemetry.trace import StatusCode

    error = live.error if live is not None else None
    code = error.code if error is not None else request.get(FAILURE)
    if code is None and status < 400:
        return
    span.set_attribute("error.type", code or str(status))
    if status >= 500 or (error is not None and error.status >= 500):
        span.set_status(StatusCode.ERROR)


def _at(epoch: int, moment: float) -> int:
    """A monotonic time as nanoseconds since 1970."""
    return epoch + round(moment * 1e9)
