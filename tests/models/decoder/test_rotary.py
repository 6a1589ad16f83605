"""The rotary tables against closed forms; the goldens check the scalings end to end."""

from __future__ import annotations

import math

import pytest
import torch

from lightllm_mp.models.decoder.rotary import RotaryTable, inverse_frequencies, rope_angles
from lightllm_mp.models.spec import RopeSpec


def test_plain_table():
    table = RotaryTable(RopeSpec(theta=100.0, dim=4))
    assert table.cos[7].tolist() == pytest.approx([math.cos(7.0), math.cos(0.7)], abs=1e-6)
    assert table.sin[7].tolist() == pytest.approx([math.sin(7.0), math.sin(0.7)], abs=1e-6)


@pytest.mark.parametrize("scaling", ["default", "linear", "dynamic", "llama3", "yarn"])
def test_growing_keeps_rows(scaling):
    spec = RopeSpec(theta=1e4, dim=16, scaling=scaling, factor=4.0, original_context=64, amplitude=1.1)
    table = RotaryTable(spec)
    before = table.cos.clone(), table.sin.clone()
    table.reserve(5000)
    assert table.cos.shape == (8192, 8)
    assert torch.equal(table.cos[: len(before[0])], before[0])
    assert torch.equal(table.sin[: len(before[1])], before[1])


def test_linear_divides_positions():
    spec = RopeSpec(theta=1e4, dim=16, scaling="linear", factor=4.0)
    plain = RopeSpec(theta=1e4, dim=16)
    at = torch.arange(32)
    assert torch.allclose(rope_angles(spec, at * 4), rope_angles(plain, at))


def test_dynamic_is_plain_up_to_the_trained_length_and_slower_beyond():
    spec = RopeSpec(theta=1e4, dim=16, scaling="dynamic", factor=2.0, original_context=64)
    plain = rope_angles(RopeSpec(theta=1e4, dim=16), torch.arange(256))
    scaled = rope_angles(spec, torch.arange(256))
    assert torch.allclose(scaled[:64], plain[:64], atol=1e-5)
    base = 1e4 * (2.0 * 200 / 64 - 1.0) ** (16 / 14)
    assert scaled[199].tolist() == pytest.approx([199 * base ** (-i / 16) for i in range(0, 16, 2)], rel=1e-5)


def test_llama3_bands():
    spec = RopeSpec(theta=5e5, dim=128, scaling="llama3", factor=8.0, original_context=8192)
    plain = inverse_frequencies(RopeSpec(theta=5e5, dim=128))
    ratio = plain / inverse_frequencies(spec)
    wavelength = 2 * math.pi / plain
    assert torch.allclose(ratio[wavelength < 2048], torch.tensor(1.0))
    assert torch.allclose(ratio[wavelength > 8192], torch.tensor(8.0))
    middle = ratio[(wavelength > 2048) & (wavelength < 8192)]
    assert ((middle > 1) & (middle < 8)).all()


def test_divisors_of_the_file_win():
    spec = RopeSpec(theta=1e4, dim=4, divisors=(1.0, 8.0))
    assert inverse_frequencies(spec).tolist() == pytest.approx([1.0, 0.01 / 8])
