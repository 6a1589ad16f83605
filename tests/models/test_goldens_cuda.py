"""The golden checkpoints on a GPU, with the op table of a server: in float32 exactly, in 16 bits closely."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels.select import op_table
from lightllm_mp.models.checkpoint.loader import load_model
from tests.models.golden import (
    GOLDENS,
    check_greedy,
    check_prompt,
    moved_in_sixteen_bits,
    movement,
    observed_movement,
    prompts,
)
from tests.models.runner import Runner
from tests.models.test_goldens import FOLDERS, WITH_IMAGES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.fixture(params=FOLDERS + WITH_IMAGES)
def case(request):
    assert op_table("cuda", torch.float32).name == "triton"
    return Runner(load_model(GOLDENS / request.param, device="cuda", dtype=torch.float32)), prompts(request.param)


@pytest.mark.parametrize("chunk", [None, 7])
def test_alone(case, chunk):
    runner, golden = case
    for prompt in golden:
        seq = runner.sequence(prompt)
        logits = runner.prefill(seq, prompt.ids, chunk)
        check_prompt(prompt, logits)
        ids, seen = runner.decode([(seq, logits)], len(prompt.greedy))
        check_greedy(prompt, ids[0], seen[0])


def test_prefill_and_decode_share_steps(case):
    runner, golden = case
    first, *rest = golden
    seq = runner.sequence(first)
    seen = [runner.prefill(seq, first.ids)[-1]]
    others = []
    for prompt in rest:
        other = runner.sequence(prompt)
        got = runner.step([(seq, [int(seen[-1].argmax())]), (other, prompt.ids)])
        seen.append(got[0][-1])
        check_prompt(prompt, got[1])
        others.append((other, got[1]))
    assert [int(x.argmax()) for x in seen] == first.greedy[: len(seen)]
    ids, scores = runner.decode(others, 24)
    for i, prompt in enumerate(rest):
        check_greedy(prompt, ids[i], scores[i])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("folder", filter(moved_in_sixteen_bits, FOLDERS))
def test_sixteen_bits(folder, dtype):
    """The reference's own distance is that of a CPU; another order of sums may move logits a little further."""
    runner, golden = Runner(load_model(GOLDENS / folder, device="cuda", dtype=dtype)), prompts(folder)
    forced = []
    for prompt in golden:
        seq = runner.sequence()
        seq.prompt = len(prompt.ids)
        forced.append(runner.prefill(seq, prompt.ids + prompt.greedy[:-1]))
    mine, theirs = movement(golden, forced), observed_movement(folder, dtype)
    assert mine.mean <= 1.2 * theirs.mean
    assert mine.agreement >= theirs.agreement - 0.04
