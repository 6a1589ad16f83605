"""Hybrid golden checkpoints through scheduler and executor: a sequence that goes on from any state has the reference's
ids. test_golden_steps.py has the tests for all models."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.engine.executor import Executor
from lightllm_mp.facts import StateFacts
from lightllm_mp.messages import Sampling, Terms, Tokenized
from lightllm_mp.plan import NO_STATE, PlanBuilder
from lightllm_mp.scheduler.admission import Admission
from lightllm_mp.scheduler.recurrent_states import ANSWER_GRAINS
from tests.engine.test_golden_steps import NEW, Run, model

FOLDER = "qwen3_next"
both_depths = pytest.mark.parametrize("depth", [0, 1])


@pytest.mark.parametrize(("depth", "checkpoints", "grain"), [(0, 50, 3), (1, 2, 1)])
def test_few_and_many_copies(depth: int, checkpoints: int, grain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts twice in small chunks beside decode tokens, with so little memory that sequences are preempted."""
    monkeypatch.setattr(Admission, "admits", lambda *_: True)
    run = Run(FOLDER, depth, step_tokens=23, kv_tokens=160, states=StateFacts(checkpoints, grain))
    for turn in (1, 2):
        for number in range(6):
            run.ask(number, turn=turn)
        run.work()
        assert all(run.ids[100 * turn + number] == run.golden[number]["greedy_ids"] for number in range(6))
    assert run.scheduler.gauges()["preemptions"] > 0
    assert run.scheduler.gauges()["prefix_hit_tokens"] > 0 or checkpoints == 2


@both_depths
def test_an_answer_goes_on_from_within_an_earlier_one(depth: int) -> None:
    """The next turn of a chat from every position of the answer; with grain 2 copies are 8 tokens apart."""
    run = Run(FOLDER, depth, states=StateFacts(50, grain=2))
    run.ask(3)
    run.work()
    prompt = run.golden[3]
    for more in range(1, NEW, 2):
        ids, left = [*prompt["input_ids"], *prompt["greedy_ids"][:more]], NEW - more
        sampling = Sampling(seed=0, max_new_tokens=left, ignore_eos=True)
        run.scheduler.add(Tokenized(500 + more, Terms(sampling), np.array(ids, "<i4").tobytes(), len(ids)))
        run.work()
        assert run.ids[500 + more] == prompt["greedy_ids"][more:]
        assert run.logprobs[500 + more] == pytest.approx(prompt["greedy_logprobs"][more:], abs=5e-4)
        assert run.cached[500 + more] > len(ids) - 1 - 2 * ANSWER_GRAINS


@both_depths
def test_many_answers_to_one_prompt(depth: int) -> None:
    run = Run(FOLDER, depth, step_tokens=16)
    prompt = run.golden[5]
    terms = Terms(Sampling(seed=0, max_new_tokens=NEW, ignore_eos=True), n=4)
    run.scheduler.add(Tokenized(700, terms, np.array(prompt["input_ids"], "<i4").tobytes(), prompt["length"]))
    run.work()
    assert [run.ids[700 + i] for i in range(4)] == [prompt["greedy_ids"]] * 4
    assert [run.cached[700 + i] for i in range(4)] == [0] + [prompt["length"] - 1] * 3


@both_depths
@pytest.mark.parametrize("keep_cache", [False, True])
def test_aborts_and_a_reset_change_no_other_answer(depth: int, keep_cache: bool) -> None:
    run = Run(FOLDER, depth, step_tokens=40)
    for number in range(6):
        run.ask(number)
    for _ in range(6):
        plan = run.scheduler.plan()
        assert plan is not None
        run.executor.submit(plan)
        if run.executor.pending > depth:
            run.scheduler.done(run.executor.collect())
    run.scheduler.abort(102)
    run.scheduler.abort(105)
    run.scheduler.check_integrity()
    run.scheduler.reset(keep_cache)
    run.executor.reset()
    for number in range(6):
        run.ask(number, turn=2)
    run.work()
    assert all(run.ids[200 + number] == run.golden[number]["greedy_ids"] for number in range(6))


def test_rows_are_used_again_with_fresh_states() -> None:
    run = Run(FOLDER, states=StateFacts(0, 1))
    for turn in (1, 2):
        for number in range(4):
            run.ask(number, turn=turn)
            run.work()
    assert all(run.ids[200 + number] == run.golden[number]["greedy_ids"] for number in range(4))


@pytest.mark.parametrize(
    ("row", "position", "place"),
    [
        (1, 4, 5),  # a row without tokens
        (0, 3, 5),  # before the sequence's start
        (0, 9, 5),  # behind its end
        (0, 6, 4),  # the spare row's state
        (0, 6, 7),  # behind the pool
        (0, 6, NO_STATE),
        (0, 4, NO_STATE),  # a state exists before this position
    ],
)
def test_states_that_a_step_does_not_have_are_refused(row: int, position: int, place: int) -> None:
    executor = Executor(model(FOLDER), kv_tokens=20, rows=4, max_context=20, step_tokens=8, state_checkpoints=2)
    builder = PlanBuilder(0)
    builder.setup(0, 8, Sampling(seed=0))
    builder.write_ids(0, 0, np.zeros(8, np.int32))
    builder.write_slots(0, 0, np.arange(8, dtype=np.int32))
    builder.add(0, 4, 4, sample=True)
    builder.state(row, position, place)
    with pytest.raises(ValueError, match="a plan names state"):
        executor.submit(builder.pack())


def test_states_for_a_model_without_recurrent_layers_are_refused() -> None:
    builder = PlanBuilder(0)
    builder.state(0, 0, NO_STATE)
    with pytest.raises(ValueError, match="no recurrent layers"):
        Executor(model("qwen"), kv_tokens=20, rows=4, max_context=20, step_tokens=8).submit(builder.pack())


def test_warm_up_leaves_the_states_alone() -> None:
    executor = Executor(model(FOLDER), kv_tokens=20, rows=4, max_context=20, step_tokens=8, state_checkpoints=2)
    executor.warm_up()
    assert executor.kv.states is not None
    assert not executor.kv.states.recurrent.any()
