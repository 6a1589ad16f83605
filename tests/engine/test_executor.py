"""The executor carries out plans: ids and slots go where the plan says, and the answer depends on nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lightllm_mp.engine import executor as executor_module
from lightllm_mp.engine.executor import Executor
from lightllm_mp.engine.sampling.logprobs import FLOOR
from lightllm_mp.engine.warm_up import warm_up_plans
from lightllm_mp.messages import Sampling, StepDone
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.plan import PlanBuilder
from tests.engine.tiny_model import Driver, Running, TinyModel, broken_beside, check_broken
from tests.paths import GOLDENS

GREEDY = Sampling(seed=0)
HOT = Sampling(seed=77, temperature=9.0, top_p=0.95, frequency_penalty=0.2)
LLAMA = GOLDENS / "llama"


def tiny(rows: int = 6, kv_tokens: int = 300, vocab: int = 40) -> tuple[TinyModel, Driver]:
    model = TinyModel(vocab)
    made = Executor(model, kv_tokens=kv_tokens, rows=rows, max_context=64, step_tokens=48)
    made.kv.data.fill_(float("nan"))  # memory that was not written must not be read
    return model, Driver(made, kv_tokens)


def greedy_by_hand(model: TinyModel, prompt: list[int], tokens: int) -> tuple[list[int], list[float]]:
    ids, logprobs = list(prompt), []
    for _ in range(tokens):
        table = model.whole(ids)[-1].log_softmax(-1)
        ids.append(int(table.argmax()))
        logprobs.append(float(table.max()))
    return ids[len(prompt) :], logprobs


def floats(column: bytes) -> list[float]:
    return np.frombuffer(column, "<f4").tolist()


@pytest.mark.parametrize("chunk", [1000, 5, 1])
def test_generates_what_the_model_says(chunk: int) -> None:
    model, driver = tiny()
    running = Running(2, [5, 9, 1, 30, 7, 7, 12], GREEDY)
    expected, logprobs = greedy_by_hand(model, running.prompt, 12)
    assert driver.generate(running, 12, chunk) == expected
    assert running.logprobs == pytest.approx(logprobs, abs=1e-4)


def test_decode_and_chunks_share_steps() -> None:
    """Each sequence gets the same as alone, in any batch and order of rows."""
    prompts = [[5, 9, 1, 30], list(range(20)), [3], [8, 8, 8, 2, 2, 11, 39]]
    alone = [tiny()[1].generate(Running(0, p, s), 8) for p, s in zip(prompts, (GREEDY, HOT, HOT, GREEDY), strict=True)]
    _, driver = tiny()
    a, b, c, d = (
        Running(row, p, s) for row, p, s in zip((4, 0, 5, 2), prompts, (GREEDY, HOT, HOT, GREEDY), strict=True)
    )
    driver.step([(a, 4)])
    driver.step([(a, 1), (b, 7)])
    driver.step([(b, 7), (a, 1), (c, 1), (d, 3)])
    driver.step([(d, 4), (b, 6), (c, 1), (a, 1)])
    for _ in range(7):
        driver.step([(c, 1), (a, 1), (d, 1), (b, 1)])
    for running, expected in zip((a, b, c, d), alone, strict=True):
        assert running.produced[:8] == expected


def test_sampled_ids_stay_on_the_device() -> None:
    """A plan may use an id that is not collected yet: many steps are submitted before the first answer."""
    model, driver = tiny()
    prompt = [5, 9, 1]
    expected, _ = greedy_by_hand(model, prompt, 10)
    for step in range(10):
        builder, start = PlanBuilder(step), 2 + step if step else 0
        if not step:
            builder.setup(3, 3, GREEDY)
            builder.write_ids(3, 0, np.array(prompt))
        builder.write_slots(3, start, np.arange(start, 3 + step))
        builder.add(3, start, 3 + step - start, sample=True)
        driver.executor.submit(builder.pack())
    done = [driver.executor.collect() for _ in range(10)]
    assert [answer.step for answer in done] == list(range(10))
    assert [int(np.frombuffer(answer.ids, "<i4")[0]) for answer in done] == expected
    with pytest.raises(RuntimeError, match="collect without submit"):
        driver.executor.collect()


def test_a_resumed_sequence_goes_on_the_same() -> None:
    """A preempted sequence is set up again in another row, with its produced ids behind the prompt."""
    prompt = [4, 4, 19, 2]
    whole = tiny()[1].generate(Running(0, prompt, HOT), 14)
    _, driver = tiny()
    first = Running(1, prompt, HOT)
    driver.generate(first, 6)
    second = Running(5, prompt, HOT, produced=list(first.produced))
    driver.generate(second, 8, chunk=3)
    assert second.produced == whole
    assert len(set(whole)) > 3


def test_a_shared_prefix_is_read_through_the_slot_table() -> None:
    model, driver = tiny()
    first = Running(0, [5, 9, 1, 30, 7], GREEDY)
    driver.generate(first, 1)
    builder = PlanBuilder(driver.step_number)
    builder.setup(1, 6, GREEDY)
    builder.write_ids(1, 0, np.array([5, 9, 1, 30, 22, 6]))
    builder.write_slots(1, 0, np.array(first.slots[:4]))
    builder.write_slots(1, 4, np.array([driver.free.pop(), driver.free.pop()]))
    builder.add(1, 4, 2, sample=True)
    driver.executor.submit(builder.pack())
    answer = driver.executor.collect()
    assert np.frombuffer(answer.ids, "<i4").tolist() == greedy_by_hand(model, [5, 9, 1, 30, 22, 6], 1)[0]


@pytest.mark.parametrize("top_n", [0, 3])
@pytest.mark.parametrize("chunks", [(9,), (4, 5), (8, 1), (1, 1, 7)])
def test_prompt_logprobs(chunks: tuple[int, ...], top_n: int) -> None:
    model, driver = tiny()
    prompt = [5, 9, 1, 30, 7, 7, 12, 0, 39]
    running, other = Running(2, prompt, Sampling(seed=0, prompt_logprobs=top_n)), Running(0, [1], GREEDY)
    exact = model.whole(prompt).log_softmax(-1)
    scores, top_ids, top_scores = b"", b"", b""
    for chunk in chunks:
        done = driver.step([(other, 1), (running, chunk)])
        for sequence, logprobs, ids, values in done.prompt:
            assert sequence == 1
            scores, top_ids, top_scores = scores + logprobs, top_ids + ids, top_scores + values
    assert floats(scores) == pytest.approx([float(exact[i, prompt[i + 1]]) for i in range(8)], abs=1e-4)
    best = exact[:8].topk(top_n)
    assert np.frombuffer(top_ids, "<i4").tolist() == best.indices.ravel().tolist()
    assert floats(top_scores) == pytest.approx(best.values.ravel().tolist(), abs=1e-4)
    assert driver.step([(running, 1), (other, 1)]).prompt == ()


def test_lines_that_nobody_asks_for_are_not_wanted() -> None:
    model, driver = tiny()
    driver.generate(Running(0, [5, 9, 1], GREEDY), 2)
    driver.generate(Running(1, [5, 9, 1], Sampling(seed=0, prompt_logprobs=0)), 1)
    assert model.ends_only == [True, True, False]


def test_prompt_logprobs_of_a_resumed_sequence_end_with_the_prompt() -> None:
    _, driver = tiny()
    running = Running(0, [5, 9, 1], Sampling(seed=0, prompt_logprobs=0), produced=[4, 4, 4])
    (chunk,) = driver.step([(running, 6)]).prompt
    assert len(floats(chunk[1])) == 2


def test_a_placeholder_id_in_the_prompt_has_the_lowest_logprob() -> None:
    """Image ids lie outside the vocabulary; they may follow a text token."""
    _, driver = tiny()
    running = Running(0, [5, 9], Sampling(seed=0, prompt_logprobs=0))
    builder = PlanBuilder(0)
    builder.setup(0, 3, running.sampling)
    builder.write_ids(0, 0, np.array([5, 9, 10**6]))
    builder.write_slots(0, 0, np.array([0, 1]))
    builder.add(0, 0, 2, sample=False)
    driver.executor.submit(builder.pack())
    answer = driver.executor.collect()
    assert answer.ids == b""
    assert floats(answer.prompt[0][1])[1] == FLOOR
    assert floats(answer.prompt[0][1])[0] > FLOOR


def test_alternatives_are_reported_by_sample_index() -> None:
    model, driver = tiny()
    asks = [Sampling(seed=0, top_logprobs=2), GREEDY, Sampling(seed=1, temperature=1.0, top_logprobs=4)]
    runnings = [Running(row, [row + 1, 7], sampling) for row, sampling in enumerate(asks)]
    done = driver.step([(running, 2) for running in runnings])
    assert [(index, len(ids) // 4) for index, ids, _ in done.top] == [(0, 2), (2, 4)]
    for index, ids, values in done.top:
        best = model.whole(runnings[index].prompt)[-1].log_softmax(-1).topk(len(ids) // 4)
        assert np.frombuffer(ids, "<i4").tolist() == best.indices.tolist()
        assert floats(values) == pytest.approx(best.values.tolist(), abs=1e-4)


def test_logits_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five sequences get the same in blocks of two rows as at once."""
    whole = five_at_once(tiny()[1])
    monkeypatch.setitem(executor_module.LOGIT_ELEMENTS, "cpu", 2 * 40)
    model, driver = tiny()
    parts = five_at_once(driver)
    assert model.widest == 2
    assert parts.ids == whole.ids
    assert len(parts.ids) == 5 * 4
    assert floats(parts.logprobs) == pytest.approx(floats(whole.logprobs), abs=1e-5)
    assert [(index, ids) for index, ids, _ in parts.top] == [(index, ids) for index, ids, _ in whole.top]
    assert [row[0] for row in parts.prompt] == list(range(5))
    for part, row in zip(parts.prompt, whole.prompt, strict=True):
        assert (part[0], part[2]) == (row[0], row[2])
        assert floats(part[1] + part[3]) == pytest.approx(floats(row[1] + row[3]), abs=1e-4)


def test_logits_of_a_prompt_take_no_more_than_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, sampling = list(range(30)), Sampling(seed=0, prompt_logprobs=0)
    whole = tiny(rows=4)[1].step([(Running(0, prompt, sampling), 30)])
    monkeypatch.setattr(executor_module, "PROMPT_LINES", 3)
    model, driver = tiny(rows=4)
    parts = driver.step([(Running(0, prompt, sampling), 30)])
    assert model.widest == 4
    assert floats(parts.prompt[0][1]) == pytest.approx(floats(whole.prompt[0][1]), abs=1e-5)


def five_at_once(driver: Driver) -> StepDone:
    sampling = Sampling(seed=0, temperature=9.0, top_logprobs=2, prompt_logprobs=1)
    return driver.step([(Running(row, [row, 1, 2, 9], sampling), 4) for row in range(5)])


def test_edits_without_sequences() -> None:
    model, driver = tiny()
    builder = PlanBuilder(7)
    builder.setup(0, 2, HOT)
    builder.write_ids(0, 1, np.array([5, 9]))
    driver.executor.submit(builder.pack())
    done = driver.executor.collect()
    assert (done.step, done.ids, done.logprobs, done.top, done.prompt) == (7, b"", b"", (), ())
    assert driver.executor.tables.tokens[0, :4].tolist() == [0, 5, 9, 0]
    assert model.steps == []


@pytest.mark.parametrize(
    ("row", "start", "count"), [(6, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 60, 5), (0, 0, 0), (0, 64, 1), (0, 2**31 - 1, 1)]
)
def test_a_plan_outside_the_tables_is_refused(row: int, start: int, count: int) -> None:
    _, driver = tiny()
    builder = PlanBuilder(0)
    builder.add(row, start, count, sample=True)
    with pytest.raises(ValueError, match="plan"):
        driver.executor.submit(builder.pack())


@pytest.mark.parametrize("row", [-1, 6])
def test_a_setup_of_no_row_is_refused(row: int) -> None:
    _, driver = tiny()
    builder = PlanBuilder(0)
    builder.setup(row, 1, GREEDY)
    with pytest.raises(ValueError, match="row"):
        driver.executor.submit(builder.pack())


def test_an_edit_past_the_end_of_a_row_is_refused() -> None:
    _, driver = tiny()
    builder = PlanBuilder(0)
    builder.write_slots(1, 60, np.arange(6))
    with pytest.raises(ValueError, match="outside the tables"):
        driver.executor.submit(builder.pack())


def test_a_full_context_still_gets_its_token() -> None:
    model, driver = tiny()
    running = Running(5, [i % 40 for i in range(64)], GREEDY)
    driver.step([(running, 64)])
    assert running.produced == [int(model.whole(running.prompt)[-1].argmax())]


def test_warm_up_on_a_cpu_runs_small_steps_of_each_kind_and_leaves_no_trace() -> None:
    model, driver = tiny(rows=6, kv_tokens=100)
    expected = tiny()[1].generate(Running(1, [4, 4, 19, 2], HOT), 6)
    driver.executor.kv.data[:, :, -1] = 0.0  # the spare slot is real memory
    driver.executor.warm_up()
    assert model.steps == [17, 4, 4, 1, 16, 17]
    assert driver.executor.kv.data[:, :, :100].isnan().all(), "warm-up wrote to a slot that is not its own"
    with pytest.raises(RuntimeError):
        driver.executor.collect()
    assert driver.generate(Running(1, [4, 4, 19, 2], HOT), 6) == expected


@pytest.mark.parametrize(
    ("sizes", "steps"),
    [
        ({"kv_tokens": 200, "rows": 3, "max_context": 32, "step_tokens": 80}, [17, 3, 3, 1, 16, 17]),
        ({"kv_tokens": 200, "rows": 3, "max_context": 10, "step_tokens": 80}, [17, 3, 3, 1, 10, 11]),
        ({"kv_tokens": 2, "rows": 1, "max_context": 2, "step_tokens": 1}, [1, 1, 1, 1, 1]),
    ],
)
def test_warm_up_keeps_to_small_limits(sizes: dict[str, int], steps: list[int]) -> None:
    model = TinyModel()
    Executor(model, **sizes).warm_up()
    assert model.steps == steps


def test_the_worst_steps_have_more_tokens_than_a_row_holds() -> None:
    """As on a GPU."""
    model = TinyModel()
    made = Executor(model, kv_tokens=200, rows=3, max_context=32, step_tokens=80)
    for plan in warm_up_plans(rows=3, max_context=32, step_tokens=80, kv_tokens=200, spare_slots=[200]):
        made.run(plan)
    assert model.steps == [80, 3, 3, 1, 16, 17]


def test_reset_forgets_rows_and_keeps_kv() -> None:
    _, driver = tiny()
    driver.executor.kv.data.zero_()
    driver.generate(Running(0, [4, 4], Sampling(seed=0, prompt_logprobs=0)), 2)
    before = driver.executor.kv.data.clone()
    driver.executor.submit(PlanBuilder(99).pack())
    driver.executor.reset()
    with pytest.raises(RuntimeError):
        driver.executor.collect()
    assert torch.equal(before, driver.executor.kv.data)
    assert before.any()
    assert not driver.executor.rules.needs.any()
    assert not driver.executor.tables.tokens.any()


def test_the_real_decoder_follows_its_golden() -> None:
    """Prompts in chunks, several at once, give the reference's greedy ids."""
    prompts = json.loads((LLAMA / "golden.json").read_text())["prompts"]
    model = load_model(LLAMA, device="cpu", dtype=torch.float32)
    made = Executor(model, kv_tokens=600, rows=4, max_context=200, step_tokens=64)
    made.warm_up()
    driver = Driver(made, 600)
    runnings = [Running(row, prompt["input_ids"], GREEDY) for row, prompt in enumerate(prompts[:3])]
    for running in runnings:
        driver.generate(running, 1, chunk=7)
    for _ in range(23):
        driver.step([(running, 1) for running in runnings])
    assert [running.produced for running in runnings] == [prompt["greedy_ids"] for prompt in prompts[:3]]


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "drawn"])
def test_logits_that_are_not_finite_are_told_and_touch_no_other_row(sampling: Sampling) -> None:
    prompts = [[5, 9, 1, 30], list(range(20)), [3]]
    broken = broken_beside(tiny()[1], prompts, [sampling] * 3)
    _, driver = tiny()
    whole = [Running(row, ids, sampling) for row, ids in enumerate(prompts)]
    for each in whole:
        driver.step([(each, len(each.prompt))])
    for _ in range(6):
        driver.step([(each, 1) for each in whole])
    check_broken(broken, whole)


def test_a_mask_lasts_from_the_first_token_to_the_last() -> None:
    allowed = Sampling(seed=5, temperature=1000.0, allowed_ids=np.array([4, 7, 33], "<i4").tobytes())
    _, driver = tiny()
    assert set(driver.generate(Running(2, [5, 9, 1], allowed), 30)) == {4, 7, 33}
    assert len(set(driver.generate(Running(2, [5, 9, 1], Sampling(seed=5, temperature=1000.0)), 30))) > 10
