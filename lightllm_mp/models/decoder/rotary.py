"""Cosine and sine tables of the rotary embedding, for every scaling rule."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import Rotation
from lightllm_mp.models.decoder.length_class import class_count, ntk_alpha
from lightllm_mp.models.spec import ModelSpec, RopeSpec

FIRST_ROWS = 1024


class RotaryTable:
    """Float32 `cos` and `sin`, [rows, dim / 2], and the queries' scale, [rows], grown on demand.

    A row is of one position. Where the frequencies depend on the prompt's length, there is a block of `max_context`
    rows for each length class (see `length_class`), and all blocks are made at once.
    """

    def __init__(
        self,
        spec: RopeSpec | None,
        *,
        max_context: int = 0,
        log_n: int = 0,
        growth: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec = spec
        self.max_context = max_context
        self.classes = class_count(spec, max_context)
        self.log_n, self.growth = log_n, growth
        self.device = torch.device(device)
        parts = component_of_pairs(spec) if spec else []
        self._sections = torch.tensor(parts, device=self.device) if parts else None
        """[dim / 2]: the component of a position that each pair turns by."""
        self.rotation = Rotation(torch.empty(0, 0), torch.empty(0, 0))
        self.reserve(max_context if self.classes > 1 else FIRST_ROWS)

    def reserve(self, positions: int) -> None:
        """Makes the tables at least `positions` rows long. The tensors change only when they have to grow."""
        if positions <= self.cos.shape[0]:
            return
        rows = self.max_context if self.classes > 1 else 1 << (positions - 1).bit_length()
        at = torch.arange(rows)
        angles, amplitude = torch.empty(rows, 0), 1.0
        if self.spec is not None:
            angles, amplitude = class_angles(self.spec, at, self.classes), self.spec.amplitude
        self.rotation = Rotation(
            (angles.cos() * amplitude).to(self.device),
            (angles.sin() * amplitude).to(self.device),
            self._query_scale(at),
        )

    def _query_scale(self, at: torch.Tensor) -> torch.Tensor | None:
        if self.growth:
            assert self.spec is not None
            return growing_scale(at, self.growth, self.spec.original_context).to(self.device)
        return log_n_scale(at, self.log_n).repeat(self.classes).to(self.device) if self.log_n else None

    def by_sections(self, batch: Batch) -> Batch:
        """A step whose tokens have three positions each, as one with tables of its own that have a row per token: the
        pairs of a section turn by that section's position. This is one gather for all layers; ops see plain
        positions."""
        assert self._sections is not None
        assert self.rotation.query_scale is None
        at = batch.rotary_at.long().index_select(1, self._sections)
        rotation = Rotation(self.cos.gather(0, at), self.sin.gather(0, at))
        rows = torch.arange(batch.tokens, dtype=torch.int32, device=self.device)
        return replace(batch, rotary_at=rows, rotation=rotation)

    @property
    def cos(self) -> torch.Tensor:
        return self.rotation.cos

    @property
    def sin(self) -> torch.Tensor:
        return self.rotation.sin


def rotary_tables(spec: ModelSpec, device: torch.device | str) -> tuple[RotaryTable, RotaryTable]:
    """The tables of layers without and with a window; in most models one and the same."""
    everywhere = RotaryTable(
        spec.rope, max_context=spec.max_context, log_n=spec.log_n_scale, growth=spec.query_growth, device=device
    )
    if spec.local_rope is None:
        return everywhere, everywhere
    return everywhere, RotaryTable(spec.local_rope, max_context=spec.max_context, device=device)


def component_of_pairs(spec: RopeSpec) -> list[int]:
    """The component of a position that each of the dim / 2 pairs turns by; empty without sections."""
    if not spec.interleaved_sections:
        return [i for i, pairs in enumerate(spec.sections) for _ in range(pairs)]
    return [i % 3 if i < 3 * spec.sections[i % 3] else 0 for i in range(spec.dim // 2)]


def log_n_scale(positions: torch.Tensor, trained: int) -> torch.Tensor:
    """Float32 [positions]: log(length) / log(trained) for lengths beyond `trained`, else 1 (Qwen)."""
    return ((positions + 1).double().log() / math.log(trained)).clamp(min=1.0).float()


def growing_scale(positions: torch.Tensor, growth: float, trained: int) -> torch.Tensor:
    """Float32 [positions]: 1 + growth * ln(1 + floor(position / trained)) (Llama 4, Ministral 3)."""
    return 1.0 + growth * (positions // trained).float().log1p()


def class_angles(spec: RopeSpec, positions: torch.Tensor, classes: int) -> torch.Tensor:
    """Angles of every length class, block after block: float32 [classes * positions, dim / 2]."""
    if spec.scaling == "qwen":
        growth = spec.dim / (spec.dim - 2)
        bases = [spec.theta * ntk_alpha(i) ** growth for i in range(classes)]
        return torch.cat([torch.outer(positions.float(), geometric(base, spec.dim)) for base in bases])
    if spec.scaling == "longrope":
        divisors = (spec.short_divisors, spec.divisors)[:classes]
        plain = geometric(spec.theta, spec.dim)
        return torch.cat([torch.outer(positions.float(), plain / torch.tensor(by)) for by in divisors])
    return rope_angles(spec, positions)


def rope_angles(spec: RopeSpec, positions: torch.Tensor) -> torch.Tensor:
    """Angle of every pair at the given int64 positions: float32 [positions, dim / 2]."""
    if spec.scaling == "dynamic":
        return _dynamic_angles(spec, positions)
    return torch.outer(positions.float(), inverse_frequencies(spec))


def geometric(theta: float, dim: int) -> torch.Tensor:
    """Float32 [dim / 2]: theta ** (-2 i / dim)."""
    return 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)


def inverse_frequencies(spec: RopeSpec) -> torch.Tensor:
    """Float32 [dim / 2], for scalings whose frequencies depend neither on the position nor on the length."""
    base = geometric(spec.theta, spec.dim)
    if spec.turning:
        base[spec.turning :] = 0.0
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
    """Dynamic NTK: the base grows with the length. Position p takes the base of length p + 1, as decoding token by
    token does, so a key does not depend on the prompt's length and cached prefixes stay valid."""
    length = (positions + 1).clamp(min=spec.original_context).double()
    growth = spec.factor * length / spec.original_context - (spec.factor - 1)
    theta = spec.theta * growth ** (spec.dim / (spec.dim - 2))
    exponents = torch.arange(0, spec.dim, 2).double() / spec.dim
    inverse = theta.unsqueeze(1) ** -exponents
    return (positions.double().unsqueeze(1) * inverse).float()
