"""Latent attention (DeepSeek-V2) in Triton against the float32 reference: on a GPU if there is one, or interpreted."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import AttentionSchedule
from lightllm_mp.kernels.table import HeadLayout
from lightllm_mp.kernels.triton import overlay  # after the choice of the interpreter
from tests.kernels.random_batch import RandomStep
from tests.kernels.triton.test_attention import only_triton  # noqa: F401 - a fixture
from tests.kernels.triton.triton_case import CUDA, DEVICE, DTYPES, STEPS, close, kv_on_device, on_device

TRITON, REFERENCE = overlay.TABLE, reference.TABLE


def latent(heads: int, kv_lora: int, rope: int) -> HeadLayout:
    return HeadLayout(heads=heads, kv_heads=1, head_dim=kv_lora + rope, scale=0.7 / kv_lora**0.5, value_dim=kv_lora)


LAYOUTS = [latent(4, 16, 8), latent(5, 24, 10), latent(16, 32, 16), latent(24, 16, 4)]
LARGE = [latent(16, 512, 64), latent(128, 512, 64), latent(40, 320, 48)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS + LARGE if CUDA else LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", STEPS)
def test_latent_attention(dtype, layout, kind):
    if not CUDA and (dtype != torch.float32 or (kind != "mixed" and layout.heads > 5)):
        pytest.skip("the interpreter multiplies bfloat16 wrongly and is slow")
    if CUDA and dtype != torch.bfloat16 and layout in LARGE[1:]:
        pytest.skip("it takes long to compile, and only the type of the products differs")
    step = RandomStep(STEPS[kind], layout, dtype, seed=len(kind))
    assert step.values.data_ptr() == step.keys.data_ptr()
    got = TRITON.attention(step.q.to(DEVICE), kv_on_device(step.kv), on_device(step.batch), layout)
    close(got, REFERENCE.attention(step.q.float(), step.kv, step.batch, layout))


def test_keys_are_written_once():
    """The value is a part of the key: it must not be written again if it is not given."""
    layout = latent(4, 16, 8)
    step = RandomStep([(1, 30), (5, 9)], layout, torch.float32)
    kv, batch = kv_on_device(step.kv), on_device(step.batch)
    keys = torch.randn(step.batch.tokens, 1, 24)
    TRITON.kv_write(keys.to(DEVICE), torch.zeros(step.batch.tokens, 1, 16, device=DEVICE), kv, batch)
    expected = step.keys.clone()
    expected[step.batch.slots.long()] = keys
    assert torch.equal(kv.keys.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("layout", [LAYOUTS[1], *LARGE], ids=str)
def test_a_graph_of_latent_attention(layout):
    """Captured with one set of lengths and replayed with another; nothing waits for the device."""
    most = [390, 7, 100, 64]
    step = RandomStep([(1, length) for length in most], layout, torch.bfloat16)
    q, kv, batch = step.q.cuda(), kv_on_device(step.kv), on_device(step.batch)
    TRITON.attention(q, kv, batch, layout)
    batch.schedule = AttentionSchedule()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = TRITON.attention(q, kv, batch, layout)
    for contexts in ([390, 7, 100, 64], [1, 2, 3, 4], [200, 7, 90, 33]):
        batch.context.copy_(torch.tensor(contexts))
        step.batch.context.copy_(torch.tensor(contexts))
        graph.replay()
        close(got, REFERENCE.attention(step.q.float(), step.kv, step.batch, layout))
