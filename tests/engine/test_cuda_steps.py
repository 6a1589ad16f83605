"""Steps as on a GPU, here with interpreted kernels, give the same answers as plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightllm_mp.facts import StateFacts
from lightllm_mp.messages import Sampling
from tests.engine.tiny_model import Driver, Running, TinyModel, broken_beside, check_broken

if torch.cuda.is_available():
    pytest.skip("kernels are compiled here; test_executor_cuda.py is about them", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from lightllm_mp.engine import executor as executor_module
from lightllm_mp.engine.cuda_steps import CudaSteps
from lightllm_mp.engine.executor import Executor
from lightllm_mp.engine.torch_steps import TorchSteps
from lightllm_mp.plan import PlanBuilder
from tests.engine.test_golden_steps import Run

GREEDY = Sampling(seed=0)
HOT = Sampling(seed=77, temperature=9.0, top_p=0.95, frequency_penalty=0.2)
PROMPTS = [[5, 9, 1, 30], list(range(20)), [3], [8, 8, 8, 2, 2, 11, 39]]


class CapturedInName:
    """Stands for CUDA graphs: it runs what they would capture."""

    def __init__(self, work, most: int) -> None:
        self.work, self.replayed = work, []

    def capture(self, count: int | None = None) -> None:
        self.work(4)

    def size_for(self, sequences: int) -> int | None:
        return 4 if sequences <= 4 else None

    def replay(self, size: int) -> None:
        self.replayed.append(size)
        self.work(size)


@pytest.fixture
def driver(monkeypatch) -> Driver:
    monkeypatch.setattr(executor_module, "_steps", lambda device: CudaSteps)
    return made()


def made() -> Driver:
    executor = Executor(TinyModel(), kv_tokens=300, rows=6, max_context=64, step_tokens=48)
    executor.kv.data[:, :, :300].fill_(float("nan"))  # memory that was not written must not be read
    return Driver(executor, 300)


def run(driver: Driver) -> list[list[int]]:
    """Chunks and decode tokens in the same steps, in any order of rows."""
    a, b, c, d = (
        Running(row, p, s) for row, p, s in zip((4, 0, 5, 2), PROMPTS, (GREEDY, HOT, HOT, GREEDY), strict=True)
    )
    driver.step([(a, 4)])
    driver.step([(a, 1), (b, 7)])
    driver.step([(b, 7), (a, 1), (c, 1), (d, 3)])
    driver.step([(d, 4), (b, 6), (c, 1), (a, 1)])
    for _ in range(6):
        driver.step([(c, 1), (a, 1), (d, 1), (b, 1)])
        driver.step([(d, 1), (b, 1)])
    return [x.produced for x in (a, b, c, d)]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "drawn"])
def test_several_tokens_of_a_row_in_one_step(driver: Driver, graphs: bool, sampling: Sampling) -> None:
    """As with drafts: what follows each of them is what follows it in a step of its own."""
    steps = driver.executor._steps
    assert isinstance(steps, CudaSteps)
    if graphs:
        steps._graphs = CapturedInName(steps._decode, 6)
        steps.capture()
    alone = Running(1, PROMPTS[0], sampling)
    driver.generate(alone, 5)
    other = Running(3, PROMPTS[0], sampling)
    driver.generate(other, 1)
    builder, start = PlanBuilder(driver.step_number), len(other.prompt)
    draft = [*alone.produced[1:3], (alone.produced[3] + 1) % 40]
    builder.write_ids(3, start + 1, np.array(draft))
    builder.write_slots(3, start, np.array([driver.free.pop() for _ in range(4)]))
    builder.add_each(np.full(4, 3), np.arange(start, start + 4))
    ids = np.frombuffer(driver.executor.run(builder.pack()).ids, "<i4").tolist()
    assert ids[:3] == alone.produced[1:4]
    if graphs:
        assert steps._graphs.replayed[-1] == 4


@pytest.mark.parametrize("graphs", [False, True])
def test_the_same_ids_as_on_the_host(driver: Driver, monkeypatch, graphs: bool) -> None:
    steps = driver.executor._steps
    assert isinstance(steps, CudaSteps)
    if graphs:
        steps._graphs = CapturedInName(steps._decode, 6)
        steps.capture()
    monkeypatch.setattr(executor_module, "_steps", lambda device: TorchSteps)
    assert run(driver) == run(made())
    if graphs:
        assert steps._graphs.replayed == [4] * 12


def test_prompt_logprobs_beside_others(driver: Driver, monkeypatch) -> None:
    """Some steps need every row, others only the last ones; not every sequence is sampled."""
    monkeypatch.setattr(executor_module, "_steps", lambda device: TorchSteps)
    found = []
    for each in (driver, made()):
        a, b = Running(4, PROMPTS[0], GREEDY), Running(0, PROMPTS[1], Sampling(seed=0, prompt_logprobs=2))
        c, d = Running(5, PROMPTS[3], HOT), Running(1, [7, 7], GREEDY)
        steps = [[(b, 9), (a, 4)], [(b, 5), (c, 3), (a, 1)], [(b, 6), (c, 4), (d, 2)], [(a, 1), (b, 1), (c, 1), (d, 1)]]
        done = [each.step(step) for step in steps]
        model = each.executor.model
        assert model.ends_only[-4:] == [False] * 4
        columns = [np.frombuffer(logprobs, "<f4") for step in done for _, logprobs, _, _ in step.prompt]
        assert [len(column) for column in columns] == [9, 5, 5]
        found.append(([x.produced for x in (a, b, c, d)], np.concatenate(columns)))
        each.step([(a, 1), (d, 1)])
        assert model.ends_only[-1]
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)


def test_ids_are_used_before_anybody_collects_them(driver: Driver) -> None:
    expected = made().generate(Running(0, [5, 9, 1], GREEDY), 10)
    for step in range(10):
        builder, start = PlanBuilder(step), 2 + step if step else 0
        if not step:
            builder.setup(3, 3, GREEDY)
            builder.write_ids(3, 0, torch.tensor([5, 9, 1]).numpy())
        count = 1 if step else 3
        builder.write_slots(3, start, torch.arange(100 + start, 100 + start + count).numpy())
        builder.add(3, start, count, sample=True)
        driver.executor.submit(builder.pack())
    ids = b"".join(driver.executor.collect().ids for _ in range(10))
    assert torch.frombuffer(bytearray(ids), dtype=torch.int32).tolist() == expected


def test_after_a_reset_nothing_is_left(driver: Driver) -> None:
    first = run(driver)
    driver.executor.reset()
    assert run(driver) == first


def test_kernels_get_aligned_addresses(driver: Driver) -> None:
    """Unaligned ones send every launch of a step through Triton's slow path."""
    seen, forward = [], driver.executor.model.forward

    def watched(ids, batch, kv, images=(), ends_only=False):
        tensors = (ids, batch.positions, batch.slots, batch.seq_start, batch.context, batch.rows, batch.rotary_at)
        seen.extend(tensor.data_ptr() % 16 for tensor in tensors)
        return forward(ids, batch, kv, images, ends_only=ends_only)

    driver.executor.model.forward = watched
    steps = driver.executor._steps
    run(driver)
    steps._decode(3)
    assert len(seen) > 50
    assert not any(seen)


def with_graphs(driver: Driver) -> Driver:
    steps = driver.executor._steps
    steps._graphs = CapturedInName(steps._decode, 6)
    steps.capture()
    return driver


def test_recurrent_states_beside_graphs(monkeypatch) -> None:
    """A hybrid's short prompts twice, chunked, with a step in flight. Padding goes to the spare row's state."""
    monkeypatch.setattr(executor_module, "_steps", lambda device: CudaSteps)
    run = Run("qwen3_next", 1, step_tokens=23, states=StateFacts(9, 2))
    run.executor._steps._graphs = graphs = CapturedInName(run.executor._steps._decode, 4)
    for turn in (1, 2):
        for number in (3, 2):
            run.ask(number, turn=turn)
        run.work()
        assert all(run.ids[100 * turn + number] == run.golden[number]["greedy_ids"] for number in (2, 3))
    assert graphs.replayed
    assert run.cached[203] == 32


@pytest.mark.parametrize("graphs", [False, True])
def test_layers_with_windows_have_slots_of_their_own(monkeypatch, graphs: bool) -> None:
    """Few of them: prompts twice, chunked, with a step in flight. Padding goes to a spare slot in both spaces."""
    monkeypatch.setattr(executor_module, "_steps", lambda device: CudaSteps)
    run = Run("gemma3", 1, step_tokens=23, window=24, window_tokens=100)
    assert all(table.data_ptr() % 16 == 0 for table in run.executor.tables.slot_tables)
    if graphs:
        run.executor._steps._graphs = CapturedInName(run.executor._steps._decode, 4)
    for turn in (1, 2):
        for number in (3, 4):
            run.ask(number, turn=turn)
        run.work()
        assert all(run.ids[100 * turn + number] == run.golden[number]["greedy_ids"] for number in (3, 4))
    assert not graphs or run.executor._steps._graphs.replayed
    assert run.cached[204] == 32


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "drawn"])
def test_logits_that_are_not_finite_are_told_and_touch_no_other_row(
    driver: Driver, graphs: bool, sampling: Sampling
) -> None:
    drivers = [with_graphs(each) if graphs else each for each in (driver, made())]
    prompts = [[5, 9, 1, 30], list(range(20)), [3]]
    broken = broken_beside(drivers[0], prompts, [sampling] * 3)
    drivers[1].executor.kv.data.fill_(0.0)
    whole = [Running(row, ids, sampling) for row, ids in enumerate(prompts)]
    for each in whole:
        drivers[1].step([(each, len(each.prompt))])
    for _ in range(6):
        drivers[1].step([(each, 1) for each in whole])
    check_broken(broken, whole)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_mask_lasts_from_the_first_token_to_the_last(driver: Driver, graphs: bool) -> None:
    if graphs:
        with_graphs(driver)
    rules = Sampling(seed=5, temperature=1000.0, allowed_ids=np.array([4, 7, 33], "<i4").tobytes())
    masked, free = Running(2, [5, 9, 1], rules), Running(0, [5, 9, 1], Sampling(seed=5, temperature=1000.0))
    for each in (masked, free):
        driver.step([(each, 3)])
    for _ in range(20):
        driver.step([(masked, 1), (free, 1)])
    assert set(masked.produced) == {4, 7, 33}
    assert len(set(free.produced)) > 8
