"""Models with windows in some layers, through scheduler and executor: these layers have few slots of their own, and
answers are those of the reference, in which nothing is ever given up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightllm_mp.engine.executor import Executor
from lightllm_mp.messages import Sampling
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.plan import PlanBuilder
from lightllm_mp.scheduler.admission import Admission
from tests.engine.test_golden_images import ImageRun
from tests.engine.test_golden_steps import Run, model

TEXT, WITH_IMAGES = ("gemma2", "gemma3", "gpt_oss"), ("gemma3_vl", "gemma4")
FEW = 110
"""Slots of layers with windows: not one for each token of the longest prompt and its answer (97 + 24 tokens)."""
folders = pytest.mark.parametrize("folder", [*TEXT, *WITH_IMAGES])


def started(folder: str, depth: int = 0, **changes: Any) -> Run:
    window = model(folder).spec.window
    given = {"window": window, "window_tokens": FEW, "step_tokens": 24, "kv_tokens": 1000, **changes}
    run = (ImageRun if folder in WITH_IMAGES else Run)(folder, depth, **given)
    assert len(run.executor.kv.spare_slots) == len(run.scheduler._kv.spaces) == 2
    return run


@folders
@pytest.mark.parametrize(("step_tokens", "depth"), [(24, 0), (64, 1)])
def test_together(folder: str, depth: int, step_tokens: int) -> None:
    run = started(folder, depth, step_tokens=step_tokens, window_tokens=FEW + 128 * depth)
    run.ask_all()
    run.work().check()
    assert run.scheduler.gauges()["preemptions"] == 0


def test_token_by_token() -> None:
    run = started("gemma3", step_tokens=1)
    for number in range(len(run.golden)):
        run.ask(number)
        run.work()
    run.check()


@folders
def test_after_a_prefix_hit(folder: str) -> None:
    """The windows of a beginning are gone, which is no loss."""
    run = started(folder)
    for number in reversed(range(len(run.golden))):
        for turn in (1, 2):
            run.ask(number, turn=turn)
            run.work()
    run.check()
    run.check(turn=2)
    if folder in TEXT:
        assert all(run.cached[200 + i] == prompt["length"] - 1 for i, prompt in enumerate(run.golden))


@pytest.mark.parametrize(("folder", "depth"), [("gemma2", 0), ("gemma3_vl", 1), ("gemma4", 0), ("gpt_oss", 1)])
def test_preempted(folder: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "admits", lambda *_: True)
    run = started(folder, depth)
    run.ask_all()
    run.work().check()
    assert run.scheduler.gauges()["preemptions"] > 0


@folders
def test_resumed(folder: str) -> None:
    run = started(folder)
    run.ask_all(emitted=23)
    run.work().check(emitted=23)


@pytest.mark.parametrize(("folder", "keep_cache"), [("gemma3", True), ("gpt_oss", False), ("gemma4", True)])
def test_a_reset_in_the_middle(folder: str, keep_cache: bool) -> None:
    """As after a killed process: a worker that lives keeps its KV, a new one has none."""
    run = started(folder, 1)
    run.ask_all()
    for _ in range(8):
        plan = run.scheduler.plan()
        if plan is not None:
            run.executor.submit(plan)
        if plan is None or run.executor.pending > 1:
            run.scheduler.done(run.executor.collect())
    run.scheduler.check_integrity()
    run._listen()
    run.scheduler.reset(keep_cache)
    run.executor.reset()
    if isinstance(run, ImageRun):
        run.held.clear()
    run.ask_all(turn=2)
    run.work().check(turn=2)


def test_layers_have_the_slots_of_their_kind() -> None:
    spec = model("gemma4").spec
    pool = KVPool(spec, 50, dtype=torch.float32, window_slots=20)
    assert pool.spare_slots == (50, 20)
    found = [pool.layers[layer].keys.shape[0] - 1 for layer in range(spec.layers)]
    assert found == [20 if spec.window_of(layer) else 50 for layer in range(spec.layers)]
    assert len(set(found)) == 2
    assert pool.layers[3] is pool.layers[1], "a layer that shares keys and values has the slots of their layer"
    whole, near = KVPool.space_bytes(spec, torch.float32)
    assert pool.data.nbytes == 51 * whole + 21 * near
    assert whole + near == KVPool.token_bytes(spec, torch.float32)


@pytest.mark.parametrize(("window_tokens", "spaces"), [(0, 2), (20, 1)])
def test_a_plan_for_another_number_of_spaces_is_refused(window_tokens: int, spaces: int) -> None:
    executor = Executor(
        model("gemma3"), kv_tokens=20, rows=4, max_context=20, step_tokens=8, window_tokens=window_tokens
    )
    builder = PlanBuilder(0)
    builder.setup(0, 2, Sampling(seed=0))
    builder.write_ids(0, 0, np.zeros(2, np.int32))
    builder.write_slots(0, 0, np.zeros((spaces, 2), np.int32))
    builder.add(0, 0, 2, sample=True)
    with pytest.raises(ValueError, match=f"{2 * spaces} slots for 2 positions"):
        executor.submit(builder.pack())


def test_warm_up_writes_to_spare_slots_alone() -> None:
    executor = Executor(model("gemma3"), kv_tokens=20, rows=4, max_context=20, step_tokens=8, window_tokens=12)
    executor.warm_up()
    executor._run_worst_steps(20)
    for layer in executor.kv.layers.values():
        assert not layer.keys[:-1].any()
        assert layer.keys[-1].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@folders
@pytest.mark.parametrize("depth", [0, 1])
def test_on_a_gpu(folder: str, depth: int) -> None:
    """With graphs; prompts twice, in a pool that holds few windows."""
    run = started(folder, depth, device="cuda", window_tokens=2 * FEW)
    run.executor.warm_up()
    for layer in run.executor.kv.layers.values():
        for part in (layer.keys, layer.values):
            part[:-1].fill_(float("nan"))
    for turn in (1, 2):
        run.ask_all(turn=turn)
        run.work().check(turn=turn)
