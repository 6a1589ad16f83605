"""A checkpoint with windows in some layers on two ranks, with few slots for these layers: every sequence continues with
the same tokens, whichever process is killed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lightllm_mp.actors.topology import EMBEDDED, topology
from lightllm_mp.config import Config, EngineConfig, ModelConfig, SupervisorConfig
from tests.actors.embedded import Embedded, Shared, embedded, on_shared
from tests.end_to_end.test_hybrid_recovery import STREAMS, SYSTEM, TOKENS, answers
from tests.paths import GOLDENS

CONFIG = Config(
    model=ModelConfig(data_type="float32", device="cpu"),
    engine=EngineConfig(
        tp=2,
        max_total_token_num=1200,
        swa_full_tokens_ratio=0.2,
        running_max_req_size=6,
        batch_max_tokens=32,
        run_ahead=1,
        threads=1,
    ),
    supervisor=SupervisorConfig(max_restarts=100, log_level="warning"),
)
WINDOW_TOKENS = 240


@contextlib.asynccontextmanager
async def windowed(folder: Path) -> AsyncIterator[Embedded]:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDENS / "gemma3" / file, folder)
    async with embedded(folder, CONFIG, topology(front=EMBEDDED, ranks=2, max_body=1 << 20)) as engine:
        yield engine


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Embedded]]:
    engine = Shared(lambda: windowed(tmp_path_factory.mktemp("windowed")))
    yield engine
    engine.close()


@on_shared
async def test_a_killed_process_changes_no_answer(engine: Embedded) -> None:
    undisturbed = await answers(engine)
    assert all(len(ids) == TOKENS for ids in undisturbed)
    assert undisturbed[1] == undisturbed[3] != undisturbed[2]
    for victim in ("router", "worker1"):
        assert await answers(engine, victim) == undisturbed, f"after the death of {victim}"
    numbers = await engine.until_idle()
    assert numbers["kv_used"] == numbers["kv_window_used"] == 0
    assert numbers["kv_window_total"] == WINDOW_TOKENS < STREAMS * (2 * len(SYSTEM) + TOKENS)
    assert numbers["prefix_hit_tokens"] > STREAMS // 2 * len(SYSTEM)
