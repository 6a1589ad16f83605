"""Computes the least time of a step on one GPU from its operations and the bytes that it reads and writes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.checkpoint.assembly import EXPERTS, may_be_scaled
from lightllm_mp.models.checkpoint.mxfp4 import is_mxfp4
from lightllm_mp.models.checkpoint.quant_config import quant_config_of
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.model_config import hf_model
from lightllm_mp.models.spec import ModelSpec
from tools.harness.ceilings import Ceilings

PLAIN, MXFP4 = 2.0, 17 / 32
SCALE = 4
"""Bytes of a scale of 8-bit weights."""
UNREAD = ("embed", "types", "positions")
"""Tables of which a step reads a few rows only."""


class Work(NamedTuple):
    """One part of a step."""

    read: float
    """Bytes from or to device memory."""
    done: float
    """Operations; a multiplication and an addition count as two."""
    eight_bits: bool = False
    """The operations can use 8-bit floats."""

    def seconds(self, at: Ceilings) -> float:
        return max(self.read / at.bandwidth, self.done / (at.product_fp8 if self.eight_bits else at.product))


class Weights(NamedTuple):
    """Weights that a step uses together."""

    elements: int = 0
    nbytes: float = 0.0
    eight_bits: bool = False

    def __add__(self, other: object) -> Weights:
        assert isinstance(other, Weights)
        return Weights(self.elements + other.elements, self.nbytes + other.nbytes, self.eight_bits or other.eight_bits)


@dataclass(frozen=True)
class StepLimits:
    """The cost of one model's steps. Sizes of keys and values are those that the engine stores."""

    spec: ModelSpec
    projections: Weights
    """Weights that every token passes, without the head."""
    experts: Weights
    """All routed experts."""
    head: Weights
    kv_itemsize: int = 2
    """Bytes of an element of a key or value; 1: with scales of 2 bytes."""

    @staticmethod
    def of(spec: ModelSpec, params: Iterable[Param], stored: dict[str, float], kv_itemsize: int = 2) -> StepLimits:
        """`stored`: bytes of a weight by target, where it is not PLAIN."""
        kinds = {"projections": Weights(), "experts": Weights(), "head": Weights()}
        for param in params:
            each = stored.get(param.target, PLAIN)
            elements = math.prod(param.shape)
            found = Weights(elements, elements * each, 1.0 <= each < PLAIN)
            if param.target == "head" or (spec.tied and param.target == "embed"):
                kinds["head"] += found
            elif param.target.endswith(EXPERTS):
                kinds["experts"] += found
            elif param.target not in UNREAD:
                kinds["projections"] += found
        return StepLimits(spec, **kinds, kv_itemsize=kv_itemsize)

    def parts(self, new: Sequence[int], contexts: Sequence[int], sampled: int | None = None) -> dict[str, Work]:
        """The parts of a step over sequences with these new tokens, which their contexts include. `sampled`: sequences
        that need logits; None: all."""
        spec, tokens, lines = self.spec, sum(new), len(new) if sampled is None else sampled
        parts = {
            "projections": _product(self.projections, tokens),
            "experts": self._experts(tokens),
            "head": _product(self.head, lines),
            "attention": self._attention(new, contexts),
            "states": self._states(new),
        }
        kept = "head" if spec.pooling is None else ""
        return {name: work for name, work in parts.items() if work.done and (name != "head" or kept)}

    def seconds(self, at: Ceilings, new: Sequence[int], contexts: Sequence[int], sampled: int | None = None) -> float:
        """The sum over the parts; each takes the longer of the times for its bytes and its operations."""
        return sum(work.seconds(at) for work in self.parts(new, contexts, sampled).values())

    def _experts(self, tokens: int) -> Work:
        """The experts that tokens touch on average if all are equally likely."""
        if (moe := self.spec.moe) is None:
            return Work(0, 0)
        chosen = moe.top_k / moe.experts
        touched = 1 - (1 - chosen) ** tokens
        weights = self.experts
        return Work(weights.nbytes * touched, 2 * weights.elements * chosen * tokens, weights.eight_bits)

    @cached_property
    def _layers(self) -> dict[tuple[ModelSpec, int], int]:
        """Number of layers with keys and values by (spec of the layer, window)."""
        return Counter((self.spec.at(layer), self.spec.window_of(layer)) for layer in self.spec.kv_layers)

    def _attention(self, new: Sequence[int], contexts: Sequence[int]) -> Work:
        read = done = 0.0
        for (at, window), layers in self._layers.items():
            seen = layers * sum(min(c, n + window - 1) if window else c for n, c in zip(new, contexts, strict=True))
            pairs = layers * sum(_pairs(n, c, window) for n, c in zip(new, contexts, strict=True))
            if (mla := at.mla) is not None:
                each, values = mla.kv_lora + mla.rope_dim, 1
                done += 2.0 * at.heads * (each + mla.kv_lora) * pairs
            else:
                each, values = at.kv_size, 2
                done += 4.0 * at.q_size * pairs
            scales = 2 * at.kv_heads if self.kv_itemsize == 1 else 0
            read += values * (each * self.kv_itemsize + scales) * float(seen)
        return Work(read, done)

    def _states(self, new: Sequence[int]) -> Work:
        """A step reads and writes the states once; the rule takes about eight operations per element and token."""
        recurrent, conv = self.spec.state_elements
        return Work(2.0 * len(new) * (4 * recurrent + 2 * conv), 8.0 * recurrent * sum(new))


def _product(weights: Weights, tokens: int) -> Work:
    return Work(weights.nbytes if tokens else 0.0, 2.0 * weights.elements * tokens, weights.eight_bits)


def _pairs(new: int, context: int, window: int) -> float:
    """Pairs of a new token and a key that it sees."""
    if not window or context <= window:
        return new * (context - new) + new * (new + 1) / 2
    growing = max(0, min(new, window - (context - new)))  # the tokens that see less than the window
    first = context - new + 1
    return growing * (2 * first + growing - 1) / 2 + (new - growing) * window


def limits_of(model: ModelSource, *, quantization: str = "none", kv_itemsize: int = 2) -> StepLimits:
    """For a folder served in 16 bits, with its own quantisation or that of `--quantization`."""
    family, spec = hf_model(model)
    params = family.folder_weights(spec)
    config, blocks = quant_config_of(model.config, str(model.path)), is_mxfp4(model.config)
    stored: dict[str, float] = {}
    for param in params:
        if blocks and param.target.endswith(EXPERTS):
            stored[param.target] = MXFP4
        elif not may_be_scaled(param.target) or len(param.shape) != 2:
            continue
        elif config is not None and not config.ignores(param.pieces[0].name.removesuffix(".weight")):
            scheme = config.scheme_of(param.pieces[0].name.removesuffix(".weight"))
            if scheme.form == "scaled":
                stored[param.target] = 1 + (SCALE / scheme.block[1] if scheme.block else 0)
        elif quantization != "none" and not param.target.endswith(EXPERTS):
            stored[param.target] = 1.0
    return StepLimits.of(spec, params, stored, kv_itemsize)
