"""Image statistics of a run: the difference of the server's /metrics before and after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "lightllm_"
COUNTS = {
    "hits": "image_cache_hits_total",
    "joins": "image_cache_joins_total",
    "misses": "image_cache_misses_total",
    "evictions": "image_cache_evictions_total",
}
"""Numbers of images. hits: in the cache. joins: another request was waiting for the same image. misses: new. evictions:
removed to make room."""
STAGES = {
    "fetch": ("image_fetch_time_seconds_sum", "image_fetch_time_seconds_count"),
    "decode": ("image_decode_seconds_total", "images_decoded_total"),
    "encode": ("image_encode_seconds_total", "images_encoded_total"),
    "wait": ("image_wait_seconds_total", "image_requests_embedded_total"),
    "prefill": ("request_prefill_time_seconds_sum", "request_prefill_time_seconds_count"),
}
"""Metrics of total seconds and of the count. fetch, decode, encode (its share of a batch): per image. wait (from its
arrival at the visual actor to its embeddings) and prefill (from its first chunk to its first token): per request."""

Numbers = Mapping[str, float]


async def scrape(session: aiohttp.ClientSession, url: str) -> Numbers:
    """The server's metrics, summed over labels. {} if the server exports none."""
    try:
        async with session.get(url.rstrip("/") + "/metrics") as response:
            text = await response.text() if response.status == 200 else ""
        families = list(text_string_to_metric_families(text))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return {}
    found: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples if sample.name.startswith(PREFIX)):
        name = sample.name.removeprefix(PREFIX)
        found[name] = found.get(name, 0.0) + sample.value
    return found


def between(before: Numbers, after: Numbers) -> dict[str, Any]:
    """Counts and stages (`count`, `mean_s`) of a run. Metrics that are missing or zero are left out."""
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    figures: dict[str, Any] = {key: round(grown[name]) for key, name in COUNTS.items() if name in grown}
    if batches := grown.get("image_batches_total"):
        figures["images_per_batch"] = round(grown["images_encoded_total"] / batches, 2)
    stages = {
        stage: {"count": round(grown[count]), "mean_s": round(grown[seconds] / grown[count], 6)}
        for stage, (seconds, count) in STAGES.items()
        if grown.get(count)
    }
    return figures | ({"stages": stages} if stages else {})


def lines(images: Mapping[str, Any]) -> list[str]:
    """The statistics as text; times are in milliseconds."""
    found = [f"{images['sent']:,} images sent, {images['distinct']:,} of them different"]
    counts = [f"{images[key]:,} {key}" for key in COUNTS if key in images]
    if counts:
        found.append(f"{'image cache':<16}" + ", ".join(counts))
    if "images_per_batch" in images:
        found.append(f"{'batches':<16}{images['images_per_batch']:,.1f} images on average")
    if stages := images.get("stages"):
        found += ["", f"{'stage (ms)':<16}{'mean':>10}{'count':>10}"]
        found += [f"{stage:<16}{one['mean_s'] * 1000:>10,.1f}{one['count']:>10,}" for stage, one in stages.items()]
    return found
