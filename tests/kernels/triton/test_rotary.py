"""Rotary embedding, head norms and KV write in Triton against the reference, on a GPU or else interpreted."""

from __future__ import annotations

import pytest
import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.table import HeadLayout, HeadNorms, LayerKV, Norm, Rotation
from lightllm_mp.kernels.triton import overlay  # after the choice of the interpreter
from tests.kernels.random_batch import RandomStep
from tests.kernels.triton.triton_case import CUDA, DEVICE, DTYPES, close, kv_on_device, on_device, random

TRITON, REFERENCE = overlay.TABLE, reference.TABLE
EIGHT_BITS = [torch.int8, torch.float8_e4m3fn]
SHAPES = [(6, 2, 32, 32), (32, 8, 128, 128), (3, 1, 64, 16), (2, 2, 80, 60), (4, 4, 24, 0), (5, 1, 12, 12)]
"""Heads, KV heads, head_dim, rotated."""
FEW_SHAPES = SHAPES if CUDA else [SHAPES[3], SHAPES[4]]
SOME_TYPES = DTYPES if CUDA else [torch.float32, torch.float16]


def layout_of(heads: int, kv_heads: int, head_dim: int, **more: object) -> HeadLayout:
    return HeadLayout(heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=1.0, **more)


def rotation_of(rotated: int, *, scaled: bool = False) -> Rotation:
    angles = torch.outer(torch.arange(400).float(), torch.rand(rotated // 2))
    return Rotation(angles.cos(), angles.sin(), torch.rand(400) + 0.5 if scaled else None)


def moved(rotation: Rotation) -> Rotation:
    return Rotation(*(None if x is None else x.to(DEVICE) for x in rotation))


def norms_of(kind: str, layout: HeadLayout, dtype: torch.dtype) -> HeadNorms | None:
    """`kind`: "", "rms", "layer", or one of them followed by "+heads" or "+bias"."""
    if not kind:
        return None
    name, _, more = kind.partition("+")
    pair = []
    for heads in (layout.heads, layout.kv_heads):
        shape = (heads, layout.head_dim) if more == "heads" else (layout.head_dim,)
        pair.append(
            Norm(random(*shape, dtype=dtype), 1e-5, random(*shape, dtype=dtype) if more == "bias" else None, name)
        )
    return HeadNorms(*pair)


def norms_on_device(norms: HeadNorms | None) -> HeadNorms | None:
    if norms is None:
        return None
    return HeadNorms(*(Norm(*(x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in norm)) for norm in norms))


@pytest.mark.parametrize("dtype", SOME_TYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 2, 24, 16), (20, 20, 128, 64)], ids=str)
def test_norms_over_all_heads(dtype, shape):
    heads, kv_heads, head_dim, rotated = shape
    layout = layout_of(heads, kv_heads, head_dim)
    step = RandomStep([(1, 9), (4, 4)], layout, dtype)
    sums = TRITON.head_squares(step.qkv.to(DEVICE), layout)
    assert torch.allclose(sums.cpu(), REFERENCE.head_squares(step.qkv, layout), rtol=1e-5)
    means = sums.cpu() / torch.tensor([[heads * head_dim * 1.5], [kv_heads * head_dim]])
    weights = [random(n, head_dim, dtype=dtype) for n in (heads, kv_heads)]
    norms = HeadNorms(*(Norm(w, 1e-5, mean_squares=m) for w, m in zip(weights, means, strict=True)))
    rotation, kv = rotation_of(rotated), kv_on_device(step.kv)
    got = TRITON.rotary_kv_write(
        step.qkv.to(DEVICE), moved(rotation), kv, on_device(step.batch), layout, norms_on_device(norms)
    )
    wide = LayerKV(step.keys.float(), step.values.float())
    close(got, REFERENCE.rotary_kv_write(step.qkv.float(), rotation, wide, step.batch, layout, norms))
    close(kv.keys, wide.keys)


def same_bits(mine: torch.Tensor, theirs: torch.Tensor, share: float = 0.0) -> None:
    """Equal except for a share of neighbours: the interpreter rounds some values to fp8 wrongly."""
    mine = mine.cpu()
    if theirs.dtype == torch.float8_e4m3fn and not CUDA:
        assert ((mine.float() - theirs.float()).abs() > 0.13 * theirs.float().abs() + 0.004).float().mean() < 1e-3
        return
    distance = (mine.contiguous().view(torch.uint8).int() - theirs.contiguous().view(torch.uint8).int()).abs()
    assert (distance > 0).float().mean() <= share
    assert torch.minimum(distance, 256 - distance).max() <= 1  # of int8, -1 is next to 0


@pytest.mark.parametrize("dtype", SOME_TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["", "rms", "layer+heads", "rms+heads", "layer+bias"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_kv_write(dtype, shape, norm, interleaved):
    if not CUDA and shape not in FEW_SHAPES and (norm or interleaved or dtype != torch.float32):
        pytest.skip("the interpreter is slow")
    *heads, rotated = shape
    layout = layout_of(*heads, interleaved=interleaved)
    step = RandomStep([(1, 7), (20, 50)] if CUDA else [(1, 7), (2, 50)], layout, dtype)
    rotation, norms = rotation_of(rotated, scaled=interleaved), norms_of(norm, layout, dtype)
    kv = kv_on_device(step.kv)
    got = TRITON.rotary_kv_write(
        step.qkv.to(DEVICE), moved(rotation), kv, on_device(step.batch), layout, norms_on_device(norms)
    )
    wide_keys = step.keys.float()
    expected = REFERENCE.rotary_kv_write(
        step.qkv.float(), rotation, LayerKV(wide_keys, step.values), step.batch, layout, norms
    )
    close(got, expected)
    close(kv.keys, wide_keys)
    assert torch.equal(kv.values.cpu(), step.values)
    untouched = torch.ones(len(step.keys), dtype=torch.bool)
    untouched[step.batch.slots.long()] = False
    assert torch.equal(kv.keys.cpu()[untouched], step.keys[untouched])


@pytest.mark.parametrize("shape", FEW_SHAPES, ids=str)
def test_values_are_normalised(shape):
    *heads, rotated = shape
    layout = layout_of(*heads, value_norm=True)
    step = RandomStep([(1, 7), (2, 50)], layout, torch.float32)
    rotation, norms, kv = rotation_of(rotated), norms_of("rms", layout, torch.float32), kv_on_device(step.kv)
    inputs = on_device(step.batch), layout, norms_on_device(norms)
    got = TRITON.rotary_kv_write(step.qkv.to(DEVICE), moved(rotation), kv, *inputs)
    close(got, REFERENCE.rotary_kv_write(step.qkv, rotation, step.kv, step.batch, layout, norms))
    close(kv.keys, step.keys)
    close(kv.values, step.values)
    squares = step.values[step.batch.slots.long()].square().mean(-1)
    assert torch.allclose(squares, torch.ones_like(squares), atol=1e-3)


@pytest.mark.parametrize("shape", FEW_SHAPES, ids=str)
def test_queries_alone(shape):
    """A layer that reads another layer's keys and values: the same queries, and nothing is written."""
    *heads, rotated = shape
    layout, rotation = layout_of(*heads, value_norm=True), rotation_of(rotated)
    step = RandomStep([(1, 7), (2, 50)], layout, torch.float32)
    norms, kv, batch = norms_of("rms", layout, torch.float32), kv_on_device(step.kv), on_device(step.batch)
    expected = REFERENCE.rotary_kv_write(step.qkv.clone(), rotation, step.kv, step.batch, layout, norms)
    alone = step.qkv[:, : layout.heads * layout.head_dim].contiguous().to(DEVICE)
    into = LayerKV(kv.keys[:, :0], kv.values[:, :0])
    before = kv.keys.clone(), kv.values.clone()
    projected = layout_of(heads[0], 0, heads[2], value_norm=True)
    close(TRITON.rotary_kv_write(alone, moved(rotation), into, batch, projected, norms_on_device(norms)), expected)
    assert torch.equal(kv.keys, before[0])
    assert torch.equal(kv.values, before[1])


@pytest.mark.parametrize("stored", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("shape", FEW_SHAPES, ids=str)
@pytest.mark.parametrize("norm", ["", "rms"])
def test_rotary_kv_write_in_8_bits(stored, shape, norm):
    """The reference's bits: a rotated component may differ in its last place and then round to the neighbour."""
    *heads, rotated = shape
    layout = layout_of(*heads)
    step = RandomStep([(1, 7), (20, 50)] if CUDA else [(1, 7), (2, 50)], layout, torch.float32)
    rotation, norms = rotation_of(rotated), norms_of(norm, layout, torch.float32)
    kv = step.stored_as(stored)
    on_gpu = kv_on_device(kv)
    got = TRITON.rotary_kv_write(
        step.qkv.to(DEVICE), moved(rotation), on_gpu, on_device(step.batch), layout, norms_on_device(norms)
    )
    close(got, REFERENCE.rotary_kv_write(step.qkv, rotation, kv, step.batch, layout, norms))
    same_bits(on_gpu.values, kv.values)
    same_bits(on_gpu.value_scales, kv.value_scales)
    same_bits(on_gpu.keys, kv.keys, share=1e-3)
    same_bits(on_gpu.key_scales, kv.key_scales, share=1e-3)


@pytest.mark.parametrize("stored", EIGHT_BITS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kv_write_in_8_bits(dtype, stored):
    """Equal in every bit, so rounding is to nearest, ties to even; also for zeros and float16's subnormal numbers."""
    layout = layout_of(2, 3, 24)
    step = RandomStep([(1, 7), (6, 50)], layout, dtype)
    keys, values = random(7, 3, 24, dtype=dtype), random(7, 3, 24, dtype=dtype)
    keys[0, 0], keys[1, 1] = 0.0, keys[1, 1] * 1e-6
    values[2, 0] = torch.arange(24).to(dtype) * 0.5 - 5.5
    values[2, 0, 0] = 127.0
    kv = step.stored_as(stored)
    on_gpu = kv_on_device(kv)
    strided = torch.stack((keys, values), 2).to(DEVICE)
    TRITON.kv_write(strided[:, :, 0], strided[:, :, 1], on_gpu, on_device(step.batch))
    REFERENCE.kv_write(keys, values, kv, step.batch)
    for mine, theirs in zip(on_gpu, kv, strict=True):
        same_bits(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("heads", "dim", "rotated"), [(16, 64, 64), (1, 64, 64), (3, 24, 16), (5, 10, 10), (2, 8, 0)])
def test_rotate(dtype, interleaved, heads, dim, rotated):
    """Rotates a part of each head."""
    layout = layout_of(heads, 1, dim, interleaved=interleaved)
    step = RandomStep([(1, 7), (3, 50)], layout, dtype)
    rotation, both = rotation_of(rotated), random(4, heads, dim + 6, dtype=dtype)
    got = TRITON.rotate(both.to(DEVICE)[..., 6:], moved(rotation), on_device(step.batch), layout)
    close(got, REFERENCE.rotate(both[..., 6:].float(), rotation, step.batch, layout))
