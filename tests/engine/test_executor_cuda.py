"""The executor on a GPU, with its graphs, against golden outputs and against itself without graphs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.engine.tiny_model import Driver, Running, broken_beside, check_broken
from tests.paths import GOLDENS

pytest.importorskip("triton", reason="triton is not installed")

from lightllm_mp.engine.cuda_steps import CudaSteps
from lightllm_mp.engine.executor import Executor
from lightllm_mp.facts import StateFacts
from lightllm_mp.messages import Sampling
from lightllm_mp.models.checkpoint.loader import load_model
from tests.engine.test_golden_steps import Run
from tests.engine.test_speculative_steps import draft_from

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

FOLDERS = (
    *("llama", "qwen", "gemma2", "deepseek_v2", "mixtral", "bloom", "qwen3_moe", "chatglm2"),
    *("deepseek_v3", "glm4_moe", "minimax_m2", "qwen3_next"),
)
GREEDY = Sampling(seed=0)
DRAWN = Sampling(seed=3, temperature=0.9, top_p=0.9, top_k=50, repetition_penalty=1.1)


def made(name: str, *, graphs: bool = True, dtype: torch.dtype = torch.float32, **options) -> Driver:
    model = load_model(GOLDENS / name, device="cuda", dtype=dtype)
    executor = Executor(model, kv_tokens=4000, rows=12, max_context=250, step_tokens=256, device="cuda", **options)
    assert isinstance(executor._steps, CudaSteps)
    executor.warm_up()
    if not graphs:
        executor._steps._graphs = None
    return Driver(executor, 4000)


def answers(driver: Driver, prompts: list[list[int]], sampling: Sampling, *, together: bool) -> list[list[int]]:
    running = [Running(i, p, sampling) for i, p in enumerate(prompts)]
    if not together:
        return [driver.generate(r, 24) for r in running]
    for r in running:
        driver.step([(r, len(r.prompt))])
    for _ in range(23):
        driver.step([(r, 1) for r in running])
    return [r.produced for r in running]


@pytest.fixture(params=FOLDERS)
def golden(request) -> tuple[str, list[list[int]], list[list[int]]]:
    entries = json.loads((GOLDENS / request.param / "golden.json").read_text())["prompts"]
    entries = [e for e in entries if len(e["input_ids"]) < 200][:8]
    return request.param, [e["input_ids"] for e in entries], [e["greedy_ids"] for e in entries]


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_goldens(golden, graphs: bool, together: bool) -> None:
    """Greedy ids in float32: with graphs and without, alone and in a batch."""
    name, prompts, expected = golden
    if name == "qwen":  # the plain driver sets no length class
        prompts, expected = prompts[:1], expected[:1]
    assert answers(made(name, graphs=graphs), prompts, GREEDY, together=together) == expected


@pytest.mark.parametrize("step_tokens", [23, 64, 300])
@pytest.mark.parametrize(("checkpoints", "grain"), [(50, 1), (3, 7)])
def test_states_of_hybrids_are_saved_and_loaded(step_tokens: int, checkpoints: int, grain: int) -> None:
    """All prompts twice with a step in flight: states are copied within chunks, at their ends and behind graphs."""
    run = Run("qwen3_next", 1, device="cuda", step_tokens=step_tokens, states=StateFacts(checkpoints, grain))
    run.executor.warm_up()
    for turn in (1, 2):
        run.ask_all(turn)
        run.work().check(turn)
    assert run.scheduler.gauges()["prefix_hit_tokens"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_draws_do_not_depend_on_graphs(dtype) -> None:
    prompts = [[5, 9, 1, 30], list(range(20)), [3], [8, 8, 8, 2, 2, 11, 39]]
    first = answers(made("llama", dtype=dtype), prompts, DRAWN, together=True)
    assert first == answers(made("llama", dtype=dtype, graphs=False), prompts, DRAWN, together=True)
    assert len({tuple(ids) for ids in first}) == 4


@pytest.mark.parametrize(("kv_dtype", "near"), [(torch.int8, 0.05), (torch.float8_e4m3fn, 0.5)], ids=str)
def test_eight_bit_kv(kv_dtype, near: float) -> None:
    """The same with graphs and without, and near the result of exact keys and values."""
    prompts = [[5, 9, 1, 30], list(range(20)), [3], [8, 8, 8, 2, 2, 11, 39]]
    rounded = answers(made("llama", kv_dtype=kv_dtype), prompts, GREEDY, together=True)
    assert rounded == answers(made("llama", kv_dtype=kv_dtype, graphs=False), prompts, GREEDY, together=True)
    pair = [Running(0, list(range(20)), GREEDY) for _ in range(2)]
    for running, driver in zip(pair, (made("llama"), made("llama", kv_dtype=kv_dtype)), strict=True):
        driver.step([(running, 12)])
        driver.step([(running, 8)])
    assert abs(pair[0].logprobs[0] - pair[1].logprobs[0]) < near


class Unwaiting:
    """An executor whose `submit` must not synchronise with the device."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.collect = executor, executor.collect

    def submit(self, plan: bytes) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.executor.submit(plan)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_steady_step_waits_for_nothing(sampling: Sampling) -> None:
    driver = made("llama")
    running = [Running(i, [5, 9, i], sampling) for i in range(3)]
    for r in running:
        driver.step([(r, 3)])
    for _ in range(3):
        driver.step([(r, 1) for r in running])
    driver.executor = Unwaiting(driver.executor)
    driver.step([(r, 1) for r in running])


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_logits_that_are_not_finite_are_told_and_touch_no_other_row(graphs: bool, sampling: Sampling) -> None:
    prompts = [[5, 9, 1, 30], list(range(20)), [3]]
    broken = broken_beside(made("llama", graphs=graphs), prompts, [sampling] * 3)
    driver, whole = made("llama", graphs=graphs), [Running(row, ids, sampling) for row, ids in enumerate(prompts)]
    for each in whole:
        driver.step([(each, len(each.prompt))])
    for _ in range(6):
        driver.step([(each, 1) for each in whole])
    check_broken(broken, whole)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_mask_lasts_from_the_first_token_to_the_last(graphs: bool) -> None:
    rules = Sampling(seed=5, temperature=1000.0, allowed_ids=np.array([4, 7, 33], "<i4").tobytes())
    driver, free = made("llama", graphs=graphs), Running(0, [5, 9, 1], Sampling(seed=5, temperature=1000.0))
    masked = Running(2, [5, 9, 1], rules)
    for each in (masked, free):
        driver.step([(each, 3)])
    driver.executor = Unwaiting(driver.executor)
    for _ in range(20):
        driver.step([(masked, 1), (free, 1)])
    assert set(masked.produced) == {4, 7, 33}
    assert len(set(free.produced)) > 8


@pytest.mark.parametrize("folder", ["llama", "qwen", "gemma2", "deepseek_v2", "qwen3_moe"])
@pytest.mark.parametrize("depth", [0, 1])
def test_drafts_change_no_answer(folder: str, depth: int) -> None:
    run = Run(folder, depth, device="cuda", draft_tokens=5)
    draft_from(run, {100 + number: prompt["greedy_ids"] for number, prompt in enumerate(run.golden)}, right=0.8)
    run.ask_all()
    run.work().check()
    assert run.scheduler.gauges()["accepted_tokens"] > 50
