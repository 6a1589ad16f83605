"""Embeddings of every pooling, in chunks and together: the rows follow from the prompt alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightllm_mp.engine.build import keeps_prefixes, pooled_facts
from lightllm_mp.engine.executor import Executor
from lightllm_mp.messages import EngineLimits, Pooled, Terms, Tokenized
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.sampling_parameters import POOLED
from lightllm_mp.scheduler.scheduler import Scheduler
from tests.models.runner import Runner
from tests.paths import GOLDENS

PROMPTS = [
    prompt["input_ids"] for prompt in json.loads((GOLDENS / "qwen3_embedding/golden.json").read_text())["prompts"]
]


def with_pooling(folder: Path, mode: str, *, normalize: bool, **config: Any) -> Path:
    """A copy of the golden embedding model that pools otherwise."""
    shutil.copytree(GOLDENS / "qwen3_embedding", folder, dirs_exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_lasttoken": False, mode: True}))
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules if normalize else modules[:2]))
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    return folder


def embed(
    model: Decoder, prompts: list[list[int]], *, step_tokens: int = 64, kv_tokens: int = 2000
) -> list[np.ndarray]:
    """The rows of the prompts, all asked for at once."""
    executor = Executor(model, kv_tokens=kv_tokens, rows=16, max_context=400, step_tokens=step_tokens)
    executor.warm_up()
    limits = EngineLimits(
        kv_tokens=kv_tokens,
        rows=16,
        max_context=400,
        max_input=400,
        step_tokens=step_tokens,
        vocab_size=model.spec.ids,
        prompt_cache=keeps_prefixes(model.spec),
        pooled=pooled_facts(model.spec),
    )
    scheduler, rows = Scheduler(limits), {}
    for rid, ids in enumerate(prompts):
        scheduler.add(Tokenized(rid, Terms(POOLED), np.array(ids, "<i4").tobytes(), len(ids)))
    while (plan := scheduler.plan()) is not None:
        executor.submit(plan)
        scheduler.done(executor.collect())
        rows |= {
            event.rid: np.frombuffer(event.row, "<f4") for event in scheduler.take_events() if isinstance(event, Pooled)
        }
    scheduler.check_integrity()
    return [rows[rid] for rid in range(len(prompts))]


@pytest.fixture(scope="module")
def states() -> list[torch.Tensor]:
    """The hidden states of all positions."""
    model = load_model(GOLDENS / "qwen3_embedding", dtype=torch.float32)
    runner, found = Runner(model), []
    model.pool = torch.clone  # type: ignore[method-assign]
    for ids in PROMPTS:
        found.append(runner.prefill(runner.sequence(), ids))
    return found


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("step_tokens", [1, 7, 400])
def test_mean(tmp_path, states, normalize, step_tokens):
    model = load_model(with_pooling(tmp_path, "pooling_mode_mean_tokens", normalize=normalize), dtype=torch.float32)
    rows = embed(model, PROMPTS, step_tokens=step_tokens)
    for row, hidden in zip(rows, states, strict=True):
        mean = hidden.mean(0)
        expected = mean / mean.norm() if normalize else mean
        assert np.abs(row - expected.numpy()).max() < 1e-5


def test_the_bits_of_a_mean_follow_from_the_prompt(tmp_path):
    model = load_model(with_pooling(tmp_path, "pooling_mode_mean_tokens", normalize=True), dtype=torch.float32)
    alone = [embed(model, [ids])[0].tobytes() for ids in PROMPTS]
    for step_tokens in (1, 7, 64, 400):
        assert [row.tobytes() for row in embed(model, PROMPTS, step_tokens=step_tokens)] == alone
    again = embed(model, [*PROMPTS, *PROMPTS[::-1]], kv_tokens=130, step_tokens=16)
    assert [row.tobytes() for row in again] == alone + alone[::-1]


@pytest.mark.parametrize("length", [1, 399, 400])
def test_a_prompt_may_fill_the_context(tmp_path, length):
    model = load_model(with_pooling(tmp_path, "pooling_mode_lasttoken", normalize=False), dtype=torch.float32)
    ids = (np.arange(length) % 200 + 3).tolist()
    assert np.isfinite(embed(model, [ids], kv_tokens=400)[0]).all()


def test_lengths_that_an_embedding_may_be_cut_to(tmp_path):
    def shorter(name: str, **config: Any) -> tuple[int, ...] | None:
        folder = with_pooling(tmp_path / name, "pooling_mode_lasttoken", normalize=True, **config)
        pooling = load_model(folder, dtype=torch.float32).spec.pooling
        assert pooling is not None
        return pooling.shorter

    assert shorter("as the family") == ()
    assert shorter("none", is_matryoshka=False) is None
    assert shorter("listed", matryoshka_dimensions=[16, 32]) == (16, 32)
