"""A whole engine with --long-truncation-mode: a repair cuts prompts the same way, and usage counts the tokens kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from tests.actors.embedded import Embedded, config, embedded, in_time
from tests.actors.mock_actor import CONTEXT

TOKENS = 300
KEPT = CONTEXT - TOKENS
TEXT = "".join(f"{number} " for number in range(1500))
CUT = {"head": TEXT[-KEPT:], "center": TEXT[: KEPT // 2] + TEXT[-(KEPT - KEPT // 2) :]}


async def answer(engine: Embedded, prompt: str, kill: str = "") -> tuple[list[int], int]:
    """Ids of the answer, and the number of prompt tokens in the usage."""
    live = engine.submit(prompt, TOKENS, seed=3)
    collecting = asyncio.create_task(engine.collect(live))
    if kill:
        while not live.answers[0].ids:
            await asyncio.sleep(0.001)
        engine.kill(kill)
    ids, _ = await collecting
    return ids, live.answers[0].prompt_tokens


@pytest.mark.parametrize("mode", ["head", "center"])
@in_time
async def test_a_cut_prompt_is_answered_as_what_remains_of_it(tmp_path: Path, mode: str) -> None:
    plain = config()
    cutting = msgspec.structs.replace(plain, engine=msgspec.structs.replace(plain.engine, long_truncation_mode=mode))
    async with embedded(tmp_path, cutting) as engine:
        expected = await answer(engine, CUT[mode])
        assert expected[1] == KEPT
        assert await answer(engine, TEXT) == expected
        for victim in ("tokenizer", "router"):
            assert await answer(engine, TEXT, victim) == expected
