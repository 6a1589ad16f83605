"""GET /metrics: the metrics of the front and of all actors in Prometheus' text format.

Metrics have LightLLM's names and those that other engines' dashboards use, all with the prefix `lightllm_` and the
label `model_name`. A number that no actor reports is not exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from lightllm_mp.actors.http.context import Context
from lightllm_mp.actors.http.metrics import Histogram, HttpMetrics
from lightllm_mp.actors.http.sockets.address_limit import ConnectionCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Numbers = Mapping[str, float]

GAUGES = {
    "running": ("num_requests_running", "num_running_reqs", "batch_current_size"),
    "waiting": ("num_requests_waiting", "queue_size"),
    "paused": ("batch_pause_size",),
    "kv_used": ("batch_current_max_tokens", "kv_used_tokens"),
    "kv_cached": ("cache_length",),
    "kv_total": ("kv_capacity_tokens",),
    "expected_tokens": ("expected_tokens",),
    "kv_window_used": ("kv_window_used_tokens",),
    "kv_window_total": ("kv_window_capacity_tokens",),
    "state_checkpoints": ("state_checkpoints",),
    "state_checkpoints_used": ("state_checkpoints_used",),
}
"""Key on the router's stats page -> metric names."""
COUNTERS = {
    "prefix_queries_tokens": ("prefix_cache_queries",),
    "prefix_hit_tokens": ("prefix_cache_hits",),
    "preemptions": ("num_preemptions",),
    "steps": ("batch_inference_count",),
    "admitted": ("admitted_sequences",),
    "evicted_tokens": ("kv_evicted_tokens",),
    "invalid_logits": ("invalid_logits",),
    "draft_tokens": ("spec_decode_num_draft_tokens",),
    "accepted_tokens": ("spec_decode_num_accepted_tokens",),
}
RATIOS = {
    "kv_cache_usage_perc": ("kv_used", "kv_total"),
    "cache_ratio": ("kv_cached", "kv_total"),
    "cache_hit_rate": ("prefix_hit_tokens", "prefix_queries_tokens"),
    "spec_decode_draft_acceptance_rate": ("accepted_tokens", "draft_tokens"),
}
IMAGE_GAUGES = {
    "items": "image_cache_items",
    "items_total": "image_cache_capacity_items",
    "bytes": "image_cache_used_bytes",
    "bytes_total": "image_cache_capacity_bytes",
    "leased": "image_cache_leased_items",
    "waiting": "image_requests_waiting",
    "working": "images_in_work",
    "towers": "image_encoders",
}
IMAGE_COUNTERS = {
    "hits": "image_cache_hits",
    "joins": "image_cache_joins",
    "misses": "image_cache_misses",
    "evictions": "image_cache_evictions",
    "refusals": "image_refusals",
    "failures": "image_failures",
    "encoded": "images_encoded",
    "batches": "image_batches",
    "decoded": "images_decoded",
    "decode_seconds": "image_decode_seconds",
    "encode_seconds": "image_encode_seconds",
    "answered": "image_requests_embedded",
    "wait_seconds": "image_wait_seconds",
}
"""Key on the visual actor's stats page -> metric name; encoded / batches is the mean batch size."""
WORKER_COUNTERS = (
    ("steps", "worker_steps", "Steps computed"),
    ("step_seconds", "step_seconds", "Time spent in steps"),
)
"""Key on a worker's stats page, metric name, help text."""
LANE_GAUGES = {"backlog_bytes": "queue_bytes", "max_backlog": "queue_max_bytes", "depth": "queue_depth"}
GUIDE_COUNTERS = (
    ("masks", "constraint_masks", "Masks computed for tokens of constrained answers"),
    ("refused", "constraints_refused", "Constraints that could not be compiled"),
)
LANE_COUNTERS = {"puts": "queue_messages", "full_events": "queue_full_events"}


class PrometheusPage(Collector):
    """Collects at scrape time from stats pages in shared memory; sends no message to any process."""

    def __init__(self, context: Context, meter: HttpMetrics, connections: ConnectionCounts) -> None:
        self._context, self._meter, self._connections = context, meter, connections
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        self._counted: dict[tuple[str, ...], tuple[float, float]] = {}

    async def handler(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE})

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._context.stats()
        return chain(
            self._requests(),
            self._histograms(),
            self._router(stats.get("router", {})),
            self._visual(stats.get("visual", {})),
            self._guide(stats.get("guide", {})),
            self._workers({name: page for name, page in stats.items() if name.startswith("worker")}),
            self._actors(stats.get("supervisor", {})),
            self._lanes(stats.get("lanes", {})),
        )

    def _requests(self) -> Iterator[Metric]:
        meter, frontend = self._meter, self._context.frontend
        yield self._counter("request_count", "Requests accepted", [((), meter.requests)])
        yield self._counter("request_success", "Requests finished", _rows(meter.success), "finished_reason")
        yield self._counter("request_failure", "Requests that failed", _rows(meter.failure), "reason")
        yield self._counter("admission_rejections", "Requests refused on arrival", _rows(meter.rejections), "reason")
        yield self._counter("http_responses", "HTTP responses", _rows(meter.responses), "status")
        yield self._gauge("connections", "Open client connections", [((), self._connections.open)])
        refused = self._connections.refused
        yield self._counter("connections_refused", "Connections above the limit of their address", [((), refused)])
        yield self._counter("prompt_tokens", "Prompt tokens of started requests", [((), meter.prompt_tokens)])
        yield self._counter("prompt_tokens_cached", "Of these from the prefix cache", [((), meter.cached_tokens)])
        yield self._counter("generation_tokens", "Tokens produced", [((), meter.generation_tokens)])
        yield self._gauge("live_requests", "Requests accepted and not yet answered", [((), frontend.live)])
        yield self._counter("requests_resumed", "Clients that came back", [((), meter.resumptions)])
        yield self._gauge("retained_requests", "Requests kept for clients to come back", [((), len(frontend.retained))])
        yield self._gauge("journal_bytes", "Records of requests in shared memory", [((), frontend.journal.used)])
        yield self._counter(
            "requests_unrecorded", "Requests that the journal had no room for", [((), frontend.journal.incomplete)]
        )
        yield self._gauge("retry_after_seconds", "What a refused client is told", [((), frontend.limits.retry_after())])

    def _histograms(self) -> Iterator[Metric]:
        meter = self._meter
        for names, text, histogram in (
            (("time_to_first_token_seconds", "request_first_token_duration"), "Time to first token", meter.first),
            (("request_queue_time_seconds", "request_queue_duration"), "Accepted to prefill", meter.queue),
            (("request_prefill_time_seconds",), "Prefill to first token", meter.prefill),
            (("inter_token_latency_seconds",), "Gap between two tokens of an answer", meter.gap),
            (("e2e_request_latency_seconds", "request_inference_duration"), "Accepted to given back", meter.duration),
            (("request_decode_time_seconds",), "First to last token", meter.decode),
            (("request_mean_time_per_token_duration",), "Time per produced token", meter.per_token),
            (("request_duration",), "HTTP request to response", meter.response),
            (("request_input_length",), "Prompt tokens", meter.input_length),
            (("request_generated_tokens",), "Produced tokens", meter.output_length),
            (("request_max_new_tokens",), "Tokens asked for", meter.max_new_tokens),
        ):
            yield from (self._histogram(name, text, histogram) for name in names)

    def _router(self, numbers: Numbers) -> Iterator[Metric]:
        for key, names in GAUGES.items():
            if key in numbers:
                yield from (self._gauge(name, f"Router: {key}", [((), numbers[key])]) for name in names)
        for key, names in COUNTERS.items():
            if key in numbers:
                yield from (
                    self._counter(name, f"Router: {key}", self._grow(name, [((), numbers[key])])) for name in names
                )
        for name, (part, whole) in RATIOS.items():
            if part in numbers and whole in numbers:
                share = numbers[part] / numbers[whole] if numbers[whole] > 0 else 0.0
                yield self._gauge(name, f"{part} / {whole}", [((), share)])

    def _visual(self, numbers: Numbers) -> Iterator[Metric]:
        for key, name in IMAGE_GAUGES.items():
            if key in numbers:
                yield self._gauge(name, f"Visual: {key}", [((), numbers[key])])
        for key, name in IMAGE_COUNTERS.items():
            if key in numbers:
                yield self._counter(name, f"Visual: {key}", self._grow(name, [((), numbers[key])]))
        images = self._context.frontend.images
        if images.takes_images:
            yield self._gauge("image_file_bytes", "Image files of live requests", [((), images.file_bytes)])
            yield self._histogram("image_fetch_time_seconds", "Fetching an image's URL", self._meter.fetch)

    def _guide(self, numbers: Numbers) -> Iterator[Metric]:
        if numbers:
            yield self._gauge("constrained_answers", "Answers with a constraint", [((), numbers["open"])])
            for key, name, text in GUIDE_COUNTERS:
                yield self._counter(name, text, self._grow(name, [((), numbers[key])]))

    def _workers(self, pages: Mapping[str, Numbers]) -> Iterator[Metric]:
        for key, name, text in WORKER_COUNTERS:
            if rows := [((worker,), page[key]) for worker, page in pages.items() if key in page]:
                yield self._counter(name, text, self._grow(name, rows), "worker")
        if rows := [((worker,), page["last_step"]) for worker, page in pages.items() if "last_step" in page]:
            yield self._gauge("step_last_seconds", "Time that the newest step took", rows, "worker")

    def _actors(self, numbers: Numbers) -> Iterator[Metric]:
        up = [((key[3:],), value) for key, value in numbers.items() if key.startswith("up.")]
        restarts = [((key[9:],), value) for key, value in numbers.items() if key.startswith("restarts.")]
        if up:
            yield self._gauge("actor_up", "1: the process runs", up, "actor")
        if restarts:
            rows = self._grow("actor_restarts", restarts)
            yield self._counter("actor_restarts", "Times the process was replaced", rows, "actor")

    def _lanes(self, numbers: Numbers) -> Iterator[Metric]:
        for field, name in LANE_GAUGES.items():
            if rows := _lane_rows(numbers, field):
                yield self._gauge(name, f"Lane: {field}", rows, "from", "to")
        for field, name in LANE_COUNTERS.items():
            if rows := _lane_rows(numbers, field):
                yield self._counter(name, f"Lane: {field}", self._grow(name, rows), "from", "to")

    def _grow(self, name: str, rows: Rows) -> Rows:
        """Keep counters monotonic: when a replaced process counts from 0 again, add its predecessor's count."""
        grown = []
        for labels, value in rows:
            key = (name, *labels)
            base, last = self._counted.get(key, (0.0, 0.0))
            base += last if value < last else 0.0
            self._counted[key] = base, value
            grown.append((labels, base + value))
        return grown

    def _gauge(self, name: str, text: str, rows: Rows, *labels: str) -> Metric:
        return self._fill(GaugeMetricFamily(f"lightllm_{name}", text, labels=["model_name", *labels]), rows)

    def _counter(self, name: str, text: str, rows: Rows, *labels: str) -> Metric:
        return self._fill(CounterMetricFamily(f"lightllm_{name}", text, labels=["model_name", *labels]), rows)

    def _fill(self, family: GaugeMetricFamily | CounterMetricFamily, rows: Rows) -> Metric:
        for labels, value in rows:
            family.add_metric([self._context.model_name, *labels], value)
        return family

    def _histogram(self, name: str, text: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(f"lightllm_{name}", text, labels=["model_name"])
        family.add_metric([self._context.model_name], buckets=histogram.buckets(), sum_value=histogram.sum)
        return family


Rows = Sequence[tuple[Sequence[str], float]]
"""(values of the labels after model_name, value)"""


def _rows(counts: Mapping[str, int] | Mapping[int, int]) -> Rows:
    return [((str(label),), value) for label, value in counts.items()]


def _lane_rows(numbers: Numbers, field: str) -> Rows:
    """Lanes are named `from->to.field`."""
    lanes = ((key.rpartition("."), value) for key, value in numbers.items())
    return [(tuple(lane.split("->")), value) for (lane, _, name), value in lanes if name == field and "->" in lane]
