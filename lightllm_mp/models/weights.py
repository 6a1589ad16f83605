"""Weight rules: which tensors of a checkpoint make up which parameter of the decoder. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lightllm_mp.errors import ModelError

SHOWN = 3
"""How many tensor names an error message spells out."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the file. `transform` brings it into the decoder's row order and keeps its shape."""

    name: str
    shape: tuple[int, ...]
    transform: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of the decoder: its pieces stacked along the first dimension.

    `target` is `embed`, `norm`, `head` or `layers.<i>.<name>`, with `.bias` appended for a bias.
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

    Raises ModelError naming the tensors that are missing, surplus (unless matched by a pattern in `ignore`) or of
    another shape.
    """
    wanted = {piece.name: piece.shape for param in params for piece in param.pieces}
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
