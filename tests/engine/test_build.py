"""Building an engine: the facts that it finds, and those that a replaced process must repeat."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.config import EngineConfig, ModelConfig
from lightllm_mp.engine import build
from lightllm_mp.errors import ConfigError
from lightllm_mp.facts import EngineLimits, StateFacts
from tests.actors.embedded import described
from tests.paths import GOLDENS

GOLDEN = GOLDENS / "llama"


def test_facts_of_a_small_checkpoint() -> None:
    model = ModelConfig(device="cpu", data_type="float32")
    facts = build.build_engine(described(GOLDEN), model, EngineConfig(max_total_token_num=500)).facts
    assert (facts.engine.kv_tokens, facts.engine.max_context, facts.engine.max_input) == (500, 500, 499)
    assert (facts.model_name, facts.dtype, facts.engine.run_ahead) == ("llama", "float32", 0)
    assert facts.weight_bytes > 0


def test_given_end_ids_add_to_those_of_the_checkpoint() -> None:
    own = described(GOLDEN).spec.eos_ids
    model = ModelConfig(device="cpu", eos_id=(7, *own))
    assert build.build_engine(described(GOLDEN), model, EngineConfig(max_total_token_num=99)).facts.eos_ids == (7, *own)


def test_a_replaced_process_offers_as_much_as_its_predecessor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if less memory is free than at the first process's measurement."""
    monkeypatch.setattr(build, "kv_budget", lambda device, fraction, **beside: 100_000)
    with pytest.raises(ConfigError, match="max-total-token-num"):
        build.build_engine(described(GOLDEN), ModelConfig(device="cpu"), EngineConfig(max_total_token_num=3000))
    promised = EngineLimits(kv_tokens=3000, rows=5, max_context=700)
    built = build.build_engine(described(GOLDEN), ModelConfig(device="cpu"), EngineConfig(), promised=promised)
    limits = built.facts.engine
    assert (limits.kv_tokens, limits.rows, limits.max_context, limits.max_input) == (3000, 5, 700, 699)


def test_a_hybrid_has_states_and_its_successor_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = ModelConfig(device="cpu", data_type="float32"), EngineConfig(running_max_req_size=7, state_grain=9)
    first = build.build_engine(described(GOLDENS / "qwen3_next"), model, asked)
    assert first.facts.engine.states == StateFacts(checkpoints=28, grain=9)
    pool = first.executor.kv.states
    assert pool is not None
    assert (pool.rows, pool.checkpoints) == (7, 28)
    assert first.facts.state_bytes == pool.recurrent.nbytes + pool.conv.nbytes
    monkeypatch.setattr(build, "kv_budget", lambda device, fraction, **beside: 100)
    again = build.build_engine(described(GOLDENS / "qwen3_next"), model, asked, promised=first.facts.engine)
    assert again.facts == first.facts


def test_models_that_cannot_go_back_have_no_drafts(caplog: pytest.LogCaptureFixture) -> None:
    asked = EngineConfig(speculative_algorithm="ngram", speculative_num_draft_tokens=5)
    found = {
        name: build.draft_tokens(described(GOLDENS / name).spec, asked) for name in ("llama", "qwen3_next", "bge_m3")
    }
    assert found == {"llama": 5, "qwen3_next": 0, "bge_m3": 0}
    assert "linear attention goes on without drafts" in caplog.text
    assert build.draft_tokens(described(GOLDEN).spec, EngineConfig()) == 0


def test_a_pool_that_does_not_fit_is_clamped_where_the_operator_allows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "kv_budget", lambda device, fraction, **beside: 100_000)
    asked = EngineConfig(max_total_token_num=64000, max_req_total_len=64000, clamp_max_total_token_num=True)
    limits = build.build_engine(described(GOLDEN), ModelConfig(device="cpu"), asked).facts.engine
    assert 2 < limits.max_context <= limits.kv_tokens < 3000
    assert caplog.messages == [f"--max-total-token-num 64000: only {limits.kv_tokens} fit"]


def test_8_bit_kv_holds_more_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "kv_budget", lambda device, fraction, **beside: 100_000)
    model, tokens = ModelConfig(device="cpu", data_type="float32"), {}
    for name, stored in (("auto", torch.float32), ("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
        built = build.build_engine(described(GOLDEN), model, EngineConfig(kv_cache_dtype=name))
        tokens[name] = built.facts.engine.kv_tokens
        assert built.executor.kv.data.dtype == stored
        assert built.facts.kv_bytes <= 100_000
    assert tokens["int8"] == tokens["fp8"] > 3 * tokens["auto"]


def test_latent_kv_is_not_stored_in_8_bits() -> None:
    folder, asked = GOLDEN.parent / "deepseek_v2", EngineConfig(kv_cache_dtype="int8")
    with pytest.raises(ConfigError, match=r"--kv-cache-dtype int8: .*latent"):
        build.build_engine(described(folder), ModelConfig(device="cpu"), asked)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        build.build_engine(described(GOLDEN), ModelConfig(device="cuda"), EngineConfig())
