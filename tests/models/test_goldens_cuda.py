"""The golden checkpoints in float32 on a GPU, with the op table that serves there."""

from __future__ import annotations

import pytest
import torch
from golden import GOLDENS, check_greedy, check_prompt, prompts
from runner import Runner

from lightllm_mp.kernels.select import op_table
from lightllm_mp.kernels.table import LayerKV
from lightllm_mp.models.batch import Batch, KVPool
from lightllm_mp.models.decoder import Decoder
from lightllm_mp.models.loader import load_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
FOLDERS = ("llama", "llama3", "llama_linear", "llama_sharded", "llama_yarn", "yi")


class OnGPU:
    """A decoder that takes ids from the host and gives logits back to it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self.spec, self.dtype = decoder, decoder.spec, decoder.dtype

    def forward(self, ids: torch.Tensor, batch: Batch, kv: KVPool) -> torch.Tensor:
        return self._decoder.forward(ids.cuda(), batch, kv)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._decoder.logits(hidden).cpu()


@pytest.fixture(params=FOLDERS)
def case(request):
    assert op_table("cuda", torch.float32).name == "triton"
    decoder = load_model(GOLDENS / request.param, device="cuda", dtype=torch.float32)
    runner = Runner(OnGPU(decoder))
    runner.kv.data = runner.kv.data.cuda()
    runner.kv.layers = [LayerKV(keys, values) for keys, values in runner.kv.data]
    runner.table = runner.table.cuda()
    return runner, prompts(request.param)


@pytest.mark.parametrize("chunk", [None, 7])
def test_alone(case, chunk):
    runner, golden = case
    for prompt in golden:
        seq = runner.sequence()
        logits = runner.prefill(seq, prompt.ids, chunk)
        check_prompt(prompt, logits)
        ids, seen = runner.decode([(seq, logits)], len(prompt.greedy))
        check_greedy(prompt, ids[0], seen[0])


def test_prefill_and_decode_share_steps(case):
    runner, golden = case
    first, *rest = golden
    seq = runner.sequence()
    seen = [runner.prefill(seq, first.ids)[-1]]
    others = []
    for prompt in rest:
        other = runner.sequence()
        got = runner.step([(seq, [int(seen[-1].argmax())]), (other, prompt.ids)])
        seen.append(got[0][-1])
        check_prompt(prompt, got[1])
        others.append((other, got[1]))
    assert [int(x.argmax()) for x in seen] == first.greedy[: len(seen)]
    ids, scores = runner.decode(others, 24)
    for i, prompt in enumerate(rest):
        check_greedy(prompt, ids[i], scores[i])
