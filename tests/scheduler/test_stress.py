"""Hundreds of random workloads on tiny memories: every answer is exact, and no slot is lost."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.facts import StateFacts
from lightllm_mp.messages import ImageSpan, Tokenized
from lightllm_mp.scheduler.admission import Admission
from lightllm_mp.vision.placeholders import SURE_SLOTS
from tests.scheduler.harness import VOCAB, Harness, column, harness, limits, mock_worker, prompt, request
from tests.scheduler.mock_drafts import draft_answers
from tests.scheduler.mock_images import Part, image_prompt


def random_request(random: np.random.Generator, rid: int, room: int) -> Tokenized:
    """Prompts share beginnings; answers end in every possible way."""
    shared = prompt(int(random.integers(1, max(2, room // 2))), int(random.integers(3)))
    own = prompt(int(random.integers(0, room // 3 + 1)), rid) if random.random() < 0.7 else []
    ids, spans = (shared + own)[: room - 1], ()
    if random.random() < 0.3:
        ids, spans = with_pictures(random, ids, room)
    rules: dict[str, object] = {
        "max_new_tokens": int(random.integers(1, 50)),
        "min_new_tokens": int(random.integers(0, 6)),
        "ignore_eos": bool(random.random() < 0.4),
        "temperature": float(random.random() < 0.5),
    }
    if random.random() < 0.2:
        rules["stop_ids"] = column(random.integers(3, VOCAB, 3).tolist())
    if random.random() < 0.15:
        rules["prompt_logprobs"] = int(random.integers(0, 3))
    if random.random() < 0.15:
        rules["top_logprobs"] = 2
    return request(
        rid,
        ids,
        n=int(random.integers(2, 5)) if random.random() < 0.2 else 1,
        priority=int(random.integers(0, 3)) if random.random() < 0.3 else 0,
        reuse_prompt=bool(random.random() < 0.85),
        spans=spans,
        **rules,
    )


def with_pictures(random: np.random.Generator, ids: list[int], room: int) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """Insert up to three of a few images, large and small, anywhere between the ids."""
    cuts = sorted(random.integers(0, len(ids) + 1, int(random.integers(1, 4))).tolist())
    parts: list[Part] = [ids[: cuts[0]]]
    for start, end in zip(cuts, [*cuts[1:], len(ids)], strict=True):
        slots = int(random.choice([1, 2, 3, 5, 11]))
        parts += [(f"picture of {slots}", slots), ids[start:end]]
    found, spans = image_prompt(VOCAB, *parts)
    return (found, spans) if len(found) < room else (ids, ())


def random_harness(random: np.random.Generator, **changes: object) -> Harness:
    kv_tokens = int(random.integers(24, 300))
    return harness(
        int(random.integers(0, 3)),
        kv_tokens=kv_tokens,
        rows=int(random.integers(1, 12)),
        **{
            "step_tokens": int(random.integers(2, 48)),
            "max_context": int(random.integers(24, 160)),
            "prompt_cache": bool(random.random() < 0.9),
            "class_bounds": (9, 18, 40) if random.random() < 0.5 else (),
            "states": random_states(random) if random.random() < 0.4 else None,
            **changes,
        },
    )


def random_states(random: np.random.Generator) -> StateFacts:
    """Often too few places, and saves at almost every token."""
    return StateFacts(checkpoints=int(random.choice([0, 1, 2, 5, 40])), grain=int(random.choice([1, 2, 4, 16])))


def disturb(h: Harness, random: np.random.Generator, ended: set[int]) -> None:
    """Sometimes a client aborts, a stop string matches, or a process dies."""
    living = [rid for rid in h.requests if rid not in h.finish and rid not in ended]
    what = random.random()
    if living and what < 0.03:
        rid = int(random.choice(living))
        ended.add(rid)
        h.scheduler.abort(rid)
    elif living and what < 0.06:
        rid = int(random.choice(living))
        ended.add(rid)
        h.scheduler.stop_matched(rid)
        h.closed.add(rid)
    elif what < 0.065:
        keep_cache = bool(random.random() < 0.5)
        h.scheduler.reset(keep_cache)
        h.scheduler.check_integrity()
        if not keep_cache:
            h.worker = mock_worker(h.scheduler.limits, h.images)
        h.closed |= ended
        h.resume()
    h.listen()


SEEDS = [range(20), pytest.param(range(20, 90), marks=pytest.mark.slow)]


@pytest.mark.parametrize("reckless", [False, True])
@pytest.mark.parametrize("seeds", SEEDS, ids=["few", "many"])
def test_random_workloads(seeds: range, reckless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`reckless`: admission admits every sequence, so memory runs out all the time."""
    if reckless:
        monkeypatch.setattr(Admission, "admits", lambda *_: True)
    preemptions = sum(workload(seed).scheduler.gauges()["preemptions"] for seed in seeds)
    assert preemptions > (100 if reckless else 0), "memory did not run out"


@pytest.mark.parametrize("reckless", [False, True])
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 60), marks=pytest.mark.slow)], ids=["few", "many"])
def test_random_workloads_of_windows(seeds: range, reckless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer has a window; sequences give up what is behind it. The bookkeeping is checked at each step."""
    if reckless:
        monkeypatch.setattr(Admission, "admits", lambda *_: True)
    hits = 0.0
    for seed in seeds:
        h = workload(seed, check=True, states=None, window=int(np.random.default_rng(seed).choice([2, 3, 7, 20, 60])))
        hits += h.scheduler.gauges()["prefix_hit_tokens"]
    assert hits > 0


@pytest.mark.parametrize("reckless", [False, True])
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 60), marks=pytest.mark.slow)], ids=["few", "many"])
def test_random_workloads_with_drafts(seeds: range, reckless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speculative decoding changes no answer. The slots of refused tokens are checked at each step."""
    if reckless:
        monkeypatch.setattr(Admission, "admits", lambda *_: True)
    accepted = preemptions = 0.0
    for seed in seeds:
        sizes = np.random.default_rng(seed)
        changes: dict[str, object] = {
            "window": int(sizes.choice([0, 3, 20])),
            "draft_tokens": int(sizes.choice([1, 5, 12])),
        }
        if changes["window"] and sizes.random() < 0.5:
            changes |= {"run_ahead": 2, "step_tokens": int(sizes.integers(2, 30))}
            changes["window_tokens"] = limits(**changes, window_tokens=1).window_slots + SURE_SLOTS
        h = workload(seed, check=True, drafts=True, states=None, **changes)
        accepted += h.scheduler.gauges()["accepted_tokens"]
        preemptions += h.scheduler.gauges()["preemptions"]
    assert accepted > 0
    assert preemptions > 0 or not reckless


@pytest.mark.parametrize("reckless", [False, True])
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 60), marks=pytest.mark.slow)], ids=["few", "many"])
def test_random_workloads_of_two_spaces(seeds: range, reckless: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some layers have a window and slots of their own: a few more than one sequence may need, or many."""
    if reckless:
        monkeypatch.setattr(Admission, "admits", lambda *_: True)
    hits = preemptions = 0.0
    for seed in seeds:
        random = np.random.default_rng(seed)
        window = int(random.choice([2, 3, 7, 20, 60]))
        changes: dict[str, object] = {"window": window, "run_ahead": 2, "step_tokens": int(random.integers(2, 30))}
        least = limits(**changes, window_tokens=1).window_slots + SURE_SLOTS
        gauges = workload(
            seed, check=True, states=None, window_tokens=int(least + random.choice([0, 10, 200])), **changes
        ).scheduler.gauges()
        hits, preemptions = hits + gauges["prefix_hit_tokens"], preemptions + gauges["preemptions"]
    assert hits > 0
    assert preemptions > 20 or not reckless


def workload(seed: int, *, check: bool = False, drafts: bool = False, **changes: object) -> Harness:
    random = np.random.default_rng(seed)
    h, ended, rid = random_harness(random, **changes), set[int](), 1
    if drafts:
        draft_answers(h, np.random.default_rng(seed), right=float(random.choice([0.0, 0.6, 0.9, 1.0])))
    room = min(h.scheduler.limits.width, h.scheduler.limits.max_input)

    def step() -> bool:
        going = h.step()
        if check:
            h.scheduler.check_integrity()
        return going

    for _ in range(int(random.integers(1, 25))):
        h.add(new := random_request(random, rid, room))
        rid += new.terms.n
        for _ in range(int(random.integers(0, 4))):
            step()
            disturb(h, random, ended)
    while step():
        disturb(h, random, ended)
    h.run()
    for sure in h.requests.keys() - ended:
        h.check_answers(sure)
    check_partial_answers(h, ended, seed)
    return h


def check_partial_answers(h: Harness, ended: set[int], seed: int) -> None:
    for rid in ended & set(h.ids):
        emitted = np.frombuffer(h.requests[rid].ids, "<i4")[h.requests[rid].prompt_tokens :].tolist()
        got = [*emitted, *h.ids[rid]]
        assert got == h.answer_of(rid)[: len(got)], f"seed {seed}, sequence {rid}"
