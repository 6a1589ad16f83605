"""How KV memory is shared out between layers with windows and others, and what that is worth."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from msgspec.structs import replace

from lightllm_mp.config import EngineConfig, ModelConfig
from lightllm_mp.engine import build
from lightllm_mp.engine.kv_sizing import MemoryPlan, plan_memory, promised_memory
from lightllm_mp.engine.window_sizing import has_both_kinds, window_tokens, windowed_limits
from lightllm_mp.errors import ConfigError
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.spec import ModelSpec
from tests.actors.embedded import described
from tests.engine.tiny_model import spec
from tests.paths import GOLDENS

GIB = 1 << 30
LONG = 32768


class Shape(NamedTuple):
    layers: int
    global_layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    window: int
    budget: int
    """Bytes that the weights leave on a GPU of 141 GB."""

    @property
    def spec(self) -> ModelSpec:
        sizes = {name: getattr(self, name) for name in ("layers", "global_layers", "kv_heads", "head_dim", "window")}
        return replace(spec(max_context=131072), **sizes)


GEMMA = Shape(62, tuple(range(5, 62, 6)), 16, 128, 1024, 70 * GIB)
"""Gemma 3 27B."""
OSS = Shape(24, tuple(range(1, 24, 2)), 8, 64, 128, 110 * GIB)
"""gpt-oss-20b."""


def plan(shape: Shape, **flags: Any) -> MemoryPlan:
    limits = windowed_limits(shape.spec, 2048, 1)
    return plan_memory(shape.spec, torch.bfloat16, EngineConfig(**flags), shape.budget, limits=limits)


def contexts(shape: Shape, tokens: int, **flags: Any) -> int:
    """How many sequences of so many tokens decode at once."""
    found, limits = plan(shape, **flags), windowed_limits(shape.spec, 2048, 1)
    held = min(limits.window + limits.window_grain, tokens)
    near = (found.window_tokens - limits.window_slots) // held if found.window_tokens else found.kv_tokens
    return min(found.kv_tokens // tokens, near)


@pytest.mark.parametrize(("shape", "shared", "apart"), [(GEMMA, 4, 10), (OSS, 73, 136)])
def test_long_contexts_that_fit_the_same_memory(shape: Shape, shared: int, apart: int) -> None:
    """The figures of docs/tuning.md: where all layers share their slots, and where they do not."""
    assert contexts(shape, LONG, swa_full_tokens_ratio=1.0) == shared
    assert contexts(shape, LONG) == apart
    assert plan(shape).kv_bytes <= shape.budget
    assert plan(shape).kv_bytes > 0.999 * shape.budget


@pytest.mark.parametrize("shape", [GEMMA, OSS])
def test_contexts_within_the_window_lose_at_most_a_quarter(shape: Shape) -> None:
    whole, two = plan(shape, swa_full_tokens_ratio=1.0), plan(shape)
    assert whole.window_tokens == 0
    assert two.kv_tokens > 1.8 * whole.kv_tokens
    assert two.window_tokens >= min(0.74 * whole.kv_tokens, 256 * shape.window)


def test_the_ratio_is_what_the_flag_says() -> None:
    found = plan(GEMMA, swa_full_tokens_ratio=0.1)
    assert found.window_tokens / found.kv_tokens == pytest.approx(0.1, rel=1e-3)
    assert found.kv_tokens > 600_000
    assert found.kv_bytes == pytest.approx(GEMMA.budget, rel=1e-3)
    assert (
        plan(GEMMA, swa_full_tokens_ratio=1e-9).window_tokens
        == windowed_limits(GEMMA.spec, 2048, 1).window_slots + 1024
    )


def test_a_given_pool_is_that_of_layers_without_a_window() -> None:
    found = plan(GEMMA, max_total_token_num=500_000)
    assert (found.kv_tokens, plan(GEMMA, max_total_token_num=100_000).window_tokens) == (500_000, 0), "it fits as it is"
    assert 60_000 < found.window_tokens < plan(GEMMA).window_tokens, "what the others leave"
    assert found.kv_bytes <= GEMMA.budget
    given = plan(GEMMA, max_total_token_num=100_000, swa_full_tokens_ratio=0.2)
    assert (given.kv_tokens, given.window_tokens) == (100_000, 20_000)


def test_more_than_fits_is_refused_or_clamped() -> None:
    with pytest.raises(ConfigError, match=r"--max-total-token-num 5000000 needs .* room for 8\d\d,?\d\d\d tokens"):
        plan(GEMMA, max_total_token_num=5_000_000)
    assert plan(GEMMA, max_total_token_num=5_000_000, clamp_max_total_token_num=True) == plan(GEMMA)


def test_where_all_fits_or_nothing_is_gained_all_layers_share() -> None:
    roomy, short = EngineConfig(running_max_req_size=1), EngineConfig(max_req_total_len=4096)
    limits, sizes = windowed_limits(GEMMA.spec, 2048, 1), KVPool.space_bytes(GEMMA.spec, torch.bfloat16)
    assert window_tokens(roomy, GEMMA.budget, sizes, limits, 1, 131072) == 0
    assert window_tokens(short, GEMMA.budget, sizes, limits, 256, 4096) == 0, "a chunk and a window are as long"
    assert window_tokens(EngineConfig(), 2 * GIB, sizes, limits, 256, 131072) == 0, "one sequence's windows take it all"
    for other in (replace(GEMMA.spec, global_layers=()), replace(GEMMA.spec, window=None)):
        assert not has_both_kinds(other)
        limits, sizes = windowed_limits(other, 2048, 1), KVPool.space_bytes(other, torch.bfloat16)
        assert window_tokens(EngineConfig(), GEMMA.budget, sizes, limits, 256, 131072) == 0


def test_a_pool_takes_what_was_planned() -> None:
    small = replace(GEMMA.spec, layers=6, global_layers=(5,), head_dim=16, kv_heads=1, window=32)
    config = EngineConfig(running_max_req_size=3, swa_full_tokens_ratio=0.5)
    found = plan_memory(small, torch.float32, config, 1 << 20, limits=windowed_limits(small, 8, 0))
    assert 0 < found.window_tokens < found.kv_tokens
    pool = KVPool(small, found.kv_tokens, dtype=torch.float32, window_slots=found.window_tokens)
    assert pool.data.nbytes == found.kv_bytes <= 1 << 20


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> build.BuiltEngine:
    monkeypatch.setattr(build, "kv_budget", lambda device, fraction, **beside: 1_000_000)
    config = EngineConfig(batch_max_tokens=16, running_max_req_size=4)
    return build.build_engine(described(GOLDENS / "gpt_oss"), ModelConfig(device="cpu", data_type="float32"), config)


def test_facts_tell_of_both_spaces_and_a_successor_offers_the_same(built: build.BuiltEngine) -> None:
    limits, pool = built.facts.engine, built.executor.kv
    assert limits.window == 24
    assert pool.spare_slots == (limits.kv_tokens, limits.window_tokens)
    assert limits.window_slots < limits.window_tokens < limits.kv_tokens
    assert built.facts.kv_bytes == pool.data.nbytes <= 1_000_000
    config = EngineConfig(batch_max_tokens=16, running_max_req_size=4)
    again = build.build_engine(
        described(GOLDENS / "gpt_oss"), ModelConfig(device="cpu", data_type="float32"), config, promised=limits
    )
    assert again.facts == built.facts
    sizes = KVPool.space_bytes(built.executor.model.spec, torch.float32)
    assert promised_memory(limits, sizes, 0).kv_bytes == built.facts.kv_bytes
