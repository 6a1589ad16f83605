"""Masks of constrained decoding: the ids that sequences may take in a step, as bits from the guide actor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightllm_mp.engine.sampling.rules import Lines


@dataclass(frozen=True, slots=True)
class GuideMasks:
    lines: Lines
    """[g], ascending: constrained sequences, as indices among the sequences that are sampled together."""
    bits: NDArray[np.int32]
    """[g, ceil(vocab / 32)]: one bit per id, the lowest bit first."""

    @classmethod
    def of(cls, lines: Lines, bits: bytes, vocab: int) -> GuideMasks:
        """From the bytes of the guide actor. ValueError unless `bits` has one mask per line."""
        words = -(-vocab // 32)
        if len(bits) != 4 * words * len(lines):
            raise ValueError(f"masks of {len(bits)} bytes for {len(lines)} sequences and {vocab} ids")
        return cls(lines, np.frombuffer(bits, "<i4").reshape(len(lines), words))

    def part(self, part: slice) -> GuideMasks | None:
        """The masks of a part of the sequences; None if it has no constrained one."""
        begin, end = self.lines.searchsorted((part.start, part.stop)).tolist()
        return GuideMasks(self.lines[begin:end] - part.start, self.bits[begin:end]) if begin < end else None

    def forbidden(self, vocab: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """The index of each constrained sequence, with its forbidden ids, bool [vocab]."""
        for line, bits in zip(self.lines.tolist(), self.bits, strict=True):
            yield line, np.unpackbits(~bits.view(np.uint8), count=vocab, bitorder="little").view(np.bool_)

    def parts(self, sequences: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The form that kernels read: each sequence's index in `bits`, or -1, and `bits`."""
        at = np.full(sequences, -1, np.int32)
        at[self.lines] = np.arange(len(self.lines))
        return at, self.bits.ravel()
