"""Combines the front's knowledge of its requests with the other actors' answers."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from time import monotonic

from msgspec.structs import asdict

from lightllm_mp.actors.front.live_request import Answer
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.http.access_log import client
from lightllm_mp.actors.http.live.snapshot_schema import (
    ActorSnapshot,
    EngineSnapshot,
    HistoryPoint,
    ImageSnapshot,
    ImagesSnapshot,
    KvSnapshot,
    LaneSnapshot,
    LiveSnapshot,
    RequestsSnapshot,
    SequenceSnapshot,
    SequenceStage,
)
from lightllm_mp.messages import MOST_SHOWN, EngineState, ImageCacheState, SchedulerState, ServerState

STAGES: tuple[SequenceStage, ...] = ("tokenizing", "images", "constraint", "queued", "prefill", "decode")
"""Names of stages by the router's number."""


@dataclass
class Told:
    """The other actors' last answers; None: none yet, or they do not answer."""

    engine: EngineState | None = None
    scheduler: SchedulerState | None = None
    images: ImageCacheState | None = None


def shown(frontend: ResumableTable) -> list[Answer]:
    """The answers that are listed one by one."""
    return list(islice((answer for live in frontend.requests for answer in live.answers), MOST_SHOWN))


def rids_of(answers: Sequence[Answer]) -> bytes:
    return array("q", [answer.rid for answer in answers]).tobytes()


def snapshot(
    frontend: ResumableTable,
    answers: Sequence[Answer],
    told: Told,
    numbers: Mapping[str, float],
    *,
    number: int,
    at: float,
    viewers: int,
    history: list[HistoryPoint],
) -> LiveSnapshot:
    """`answers`: those of `shown`, for which the router was asked. `numbers`: the router's page."""
    engine = told.engine
    return LiveSnapshot(
        number,
        round(at, 2),
        _engine(frontend, engine, viewers),
        [ActorSnapshot(**asdict(one)) for one in engine.actors] if engine else [],
        [LaneSnapshot(**asdict(one)) for one in engine.lanes] if engine else [],
        _kv(frontend, told.scheduler, numbers),
        _requests(frontend, answers, told.scheduler, numbers),
        _images(told.images) if told.images else None,
        history,
    )


def _engine(frontend: ResumableTable, told: EngineState | None, viewers: int) -> EngineSnapshot:
    facts = frontend.facts
    guess: ServerState = "starting" if facts is None else "running" if frontend.connected else "repairing"
    return EngineSnapshot(
        told.state if told else guess,
        frontend.trouble,
        frontend.state.draining,
        told.epoch if told else 0,
        told.seconds if told else 0.0,
        facts.model_name if facts else "",
        viewers,
    )


def _kv(frontend: ResumableTable, told: SchedulerState | None, numbers: Mapping[str, float]) -> KvSnapshot:
    facts = frontend.facts
    return KvSnapshot(
        facts.engine.kv_tokens if facts else 0,
        int(numbers.get("kv_used", 0)),
        int(numbers.get("kv_cached", 0)),
        told.tree_tokens if told else 0,
        told.tree_nodes if told else 0,
        told.cell_slots if told else 0,
        told.running if told else b"",
        told.kept if told else b"",
        int(numbers.get("state_checkpoints_used", 0)),
        int(numbers.get("state_checkpoints", 0)),
        int(numbers.get("kv_window_used", 0)),
        int(numbers.get("kv_window_total", 0)),
        told.owners if told else b"",
    )


def _requests(
    frontend: ResumableTable, answers: Sequence[Answer], told: SchedulerState | None, numbers: Mapping[str, float]
) -> RequestsSnapshot:
    now = monotonic()
    known = dict(_columns(told)) if told else {}
    total = sum(len(live.answers) for live in frontend.requests)
    return RequestsSnapshot(
        frontend.live,
        frontend.limits.most,
        len(frontend.retained),
        int(numbers.get("running", 0)),
        int(numbers.get("waiting", 0)),
        [_sequence(answer, known.get(answer.rid, (0, 0, 0, 0)), frontend.connected, now) for answer in answers],
        max(0, total - len(answers)),
    )


def _columns(told: SchedulerState) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """rid -> stage, prompt, computed, cached"""
    numbers = (memoryview(column).cast("i") for column in (told.prompts, told.computed, told.cached))
    return zip(memoryview(told.rids).cast("q"), zip(told.stages, *numbers, strict=True), strict=True)


def _sequence(answer: Answer, known: tuple[int, int, int, int], connected: bool, now: float) -> SequenceSnapshot:
    live, (number, prompt, computed, cached) = answer.live, known
    stage: SequenceStage = STAGES[number]
    if answer.finish is not None:
        stage = "delivering"
    elif not connected:
        stage = "repair"
    elif not live.sent:
        stage = "quarantine"
    terms = live.request.terms
    return SequenceSnapshot(
        str(answer.rid),
        answer.index,
        sha256(b"label of lightllm-mp" + live.label.encode()).hexdigest()[:8] if live.label else "",
        client(terms.tenant) if terms.tenant else "",
        terms.task,
        stage,
        answer.prompt_tokens or prompt,
        answer.cached_tokens if answer.prompt_tokens else cached,
        computed,
        len(answer.ids),
        terms.sampling.max_new_tokens,
        len(live.request.images),
        terms.guide is not None,
        round(now - live.started, 2),
        round(live.scheduled - live.started, 3) if live.scheduled else None,
        round(live.first - live.started, 3) if live.first else None,
    )


def _images(told: ImageCacheState) -> ImagesSnapshot:
    return ImagesSnapshot(
        told.items,
        told.capacity,
        told.size,
        told.most_size,
        told.leased,
        told.waiting,
        told.working,
        [
            ImageSnapshot(one.key.hex(), one.tokens, one.size, one.ready, one.leases, round(one.age, 1))
            for one in told.images
        ],
        max(0, told.items - len(told.images)),
    )
