"""Keys and values in 8 bits: the change of a golden checkpoint's answers, and the saved memory."""

from __future__ import annotations

import pytest
import torch
from msgspec.structs import replace

from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.model_config import read_model_config
from tests.models.golden import GOLDENS, movement, observed_movement, prompts
from tests.models.runner import Runner
from tests.models.test_goldens import FOLDERS

CUDA = torch.cuda.is_available()
WITH_KV = [name for name in FOLDERS if read_model_config(GOLDENS / name).mla is None]
SOME = WITH_KV if CUDA else [name for name in WITH_KV if name in ("llama", "bloom", "gemma2")]
MOST = {torch.int8: (1.5, 0.04), torch.float8_e4m3fn: (7.0, 0.25)}
"""The allowed mean distance of logits, as a multiple of the reference's distance in bfloat16, and how much rarer than
there the golden choice may be: random weights have many near ties."""


@pytest.mark.parametrize("stored", MOST, ids=str)
@pytest.mark.parametrize("folder", SOME)
def test_answers_hardly_move(folder: str, stored: torch.dtype) -> None:
    """With teacher forcing; chunks read what earlier chunks stored."""
    device = "cuda" if CUDA else "cpu"
    decoder = load_model(GOLDENS / folder, device=device, dtype=torch.float32)
    runner, golden, forced = Runner(decoder), prompts(folder), []
    runner.kv = KVPool(decoder.spec, runner.kv.slots, dtype=stored, device=device)
    for prompt in golden:
        seq = runner.sequence()
        seq.prompt = len(prompt.ids)
        ids = prompt.ids + prompt.greedy[:-1]
        logits = [runner.prefill(seq, ids[:-3], 50), *(runner.step([(seq, [i])])[0] for i in ids[-3:])]
        forced.append(torch.cat(logits))
    moved, bfloat16, (times, rarer) = movement(golden, forced), observed_movement(folder, torch.bfloat16), MOST[stored]
    assert 0.001 < moved.mean <= times * bfloat16.mean
    assert moved.agreement >= bfloat16.agreement - rarer


@pytest.mark.parametrize("stored", MOST, ids=str)
def test_room_at_head_dim_128(stored: torch.dtype) -> None:
    spec = replace(read_model_config(GOLDENS / "llama"), heads=8, kv_heads=4, head_dim=128)
    assert KVPool.token_bytes(spec, torch.bfloat16) >= 1.9 * KVPool.token_bytes(spec, stored)
    pool = KVPool(spec, 11, dtype=stored)
    assert pool.data.shape == (spec.layers, 2, 12, 4, 128)
    assert all(x.data_ptr() % 16 == 0 for layer in pool.layers.values() for x in layer)
    assert pool.layers[1].value_scales.shape == (12, 4)


@pytest.mark.parametrize("stored", [torch.float32, torch.int8])
def test_layers_of_different_sizes(stored: torch.dtype) -> None:
    """Gemma 4: global layers have wider heads, and the last layers read the KV of earlier ones of their kind."""
    spec = read_model_config(GOLDENS / "gemma4")
    pool = KVPool(spec, 11, dtype=stored)
    assert [tuple(pool.layers[i].keys.shape) for i in range(5)] == [(12, 1, width) for width in (16, 16, 32, 16, 32)]
    same = [pool.layers[i].keys.data_ptr() for i in range(5)]
    assert (same[3], same[4], len(set(same))) == (same[1], same[2], 3)
    parts = {part.data_ptr(): part for layer in pool.layers.values() for part in layer if part is not None}
    assert sum(part[0].nbytes for part in parts.values()) == KVPool.token_bytes(spec, stored)
    assert spec.kv_elements * torch.float32.itemsize == KVPool.token_bytes(spec, torch.float32)
    for number, part in enumerate(parts.values()):
        part.fill_(number)
    assert all((part == number).all() for number, part in enumerate(parts.values()))
