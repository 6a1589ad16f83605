"""Reward models: the prompt is computed, its last position is scored, and no token is produced."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.errors import InvalidRequest, PromptTooLong
from lightllm_mp.facts import PooledFacts
from tests.scheduler.harness import Harness, harness, prompt, request
from tests.scheduler.mock_worker import expected_score

REWARD = 59


def scoring(depth: int = 0, **changes: object) -> Harness:
    return harness(depth, **{"pooled": PooledFacts("score", 1, REWARD), **changes})


def score_of(h: Harness, rid: int) -> float:
    return float(np.frombuffer(h.pooled[rid].row, "<f4")[0])


def question(rid: int, ids: list[int]):
    return request(rid, ids, max_new_tokens=0)


@pytest.mark.parametrize("depth", [0, 1])
def test_scores(depth: int) -> None:
    h = scoring(depth)
    prompts = {rid: prompt(length, rid) for rid, length in enumerate((1, 2, 31, 32, 33, 100, 140), 1)}
    h.add(*[question(rid, ids) for rid, ids in prompts.items()])
    h.run()
    assert h.scheduled == prompts.keys() == h.pooled.keys()
    for rid, ids in prompts.items():
        assert score_of(h, rid) == pytest.approx(expected_score([*ids, REWARD]))
        assert h.pooled[rid].prompt_tokens == len(ids) + 1
    assert not h.opened, "the detokenizer has no part in it"
    assert not h.ids


def test_the_reward_token_is_appended_once() -> None:
    h = scoring()
    h.add(question(1, [5, 6, REWARD]), question(2, [5, 6]))
    h.run()
    assert score_of(h, 1) == score_of(h, 2)
    assert h.pooled[1].prompt_tokens == h.pooled[2].prompt_tokens == 3


def test_a_model_without_a_reward_token() -> None:
    h = scoring(pooled=PooledFacts("score", 1))
    h.add(question(1, [5, 6]))
    assert score_of(h.run(), 1) == pytest.approx(expected_score([5, 6]))


def test_prefixes_are_shared() -> None:
    h = scoring()
    ids = prompt(90)
    for rid in (1, 2):
        h.add(question(rid, [*ids, rid + 10]))
        h.run()
    assert h.scheduler.gauges()["prefix_hit_tokens"] == 90
    assert score_of(h, 2) == pytest.approx(expected_score([*ids, 12, REWARD]))


def test_more_than_the_memory_holds() -> None:
    h = scoring(1, kv_tokens=160)
    prompts = {rid: prompt(70 + rid, rid) for rid in range(1, 12)}
    h.add(*[question(rid, ids) for rid, ids in prompts.items()])
    h.run()
    assert {rid: score_of(h, rid) for rid in prompts} == pytest.approx(
        {rid: expected_score([*ids, REWARD]) for rid, ids in prompts.items()}
    )


def test_an_aborted_one_gets_no_score() -> None:
    h = scoring(1)
    h.add(question(1, prompt(100)), question(2, prompt(20)))
    h.step()
    h.scheduler.abort(1)
    h.run()
    assert h.pooled.keys() == {2}


def test_submitted_again_after_a_crash() -> None:
    h = scoring()
    h.add(question(1, prompt(100)))
    h.step()
    h.scheduler.reset(keep_cache=False)
    h.plans.clear()
    h.scheduled.clear()
    h.add(question(1, prompt(100)))
    assert score_of(h.run(), 1) == pytest.approx(expected_score([*prompt(100), REWARD]))


def test_refusals() -> None:
    reward, plain = scoring().scheduler, harness().scheduler
    with pytest.raises(InvalidRequest, match="embeddings or scores"):
        reward.add(request(1, [4, 5]))
    with pytest.raises(InvalidRequest, match="max_new_tokens"):
        plain.add(question(1, [4, 5]))
    with pytest.raises(PromptTooLong):
        reward.add(question(1, prompt(150)))
    with pytest.raises(InvalidRequest, match="empty"):
        reward.add(question(1, []))


def test_an_answer_without_the_scores_is_noticed() -> None:
    h = scoring()
    h.add(question(1, [4, 5]))
    plan = h.scheduler.plan()
    done = h.worker.step(plan)
    assert np.frombuffer(done.pooled, "<f4").shape == (1,)
    with pytest.raises(RuntimeError, match="0 numbers for 1"):
        h.scheduler.done(type(done)(step=done.step, ids=b"", logprobs=b""))
