"""Weight rules that families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.models.weights import Param, Piece

Transform = Callable[[Any], Any]


def linear(
    target: str,
    at: str,
    parts: tuple[tuple[str, int], ...],
    columns: int,
    bias: bool,
    transforms: Mapping[str, Transform] | None = None,
) -> list[Param]:
    """One projection: parts (name, rows) of `columns` inputs stacked, and their biases; `transforms` by part name."""
    by = transforms or {}
    weight = Param(target, tuple(Piece(f"{at}{n}.weight", (rows, columns), by.get(n)) for n, rows in parts))
    if not bias:
        return [weight]
    return [weight, Param(target + ".bias", tuple(Piece(f"{at}{n}.bias", (r,), by.get(n)) for n, r in parts))]


def norm(target: str, name: str, spec: ModelSpec) -> list[Param]:
    """A norm over the hidden size, with its bias where the model's norms have one."""
    params = [Param(target, (Piece(name + ".weight", (spec.hidden,)),))]
    if spec.norm_bias:
        params.append(Param(target + ".bias", (Piece(name + ".bias", (spec.hidden,)),)))
    return params


def ends(spec: ModelSpec, *, embed: str, norm_name: str, head: str) -> list[Param]:
    """Embedding, final norm and, unless it is tied, the head; names without `.weight`."""
    params = linear("embed", "", ((embed, spec.vocab),), spec.hidden, False) + norm("norm", norm_name, spec)
    return params if spec.tied else params + linear("head", "", ((head, spec.vocab),), spec.hidden, spec.head_bias)
