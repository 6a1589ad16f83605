"""Every golden checkpoint in float32, with the fastest ops in any split of the work, and with the reference ops."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.select import op_table
from lightllm_mp.models.checkpoint.loader import load_model
from tests.models.golden import GOLDENS, TOLERANCE, check_greedy, check_prompt, prompts
from tests.models.runner import Runner

FOLDERS = (
    *("llama", "llama3", "llama_linear", "llama_sharded", "llama_yarn", "yi"),
    *("internlm", "internlm2", "minicpm", "mixtral", "qwen", "qwen2", "qwen3", "qwen3_moe"),
    "qwen3_next",
    *("bloom", "starcoder", "stablelm", "chatglm2", "gemma2", "gemma3", "deepseek_v2", "gpt_oss", "gpt_oss_mxfp4"),
    *("ministral3",),
    *("deepseek_v3", "deepseek_v3_fp8", "glm4_moe", "minimax_m2"),
    *("baichuan_7b", "baichuan_7b_bin", "baichuan_13b", "baichuan2_7b", "baichuan2_13b"),
    *("llama_fp8", "llama_ct_fp8", "llama_ct_w4a16"),
)
WITH_IMAGES = (
    *("llava_orig", "llava_hf", "qwen_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    *("mistral3", "pixtral", "gemma3_vl", "gemma4"),
)


@pytest.fixture(params=FOLDERS + WITH_IMAGES)
def case(request):
    return Runner(load_model(GOLDENS / request.param, dtype=torch.float32)), prompts(request.param)


@pytest.mark.skipif(op_table("cpu", torch.float32) is reference.TABLE, reason="the other tests use these ops already")
@pytest.mark.parametrize("folder", FOLDERS + WITH_IMAGES)
def test_reference_ops(folder):
    test_batched((Runner(load_model(GOLDENS / folder, dtype=torch.float32, ops=reference.TABLE)), prompts(folder)))


def test_alone(case):
    runner, golden = case
    for prompt in golden:
        seq = runner.sequence(prompt)
        logits = runner.prefill(seq, prompt.ids)
        check_prompt(prompt, logits)
        ids, seen = runner.decode([(seq, logits)], len(prompt.greedy))
        check_greedy(prompt, ids[0], seen[0])


def test_batched(case):
    runner, golden = case
    work = [(runner.sequence(prompt), prompt.ids) for prompt in golden]
    logits = runner.step(work)
    for prompt, got in zip(golden, logits, strict=True):
        check_prompt(prompt, got)
    ids, seen = runner.decode([(seq, got) for (seq, _), got in zip(work, logits, strict=True)], 24)
    for i, prompt in enumerate(golden):
        check_greedy(prompt, ids[i], seen[i])


def test_prefill_and_decode_share_steps(case):
    runner, golden = case
    first, *rest = golden
    seq = runner.sequence(first)
    last = runner.prefill(seq, first.ids)
    seen = [last[-1]]
    for prompt in rest:
        got = runner.step([(seq, [int(seen[-1].argmax())]), (runner.sequence(prompt), prompt.ids)])
        seen.append(got[0][-1])
        check_prompt(prompt, got[1])
    assert [int(x.argmax()) for x in seen] == first.greedy[: len(seen)]


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunked(case, chunk):
    runner, golden = case
    for prompt in golden:
        seq = runner.sequence(prompt)
        logits = runner.prefill(seq, prompt.ids, chunk)
        check_prompt(prompt, logits)
        ids, seen = runner.decode([(seq, logits)], len(prompt.greedy))
        check_greedy(prompt, ids[0], seen[0])


def test_prefix_hit(case):
    runner, golden = case
    for prompt in golden[2:]:
        first = runner.sequence(prompt)
        shared = len(prompt.ids) - 3
        runner.keep(first, shared)
        runner.prefill(first, prompt.ids)
        second = runner.sequence(prompt, like=first, shared=shared)
        logits = runner.prefill(second, prompt.ids[shared:])
        check_prompt(prompt, logits)
        ids, seen = runner.decode([(second, logits)], len(prompt.greedy))
        check_greedy(prompt, ids[0], seen[0])


@pytest.mark.parametrize("produced", [1, 10])
def test_preempted_and_resumed(case, produced):
    """A sequence that lost its slots computes its prompt and produced ids again and goes on as before."""
    runner, golden = case
    for prompt in golden:
        seq = runner.sequence(prompt)
        seq.prompt = len(prompt.ids)
        logits = runner.prefill(seq, prompt.ids + prompt.greedy[:produced])
        ids, seen = runner.decode([(seq, logits)], len(prompt.greedy) - produced)
        assert ids[0] == prompt.greedy[produced:]
        assert (seen[0][-1] - prompt.last_logits).abs().max().item() < TOLERANCE
