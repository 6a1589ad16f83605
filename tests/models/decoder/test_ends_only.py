"""A step that computes only the sequences' ends gives the same numbers."""

from __future__ import annotations

import json

import pytest
import torch

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.models.checkpoint.loader import load_model
from tests.models.golden import GOLDENS
from tests.models.runner import Runner

# plain, biases, output norms, scaled residuals, alibi, experts, latents, learned positions, a reward
FOLDERS = [
    *("llama", "qwen2", "gemma2", "minicpm", "bloom", "mixtral", "deepseek_v2", "starcoder", "internlm2_reward"),
    "minimax_m2",
]
PHI = {"model_type": "phi", "architectures": ["PhiForCausalLM"], "hidden_size": 64, "intermediate_size": 96}
PHI |= {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256, "max_position_embeddings": 128}
PHI |= {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5, "eos_token_id": 2, "torch_dtype": "float32"}


@pytest.fixture(params=[*FOLDERS, "phi"])
def folder(request, tmp_path):
    if request.param != "phi":  # a model with parallel halves, which has no golden
        return GOLDENS / request.param
    (tmp_path / "config.json").write_text(json.dumps(PHI))
    return tmp_path


def prompt(length: int) -> list[int]:
    return torch.randint(3, 256, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def test_ends_only(folder):
    runner = Runner(load_model(folder, dtype=torch.float32, dummy=folder.name not in FOLDERS))
    decoder, lengths = runner.decoder, [7, 1, 20]
    ids = runner.ints([i for n in lengths for i in prompt(n)])
    runner.tables[:, :3, :20] = runner.ints(list(range(60))).view(3, 20)
    batch = Batch.of(lengths, lengths, [0, 1, 2], *runner.tables)
    every = decoder.forward(ids, batch, runner.kv)
    ends = decoder.forward(ids, batch, runner.kv, ends_only=True)
    torch.testing.assert_close(ends, every[torch.tensor([6, 7, 27])], atol=1e-5, rtol=1e-5)
