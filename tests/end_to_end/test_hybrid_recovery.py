"""A hybrid checkpoint in real processes: every sequence continues from the right recurrent state, whichever process is
killed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.topology import EMBEDDED, topology
from lightllm_mp.config import Config, EngineConfig, ModelConfig, SupervisorConfig
from tests.actors.embedded import Embedded, Shared, embedded, on_shared
from tests.paths import GOLDENS

STREAMS, TOKENS = 8, 60
SYSTEM = "A long beginning that all prompts of the operator share, so that it is computed once. "
CONFIG = Config(
    model=ModelConfig(data_type="float32", device="cpu"),
    engine=EngineConfig(
        max_total_token_num=700, running_max_req_size=6, state_checkpoints=24, state_grain=4, run_ahead=1, threads=1
    ),
    supervisor=SupervisorConfig(max_restarts=100, log_level="warning"),
)


@contextlib.asynccontextmanager
async def hybrid(folder: Path) -> AsyncIterator[Embedded]:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDENS / "qwen3_next" / file, folder)
    async with embedded(folder, CONFIG, topology(front=EMBEDDED, max_body=1 << 20)) as engine:
        yield engine


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Embedded]]:
    engine = Shared(lambda: hybrid(tmp_path_factory.mktemp("hybrid")))
    yield engine
    engine.close()


async def answers(engine: Embedded, victim: str = "") -> list[list[int]]:
    """Answers of more streams than rows, which do not fit into memory together; half of them share one prompt. `victim`
    is killed at the 20th token of the first stream."""
    prompts = [SYSTEM * 2 + ("Tell me." if i % 2 else f"Tell me number {i} " * i) for i in range(STREAMS)]
    lives = [engine.submit(text, TOKENS, seed=0) for text in prompts]
    return await collect(engine, lives, victim)


async def collect(engine: Embedded, lives: Sequence[LiveRequest], victim: str) -> list[list[int]]:
    """The ids of all answers. `victim`, if it is named, is killed at the 20th token of the first one."""

    async def one(live: LiveRequest) -> list[int]:
        ids = []
        async for event in live:
            ids.append(event.id)
            if victim and live is lives[0] and len(ids) == 20:
                engine.kill(victim)
        live.close()
        return ids

    return await asyncio.gather(*map(one, lives))


@on_shared
async def test_a_killed_process_changes_no_answer(engine: Embedded) -> None:
    undisturbed = await answers(engine)
    assert all(len(ids) == TOKENS for ids in undisturbed)
    assert undisturbed[1] == undisturbed[3] != undisturbed[2]
    for victim in ("tokenizer", "router", "worker0", "detokenizer", "worker0"):
        before = sum(engine.supervisor.restarts.values())
        assert await answers(engine, victim) == undisturbed, f"after the death of {victim}"
        assert sum(engine.supervisor.restarts.values()) == before + 1
    numbers = await engine.until_idle()
    assert numbers["kv_used"] == 0
    assert numbers["prefix_hit_tokens"] > STREAMS // 2 * len(SYSTEM)
    assert 0 < numbers["state_checkpoints_used"] <= numbers["state_checkpoints"] == 24
