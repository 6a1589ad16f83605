"""What the Grafana dashboard shows: rows of panels, and the queries of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HERE = 'model_name=~"$model",instance=~"$instance"'
Kind = Literal["timeseries", "stat", "gauge", "bargauge", "state-timeline"]


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    text: str = ""
    """An explanation, where the title is not enough."""
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    most: float | None = None
    """The largest value of the scale."""
    steps: tuple[tuple[str, float], ...] = ()
    """(colour, the least value that gets it)"""


def one(metric: str, **labels: str) -> str:
    """PromQL: a metric of the chosen servers."""
    more = "".join(f",{name}{value}" for name, value in labels.items())
    return f"lightllm_{metric}{{{HERE}{more}}}"


def rate(metric: str, by: str = "", **labels: str) -> str:
    """PromQL: how fast a counter grows, per second."""
    total = f"sum by ({by})" if by else "sum"
    return f"{total} (rate({one(metric + '_total', **labels)}[$__rate_interval]))"


def quantiles(metric: str) -> tuple[Query, ...]:
    buckets = f"sum by (le) (rate({one(metric + '_bucket')}[$__rate_interval]))"
    return tuple(Query(f"histogram_quantile({q}, {buckets})", f"p{100 * q:g}") for q in (0.5, 0.95, 0.99))


def mean(metric: str) -> Query:
    """The mean of a histogram's values."""
    summed, count = (f"sum (rate({one(f'{metric}_{part}')}[$__rate_interval]))" for part in ("sum", "count"))
    return Query(f"{summed} / {count}", "mean")


SHARE = (("green", 0.0), ("orange", 0.8), ("red", 0.95))
ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel(
            "Processes that run",
            (Query(f"min by (actor) ({one('actor_up')})", "{{actor}}"),),
            kind="stat",
            width=6,
            height=5,
            steps=(("red", 0.0), ("green", 1.0)),
        ),
        Panel("Running", (Query(f"sum ({one('num_requests_running')})"),), kind="stat", width=3, height=5),
        Panel("Waiting", (Query(f"sum ({one('num_requests_waiting')})"),), kind="stat", width=3, height=5),
        Panel("Tokens a second", (Query(rate("generation_tokens")),), kind="stat", width=3, height=5),
        Panel(
            "Time to first token",
            (quantiles("time_to_first_token_seconds")[1],),
            unit="s",
            kind="stat",
            width=3,
            height=5,
            text="95 % of the requests get it within this time.",
        ),
        Panel(
            "KV memory",
            (Query(f"max ({one('kv_cache_usage_perc')})"),),
            unit="percentunit",
            kind="gauge",
            width=3,
            height=5,
            most=1.0,
            steps=SHARE,
            text="Of running requests, in the fullest server. Cached prefixes do not count: they make room at once.",
        ),
        Panel(
            "Prompt tokens from the cache",
            (Query(f"{rate('prefix_cache_hits')} / {rate('prefix_cache_queries')}"),),
            unit="percentunit",
            kind="gauge",
            width=3,
            height=5,
            most=1.0,
        ),
    ),
    "Requests": (
        Panel(
            "Requests a second",
            (
                Query(rate("request_count"), "accepted"),
                Query(rate("request_success", "finished_reason"), "ended: {{finished_reason}}"),
            ),
            unit="reqps",
        ),
        Panel(
            "HTTP responses a second",
            (Query(rate("http_responses", "status"), "{{status}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Errors a second",
            (
                Query(rate("request_failure", "reason"), "failed: {{reason}}"),
                Query(rate("admission_rejections", "reason"), "refused: {{reason}}"),
                Query(rate("connections_refused"), "connections refused"),
            ),
            unit="reqps",
            text="client_gone: the client left before its answer ended.",
        ),
        Panel(
            "Live requests",
            (
                Query(f"sum ({one('live_requests')})", "accepted, not answered"),
                Query(f"sum ({one('num_requests_running')})", "sequences that run"),
                Query(f"sum ({one('num_requests_waiting')})", "sequences that wait"),
                Query(f"sum ({one('retained_requests')})", "kept for clients to come back"),
            ),
        ),
        Panel(
            "Connections",
            (
                Query(f"sum ({one('connections')})", "open"),
                Query(rate("requests_resumed"), "clients that came back, a second"),
            ),
        ),
        Panel(
            "What a refused client is told",
            (Query(f"max by (instance) ({one('retry_after_seconds')})", "{{instance}}"),),
            unit="s",
            text="Retry-After: when there should be room.",
        ),
    ),
    "Latency": (
        Panel("Time to first token", quantiles("time_to_first_token_seconds"), unit="s"),
        Panel("Between two tokens", quantiles("inter_token_latency_seconds"), unit="s"),
        Panel("Whole request", quantiles("e2e_request_latency_seconds"), unit="s"),
        Panel("Queue", quantiles("request_queue_time_seconds"), unit="s", text="Accepted to first step."),
        Panel("Prefill", quantiles("request_prefill_time_seconds"), unit="s", text="First step to first token."),
        Panel("Decode", quantiles("request_decode_time_seconds"), unit="s", text="First to last token."),
    ),
    "Tokens": (
        Panel(
            "Tokens a second",
            (
                Query(rate("generation_tokens"), "produced"),
                Query(f"{rate('prompt_tokens')} - {rate('prompt_tokens_cached')}", "of prompts, computed"),
                Query(rate("prompt_tokens_cached"), "of prompts, from the cache"),
            ),
        ),
        Panel("Length of prompts", (*quantiles("request_input_length"), mean("request_input_length"))),
        Panel("Length of answers", (*quantiles("request_generated_tokens"), mean("request_generated_tokens"))),
    ),
    "Scheduler and memory": (
        Panel(
            "KV tokens",
            (
                Query(f"sum ({one('kv_used_tokens')})", "of running requests"),
                Query(f"sum ({one('cache_length')})", "of cached prefixes"),
                Query(f"sum ({one('kv_capacity_tokens')})", "capacity"),
            ),
        ),
        Panel(
            "Prefix cache",
            (
                Query(f"{rate('prefix_cache_hits')} / {rate('prefix_cache_queries')}", "prompt tokens that were known"),
                Query(f"avg ({one('cache_ratio')})", "part of the KV memory"),
            ),
            unit="percentunit",
            most=1.0,
        ),
        Panel(
            "Sequences in a step",
            (
                Query(
                    f"({rate('generation_tokens')}) / ({rate('batch_inference_count')})",
                    "tokens produced in a step, mean",
                ),
                Query(f"sum ({one('batch_current_size')})", "now"),
            ),
            text="The batch: more of them make a token cheaper and a step longer.",
        ),
        Panel(
            "Time of a step",
            (
                Query(f"{rate('step_seconds', 'worker')} / {rate('worker_steps', 'worker')}", "mean, {{worker}}"),
                Query(f"max by (worker) ({one('step_last_seconds')})", "newest, {{worker}}"),
            ),
            unit="s",
        ),
        Panel(
            "Workers compute",
            (Query(rate("step_seconds", "worker"), "{{worker}}"),),
            unit="percentunit",
            most=1.0,
            text="Part of the time that a worker spends in steps.",
        ),
        Panel(
            "Preempted, evicted, invalid",
            (
                Query(rate("num_preemptions"), "requests preempted a second"),
                Query(rate("kv_evicted_tokens"), "cached tokens evicted a second"),
                Query(rate("invalid_logits"), "answers with invalid logits a second"),
            ),
        ),
    ),
    "Processes": (
        Panel(
            "Processes",
            (Query(f"min by (actor, instance) ({one('actor_up')})", "{{instance}} {{actor}}"),),
            kind="state-timeline",
            steps=(("red", 0.0), ("green", 1.0)),
        ),
        Panel(
            "Restarts",
            (Query(f"sum by (actor) (increase({one('actor_restarts_total')}[$__rate_interval]))", "{{actor}}"),),
        ),
        Panel(
            "Queues between processes",
            (Query(f"max by (from, to) ({one('queue_bytes')})", "{{from}} to {{to}}"),),
            unit="bytes",
        ),
        Panel(
            "Messages a second",
            (Query(f"topk(8, {rate('queue_messages', 'from, to')})", "{{from}} to {{to}}"),),
        ),
        Panel(
            "Full queues",
            (Query(rate("queue_full_events", "from, to"), "{{from}} to {{to}}"),),
            text="How often a second a message found no room.",
        ),
        Panel(
            "Journal",
            (
                Query(f"sum ({one('journal_bytes')})", "bytes"),
                Query(rate("requests_unrecorded"), "requests without a record, a second"),
            ),
            unit="bytes",
            text="What outlives the http process.",
        ),
    ),
    "Images": (
        Panel(
            "Images a second",
            (
                Query(rate("images_encoded"), "encoded"),
                Query(rate("image_cache_hits"), "from the cache"),
                Query(rate("image_cache_joins"), "asked for while they were encoded"),
                Query(rate("image_failures"), "failed"),
                Query(rate("image_refusals"), "refused"),
            ),
        ),
        Panel(
            "Time of an image",
            (
                Query(f"{rate('image_decode_seconds')} / {rate('images_decoded')}", "decode"),
                Query(f"{rate('image_encode_seconds')} / {rate('images_encoded')}", "encode"),
                Query(f"{rate('image_wait_seconds')} / {rate('image_requests_embedded')}", "request waits for all"),
            ),
            unit="s",
        ),
        Panel(
            "Image cache",
            (
                Query(f"sum ({one('image_cache_used_bytes')})", "used"),
                Query(f"sum ({one('image_cache_capacity_bytes')})", "capacity"),
                Query(f"sum ({one('image_file_bytes')})", "files of live requests"),
            ),
            unit="bytes",
        ),
        Panel(
            "Images in work",
            (
                Query(f"sum ({one('images_in_work')})", "decoded or encoded now"),
                Query(f"sum ({one('image_requests_waiting')})", "requests that wait for room"),
                Query(f"sum ({one('image_cache_leased_items')})", "images in use"),
            ),
        ),
        Panel("Images in a batch", (Query(f"{rate('images_encoded')} / {rate('image_batches')}", "mean"),)),
        Panel("Fetching a URL", quantiles("image_fetch_time_seconds"), unit="s"),
    ),
    "Constrained answers": (
        Panel("Constrained answers", (Query(f"sum ({one('constrained_answers')})", "now"),), width=12),
        Panel(
            "Masks",
            (
                Query(rate("constraint_masks"), "masks computed a second"),
                Query(rate("constraints_refused"), "constraints refused a second"),
            ),
            width=12,
        ),
    ),
}
