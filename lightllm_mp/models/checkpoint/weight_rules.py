"""Weight rules: the tensors of a checkpoint that make up each parameter of the decoder. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lightllm_mp.errors import ModelError

SHOWN = 3
"""Tensor names that an error message lists at most."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the file, or a part of it. `transform` brings it into the decoder's row order and `shape`. For a
    projection inside a layer it only reorders, splits or joins rows, so it works on packed rows too; it takes numpy
    arrays as well as torch tensors."""

    name: str
    shape: tuple[int, ...]
    transform: Callable[[Any], Any] | None = None
    stored: tuple[int, ...] | None = None
    """Shape in the file, where it differs."""

    @property
    def file_shape(self) -> tuple[int, ...]:
        return self.shape if self.stored is None else self.stored


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of the decoder: its pieces stacked along the first dimension.

    Targets of a whole model: `embed` [vocab, hidden], `types` and `positions` [rows, hidden], `embed_norm`, `norm`
    [hidden], `head` [vocab, hidden], or for scores `score` [1, hidden] and `score_in` [hidden, hidden]. Of layer i,
    under `layers.<i>.`:

    input_norm, post_norm                  [hidden], before attention and before the MLP
    attention_out_norm, mlp_out_norm       [hidden], on their outputs (`branch_norms`)
    qkv                                    [q_size + 2 * kv_size, hidden]: all queries, all keys, all values
    q_norm, k_norm                         [head_dim], or [heads * head_dim] with `each_head_norm`
    q_gate                                 [q_size, hidden] (`attention_gate`)
    o                                      [hidden, q_size]
    sinks                                  [heads]
    gate_up, down                          [2 * intermediate, hidden]: gate, then up; [hidden, intermediate]
    up, down                               where the MLP is not gated
    router, router.correction              [experts, hidden], [experts]: added to the weights for the choice
    experts.gate_up, experts.down          [experts * 2 * n, hidden], [experts * hidden, n]: expert after expert
    shared.gate_up, shared.down            the MLP beside the experts; shared_gate [1, hidden]
    q_a, q_a_norm, q_b (or q), kv_a, kv_a_norm, kv_b     latent attention, rows as in the DeepSeek-V2 files
    delta.qkvz                             linear attention: [channels + value_size, hidden]: all queries, keys, values,
                                           and all gates
    delta.ba                               [2 * value_heads, hidden]: all b, all a
    delta.conv                             [channels, taps]
    delta.a_log, delta.dt_bias             [value_heads]
    delta.norm, delta.out                  [value_dim]; [hidden, value_size]

    with `.bias` appended for a bias, of norms too.
    """

    target: str
    pieces: tuple[Piece, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(piece.shape[0] for piece in self.pieces), *self.pieces[0].shape[1:])


def check_names(
    params: Iterable[Param], found: dict[str, tuple[int, ...]], ignore: tuple[str, ...], where: str
) -> None:
    """Compares the rules with the names and shapes in a checkpoint, before any data is read.

    Raises ModelError naming tensors that are missing, surplus (unless a pattern of `ignore` matches) or mis-shaped.
    """
    wanted = {piece.name: piece.file_shape for param in params for piece in param.pieces}
    if missing := sorted(wanted.keys() - found.keys()):
        raise ModelError(f"{where}: missing tensor {_listed(missing)}")
    for name, shape in wanted.items():
        if tuple(found[name]) != shape:
            raise ModelError(
                f"{where}: tensor {name} has shape {list(found[name])}, the configuration says {list(shape)}"
            )
    surplus = [name for name in sorted(found.keys() - wanted.keys()) if not any(re.search(p, name) for p in ignore)]
    if surplus:
        raise ModelError(f"{where}: unexpected tensor {_listed(surplus)}")


def _listed(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
