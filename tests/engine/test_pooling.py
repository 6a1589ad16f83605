"""Embeddings of every pooling, in chunks and together: the rows depend only on the prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightllm_mp.engine.build import keeps_prefixes, longest_prompt, longest_step, most_rows, pooled_facts
from lightllm_mp.engine.executor import Executor
from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import Pooled, Terms, Tokenized
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.plan import ROWS_BYTES
from lightllm_mp.sampling_parameters import POOLED
from lightllm_mp.scheduler.scheduler import Scheduler
from tests.models.runner import Runner
from tests.paths import GOLDENS

PROMPTS = [
    prompt["input_ids"] for prompt in json.loads((GOLDENS / "qwen3_embedding/golden.json").read_text())["prompts"]
]


def with_pooling(folder: Path, mode: str, *, normalize: bool, **config: Any) -> Path:
    """A copy of the golden embedding model with another pooling."""
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
    """The rows of the prompts, all requested at once."""
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
        pooled=pooled_facts(model.spec, step_tokens),
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


def test_the_limits_of_prompts_and_steps():
    encoder, decoder = read_model_config(GOLDENS / "bge_m3"), read_model_config(GOLDENS / "llama")
    embedder = read_model_config(GOLDENS / "qwen3_embedding")
    assert [longest_step(encoder, usual, most, 4) for usual, most in ((64, None), (512, None), (64, 100))] == [
        128,
        512,
        100,
    ]
    assert [longest_step(spec, 64, None, 4) for spec in (decoder, embedder)] == [64, 64]
    images = read_model_config(GOLDENS / "gemma3_vl")
    assert [longest_step(images, usual, None, 4) for usual in (8, 64)] == [20, 64]
    assert [longest_prompt(spec, 128, None) for spec in (encoder, embedder, decoder)] == [128, 128, 127]
    assert [longest_prompt(spec, 128, 20) for spec in (encoder, embedder, decoder)] == [20, 20, 20]
    assert [keeps_prefixes(spec) for spec in (encoder, embedder, decoder)] == [False, True, True]
    facts = pooled_facts(encoder, 64)
    assert facts is not None
    assert (facts.task, facts.width, facts.whole_prompts) == ("embed", 64, 64)
    assert pooled_facts(decoder, 64) is None


def test_so_few_rows_that_an_answer_holds_them():
    spec = read_model_config(GOLDENS / "qwen3_embedding")
    assert most_rows(spec, 256) == 256
    assert most_rows(spec, 1 << 20) * 4 * 64 == ROWS_BYTES
    assert most_rows(read_model_config(GOLDENS / "llama"), 1 << 20) == 1 << 20


@pytest.mark.parametrize("folder", ["qwen3_embedding", "bge_m3"])
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_in_16_bits(folder, quantization):
    golden = load_file(GOLDENS / folder / "golden.safetensors")
    model = load_model(GOLDENS / folder, dtype=torch.bfloat16, quantization=quantization)
    prompts = [golden[f"p{i}.input_ids"].tolist() for i in range(6)]
    for i, row in enumerate(embed(model, prompts, step_tokens=200)):
        assert float(row @ golden[f"p{i}.embedding"].numpy()) > 0.998
