"""What a decoder-only model is, as data. A family maps its configuration file to a `ModelSpec`; `Decoder` obeys it.

This module imports no torch: the command line and the router read specs too.
"""

from __future__ import annotations

import msgspec


class RopeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary embedding of one model. Rotates pairs (i, i + dim/2) of the first `dim` components of each head."""

    theta: float
    """Base of the geometric series of wavelengths."""
    dim: int
    """Components of a head that are rotated, even."""
    scaling: str = "default"
    """One of `default`, `linear`, `dynamic`, `llama3`, `yarn`."""
    factor: float = 1.0
    """By how much the context is stretched."""
    original_context: int = 0
    """Positions the model was trained on before scaling."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """yarn: round the bounds of the ramp to whole dimensions."""
    amplitude: float = 1.0
    """Factor on cos and sin (yarn's attention factor)."""
    divisors: tuple[float, ...] = ()
    """What each inverse frequency is divided by, where the file says so itself (GGUF `rope_freqs.weight`)."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only transformer. Sizes are counts of elements, not bytes."""

    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the gated MLP."""
    norm_eps: float
    rope: RopeSpec
    max_context: int
    """Longest sequence, prompt and answer together, in tokens."""
    eos_ids: tuple[int, ...]
    bos_id: int | None = None
    tied: bool = False
    """The output head is the embedding matrix."""
    window: int | None = None
    """A query sees itself and the `window - 1` keys before it; None: all keys before it."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    file_dtype: str = "float32"
    """What most weights are stored in: a torch dtype name, or the GGUF name of a quantised type."""

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim
