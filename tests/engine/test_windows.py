"""A model with a window in every layer, through scheduler and executor: tokens behind the window give up their slots,
and answers are those of a run that keeps all slots."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file

from lightllm_mp.engine.window_sizing import window_of_all
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.scheduler.admission import Admission
from tests.engine.test_golden_steps import NEW, Run
from tests.models.runner import Runner
from tests.paths import GOLDENS

WINDOW = 16
POOL = 130
"""Slots for the longest sequence (97 + 24 tokens) and hardly more; all sequences together have 388."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small Mistral 7B v0.1: the llama checkpoint with a window, and its answers without a scheduler."""
    path = shutil.copytree(GOLDENS / "llama", tmp_path_factory.mktemp("windows") / "mistral")
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": WINDOW}
    (path / "config.json").write_text(json.dumps(config))
    golden, seen = json.loads((path / "golden.json").read_text()), {}
    decoder = load_model(path, dtype=torch.float32)
    for i, prompt in enumerate(golden["prompts"]):
        runner = Runner(decoder)
        sequence = runner.sequence()
        ids, logits = runner.decode([(sequence, runner.prefill(sequence, prompt["input_ids"]))], NEW)
        prompt["greedy_ids"] = ids[0]
        seen[f"p{i}.greedy_logprobs"] = logits[0].log_softmax(-1).amax(-1).contiguous()
    (path / "golden.json").write_text(json.dumps(golden))
    save_file(seen, path / "golden.safetensors")
    return str(path)


@pytest.mark.parametrize(("step_tokens", "depth"), [(7, 0), (64, 1)])
def test_a_small_pool_serves_all_at_once(folder: str, depth: int, step_tokens: int) -> None:
    run = Run(folder, depth, step_tokens=step_tokens, kv_tokens=POOL)
    run.ask_all()
    run.work().check()
    assert run.scheduler.gauges()["preemptions"] == 0
    held = Run(folder, depth, step_tokens=step_tokens, kv_tokens=POOL, window=0)
    held.ask_all()
    held.work().check()
    assert run.scheduler.gauges()["steps"] < held.scheduler.gauges()["steps"], "more sequences fit at once"


@pytest.mark.parametrize("kv_tokens", [POOL, 400])
def test_after_a_prefix_hit(folder: str, kv_tokens: int) -> None:
    """In a small pool the beginning of a prompt may be evicted; the answers do not change."""
    run = Run(folder, kv_tokens=kv_tokens)
    for number in reversed(range(len(run.golden))):
        for turn in (1, 2):
            run.ask(number, turn=turn)
            run.work()
    run.check()
    run.check(turn=2)
    assert all(run.cached[200 + i] == prompt["length"] - 1 for i, prompt in enumerate(run.golden))


def test_preempted(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Admission, "admits", lambda *_: True)
    run = Run(folder, 1, kv_tokens=POOL, step_tokens=40)
    for turn in (1, 2):
        run.ask_all(turn=turn)
    run.work()
    for turn in (1, 2):
        run.check(turn=turn)
    assert run.scheduler.gauges()["preemptions"] > 0


def test_resumed(folder: str) -> None:
    run = Run(folder, kv_tokens=POOL)
    run.ask_all(emitted=23)
    run.work().check(emitted=23)


def test_a_layer_without_a_window_needs_all_slots() -> None:
    model = read_model_config(GOLDENS / "llama")
    assert window_of_all(replace(model, window=8)) == 8
    assert window_of_all(replace(model, window=8, global_layers=(0,))) == window_of_all(model) == 0
