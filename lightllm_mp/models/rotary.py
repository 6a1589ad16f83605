"""Cosine and sine tables of the rotary embedding, for every scaling rule."""

from __future__ import annotations

import math

import torch

from lightllm_mp.models.spec import RopeSpec

FIRST_ROWS = 1024


class RotaryTable:
    """Float32 `cos` and `sin`, [positions, dim / 2], grown on demand. A row depends on its position alone."""

    def __init__(self, spec: RopeSpec, *, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.cos = self.sin = torch.empty(0, spec.dim // 2, device=self.device)
        self.reserve(FIRST_ROWS)

    def reserve(self, positions: int) -> None:
        """Makes the tables at least `positions` rows long. The tensors change only when they have to grow."""
        if positions <= self.cos.shape[0]:
            return
        rows = 1 << (positions - 1).bit_length()
        angles = rope_angles(self.spec, torch.arange(rows))
        self.cos = (angles.cos() * self.spec.amplitude).to(self.device)
        self.sin = (angles.sin() * self.spec.amplitude).to(self.device)


def rope_angles(spec: RopeSpec, positions: torch.Tensor) -> torch.Tensor:
    """Angle of every pair at the given int64 positions: float32 [positions, dim / 2]."""
    if spec.scaling == "dynamic":
        return _dynamic_angles(spec, positions)
    return torch.outer(positions.float(), inverse_frequencies(spec))


def inverse_frequencies(spec: RopeSpec) -> torch.Tensor:
    """Float32 [dim / 2], of every scaling but `dynamic`, whose frequencies vary with the position."""
    base = 1.0 / spec.theta ** (torch.arange(0, spec.dim, 2).float() / spec.dim)
    if spec.divisors:
        return base / torch.tensor(spec.divisors)
    if spec.scaling == "linear":
        return base / spec.factor
    if spec.scaling == "llama3":
        return _llama3(spec, base)
    if spec.scaling == "yarn":
        return _yarn(spec, base)
    return base


def _llama3(spec: RopeSpec, base: torch.Tensor) -> torch.Tensor:
    """Three bands by wavelength: short ones stay, long ones are stretched, a linear blend between (Llama 3.1)."""
    wavelength = 2 * math.pi / base
    low, high = spec.low_freq_factor, spec.high_freq_factor
    smooth = ((spec.original_context / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * base / spec.factor + smooth * base


def _yarn(spec: RopeSpec, base: torch.Tensor) -> torch.Tensor:
    """NTK by parts (arXiv 2309.00071, section 3.2): a ramp over the dimensions between the two rotation counts."""

    def dimension(rotations: float) -> float:
        turns = spec.original_context / (rotations * 2 * math.pi)
        return spec.dim * math.log(turns) / (2 * math.log(spec.theta))

    low, high = dimension(spec.beta_fast), dimension(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    ramp = ((torch.arange(spec.dim // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return base / spec.factor * ramp + base * (1 - ramp)


def _dynamic_angles(spec: RopeSpec, positions: torch.Tensor) -> torch.Tensor:
    """Dynamic NTK: the base grows with the length. Position p takes the base of length p + 1, which is what decoding
    token by token uses; so a key does not depend on how long the prompt was, and cached prefixes stay valid."""
    length = (positions + 1).clamp(min=spec.original_context).double()
    growth = spec.factor * length / spec.original_context - (spec.factor - 1)
    theta = spec.theta * growth ** (spec.dim / (spec.dim - 2))
    exponents = torch.arange(0, spec.dim, 2).double() / spec.dim
    inverse = theta.unsqueeze(1) ** -exponents
    return (positions.double().unsqueeze(1) * inverse).float()
