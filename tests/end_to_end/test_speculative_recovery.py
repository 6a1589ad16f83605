"""Drafts in real processes: answers are the same as without drafts, whichever process is killed in the middle."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from lightllm_mp.actors.topology import EMBEDDED, topology
from lightllm_mp.config import Config, EngineConfig, ModelConfig, SupervisorConfig
from lightllm_mp.messages import Sampling, Terms
from tests.actors.embedded import Embedded, Shared, embedded, on_shared
from tests.end_to_end.test_hybrid_recovery import collect
from tests.paths import GOLDENS

STREAMS, TOKENS = 4, 80
TWO = np.array([40, 50], "<i4").tobytes()
CONFIG = Config(
    model=ModelConfig(data_type="float32", device="cpu"),
    engine=EngineConfig(max_total_token_num=700, run_ahead=1, threads=1, speculative_algorithm="ngram"),
    supervisor=SupervisorConfig(max_restarts=100, log_level="warning"),
)


@contextlib.asynccontextmanager
async def drafting(folder: Path) -> AsyncIterator[Embedded]:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(GOLDENS / "llama" / file, folder)
    async with embedded(folder, CONFIG, topology(front=EMBEDDED, max_body=1 << 20)) as engine:
        yield engine


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Embedded]]:
    engine = Shared(lambda: drafting(tmp_path_factory.mktemp("drafting")))
    yield engine
    engine.close()


async def answers(engine: Embedded, *, speculate: bool = True, victim: str = "") -> list[list[int]]:
    """Answers of two ids, so that they repeat; half of the streams are sampled. `victim` is killed at the 20th token of
    the first stream."""
    lives = []
    for i in range(STREAMS):
        sampling = Sampling(seed=i, temperature=0.3 * (i % 2), max_new_tokens=TOKENS, ignore_eos=True, allowed_ids=TWO)
        lives.append(engine.front.frontend.submit("Say it. " * 9, Terms(sampling, speculate=speculate)))
    return await collect(engine, lives, victim)


@on_shared
async def test_a_killed_process_changes_no_answer(engine: Embedded) -> None:
    without = await answers(engine, speculate=False)
    assert not (await engine.until_idle())["draft_tokens"]
    assert await answers(engine) == without
    numbers = await engine.until_idle()
    assert numbers["draft_tokens"] >= numbers["accepted_tokens"] > 20
    for victim in ("router", "worker0", "detokenizer"):
        before = sum(engine.supervisor.restarts.values())
        assert await answers(engine, victim=victim) == without, f"after the death of {victim}"
        assert sum(engine.supervisor.restarts.values()) == before + 1
    assert (await engine.until_idle())["kv_used"] == 0
