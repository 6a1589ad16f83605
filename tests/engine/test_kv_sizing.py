"""The size of the KV pool and of the context."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace

from lightllm_mp.config import EngineConfig
from lightllm_mp.engine.kv_sizing import MemoryPlan, kv_budget, kv_bytes_per_token, plan_memory, promised_memory
from lightllm_mp.errors import ConfigError, ModelError
from lightllm_mp.facts import EngineLimits, StateFacts
from lightllm_mp.models.decoder.kv_pool import KVPool
from tests.engine.tiny_model import spec

MODEL = spec(max_context=64)
TOKEN = 2 * 16 * 4
"""Bytes of one token's KV: keys and values of 16 float32 each."""


def plan(budget_tokens: float, **flags: int | None) -> MemoryPlan:
    """With memory for `budget_tokens` slots, the spare one included."""
    return plan_memory(MODEL, torch.float32, EngineConfig(**flags), int(budget_tokens * TOKEN))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_takes_what_the_pool_takes(dtype: torch.dtype) -> None:
    wide = replace(MODEL, layers=3, kv_heads=2, head_dim=8)
    pool = KVPool(wide, 9, dtype=dtype)
    assert kv_bytes_per_token(wide, dtype) * 10 == pool.data.numel() * pool.data.element_size()


def test_the_pool_takes_what_fits() -> None:
    assert plan(1001) == MemoryPlan(kv_tokens=1000, kv_bytes=1001 * TOKEN, max_context=64, rows=256)


def test_the_pool_takes_no_more_than_all_rows_can_use() -> None:
    assert plan(10**6, running_max_req_size=5).kv_tokens == 5 * 64
    assert plan(10**6, running_max_req_size=5, max_req_total_len=10).kv_tokens == 50


@pytest.mark.parametrize(
    ("flags", "context"),
    [
        ({}, 64),
        ({"max_req_total_len": 20}, 20),
        ({"max_req_total_len": 500}, 64),
        ({"max_total_token_num": 30}, 30),
        ({"max_total_token_num": 30, "max_req_total_len": 30}, 30),
    ],
)
def test_the_context_is_the_shortest_of_model_flag_and_pool(flags: dict[str, int], context: int) -> None:
    assert plan(1000, **flags).max_context == context


@pytest.mark.parametrize(("window", "context"), [(0, 40), (17, 40), (16, 64)])
def test_a_sequence_whose_windows_fit_may_be_longer_than_the_pool(window: int, context: int) -> None:
    limits = EngineLimits(window=window, step_tokens=23)
    assert limits.window_slots in (0, 40, 41)
    for config in (EngineConfig(), EngineConfig(clamp_max_total_token_num=True, max_req_total_len=64)):
        memory = plan_memory(MODEL, torch.float32, config, 41 * TOKEN, limits=limits)
        assert (memory.kv_tokens, memory.max_context) == (40, context)


def test_little_memory_shortens_the_context() -> None:
    assert plan(41).max_context == plan(41).kv_tokens == 40


def test_the_flag_is_taken_as_it_is() -> None:
    assert plan(10**6, max_total_token_num=777, running_max_req_size=1).kv_tokens == 777


@pytest.mark.parametrize(
    ("flags", "tokens", "context"),
    [
        ({"max_total_token_num": 64000, "max_req_total_len": 64000}, 49, 49),
        ({"max_total_token_num": 40, "max_req_total_len": 60}, 40, 40),
        ({"max_total_token_num": 40, "max_req_total_len": 30}, 40, 30),
        ({"max_req_total_len": 60}, 49, 49),
    ],
)
def test_what_does_not_fit_may_be_clamped(flags: dict[str, int], tokens: int, context: int) -> None:
    found = plan(50, clamp_max_total_token_num=True, **flags)
    assert (found.kv_tokens, found.max_context) == (tokens, context)
    with pytest.raises(ModelError, match="no memory for a single request"):
        plan(2, clamp_max_total_token_num=True, **flags)


@pytest.mark.parametrize(
    ("room", "flags", "error", "words"),
    [
        (1, {}, ModelError, ["--mem-fraction", "--data-type"]),
        (0, {}, ModelError, ["--mem-fraction"]),
        (50, {"max_total_token_num": 50}, ConfigError, ["--max-total-token-num 50", "room for 49", "--mem-fraction"]),
        (50, {"max_total_token_num": 1}, ConfigError, ["--max-total-token-num 1", "at least 2"]),
        (50, {"max_req_total_len": 60}, ConfigError, ["--max-req-total-len 60", "49 tokens", "--mem-fraction"]),
        (
            500,
            {"max_req_total_len": 60, "max_total_token_num": 59},
            ConfigError,
            ["--max-req-total-len 60", "59 tokens", "--max-total-token-num"],
        ),
    ],
)
def test_what_does_not_fit_names_the_flag(
    room: int, flags: dict[str, int], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        plan(room, **flags)
    for word in words:
        assert word in str(caught.value)


def test_states_of_rows_take_half_and_copies_a_third_of_the_rest() -> None:
    budget, place = 1200 * TOKEN, 10 * TOKEN
    found = plan_memory(MODEL, torch.float32, EngineConfig(running_max_req_size=29), budget, place)
    assert (found.rows, found.checkpoints) == (29, 30)
    assert found.state_bytes == (29 + 1 + 30) * place
    assert found.kv_bytes == 600 * TOKEN
    assert found.kv_tokens == 599


def test_few_rows_have_four_copies_each() -> None:
    found = plan_memory(MODEL, torch.float32, EngineConfig(running_max_req_size=3), 1200 * TOKEN, 10 * TOKEN)
    assert (found.rows, found.checkpoints) == (3, 12)


def test_where_memory_is_short_fewer_sequences_run() -> None:
    found = plan_memory(MODEL, torch.float32, EngineConfig(), 1200 * TOKEN, 10 * TOKEN)
    assert found.rows == 59
    found = plan_memory(MODEL, torch.float32, EngineConfig(), 30 * TOKEN, 10 * TOKEN)
    assert (found.rows, found.checkpoints, found.kv_tokens) == (1, 0, 9)
    with pytest.raises(ModelError, match="no memory for a single request"):
        plan_memory(MODEL, torch.float32, EngineConfig(), 15 * TOKEN, 10 * TOKEN)


@pytest.mark.parametrize(
    ("flags", "checkpoints"),
    [
        ({"state_checkpoints": 0}, 0),
        ({"state_checkpoints": 50}, 50),
        ({"disable_prompt_cache": True}, 0),
        ({"disable_prompt_cache": True, "state_checkpoints": 50}, 0),
        ({"max_total_token_num": 800}, 9),
    ],
)
def test_the_number_of_copies_is_what_the_flags_say(flags: dict[str, int], checkpoints: int) -> None:
    config = EngineConfig(running_max_req_size=29, **flags)  # type: ignore[arg-type]
    assert plan_memory(MODEL, torch.float32, config, 1200 * TOKEN, 10 * TOKEN).checkpoints == checkpoints


def test_copies_that_do_not_fit_are_refused() -> None:
    config = EngineConfig(running_max_req_size=9, state_checkpoints=200)
    with pytest.raises(ConfigError, match="--state-checkpoints 200"):
        plan_memory(MODEL, torch.float32, config, 1200 * TOKEN, 10 * TOKEN)


@pytest.mark.parametrize("place", [0, 10 * TOKEN])
def test_a_successor_offers_what_was_promised(place: int) -> None:
    found = plan_memory(MODEL, torch.float32, EngineConfig(), 1200 * TOKEN, place)
    limits = EngineLimits(
        kv_tokens=found.kv_tokens,
        rows=found.rows,
        max_context=found.max_context,
        states=StateFacts(found.checkpoints, 64) if place else None,
    )
    assert promised_memory(limits, (TOKEN, 0), place) == found


def test_the_cpu_gives_a_third_of_the_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm_mp.engine.kv_sizing.free_memory", lambda: 30_000)
    assert kv_budget(torch.device("cpu"), 0.9) == 9_000


def test_cuda_keeps_back_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """9 of 10 bytes may be used, 4 are: 5 are left for KV."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6_000, 12_000))
    assert kv_budget(torch.device("cuda"), 0.9, free_before=10_000) == 5_000
    assert kv_budget(torch.device("cuda"), 0.9) == 4_800
    assert kv_budget(torch.device("cuda"), 0.1, free_before=10_000) == 0
