"""The images of a prompt in the scheduler: their positions, the place of their embeddings, and their leases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightllm_mp.messages import Embedded, ImageSpan, Tokenized
from lightllm_mp.plan import Ints
from lightllm_mp.vision.sizing import PatchGrid, PlacedImage, mrope_positions


class ImagePart(NamedTuple):
    """Positions position .. position + length - 1 take rows first .. first + length - 1 of the `rows` at `offset`."""

    position: int
    length: int
    offset: int
    first: int
    rows: int


@dataclass(slots=True, eq=False)
class PromptImages:
    """The images of a request, shared by its n sequences. `offsets`: of each span's block in image memory, in bytes."""

    rid: int
    spans: tuple[ImageSpan, ...]
    offsets: tuple[int, ...]
    rotary: Ints | None = None
    """int32 [end of the last image, 3]: rows in the rotary tables by component, for models that need them."""
    shift: int = 0
    """The rotary shift of positions after the images."""

    def parts(self, start: int, end: int) -> Iterator[ImagePart]:
        """The image parts that the chunk of positions start .. end - 1 reads."""
        for span, offset in zip(self.spans, self.offsets, strict=True):
            first, last = max(start, span.start), min(end, span.end)
            if first < last:
                yield ImagePart(first, last - first, offset, span.first + first - span.start, span.image.tokens)

    def rotary_rows(self, start: int, end: int) -> Ints:
        """int32 [n, 3]: the chunk's rotary rows that `shift` does not give, from position `start` on; n may be 0."""
        return np.empty((0, 3), np.int32) if self.rotary is None else self.rotary[start:end]


def prompt_images(request: Tokenized, embedded: Embedded | None) -> PromptImages | None:
    """Join the image spans of a request with the visual actor's embeddings. None for a request without images.

    ValueError when the two do not match, because then one of the senders broke the protocol.
    """
    if not request.spans:
        return None
    blocks = {block.key: block for block in embedded.images} if embedded is not None else {}
    for span in request.spans:
        if span.image.key not in blocks or blocks[span.image.key].rows != span.image.tokens:
            raise ValueError(
                f"request {request.rid}: no embeddings for its image at {span.start} of {span.image.tokens} slots"
            )
    rotary, shift = _rotary(request.spans)
    return PromptImages(
        rid=request.rid,
        spans=request.spans,
        offsets=tuple(blocks[span.image.key].offset for span in request.spans),
        rotary=rotary,
        shift=shift,
    )


def _rotary(spans: Sequence[ImageSpan]) -> tuple[Ints | None, int]:
    """Rotary rows up to the end of the last image and the shift of later positions. A slot is merge x merge patches."""
    if not any(span.image.grid for span in spans):
        return None, 0
    merge = math.isqrt(math.prod(spans[0].image.grid) // spans[0].image.tokens)
    placed = [PlacedImage(span.start, PatchGrid(1, *span.image.grid[1:])) for span in spans]
    positions, shift = mrope_positions(spans[-1].end, placed, merge)
    return np.ascontiguousarray(positions.T), shift


class Leases:
    """Tracks which requests' embeddings the visual actor has to keep, and which it may drop.

    A lease lasts until the last sequence of the request has ended, because a preempted sequence may read the images
    again. Steps in flight may read them even then, so the lease is given back when the newest of these is answered.
    """

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        """By the request's rid: how many of its sequences have not ended."""
        self._leaving: dict[int, int] = {}
        """By rid: the step whose answer ends the lease."""

    def hold(self, images: PromptImages | None, sequences: int) -> None:
        if images is not None:
            self.held[images.rid] = sequences

    def let_go(self, images: PromptImages | None, newest: int | None) -> list[int]:
        """One of the sequences has ended; `newest` is the newest step in flight. Returns the rids to give back now."""
        if images is None:
            return []
        self.held[images.rid] -= 1
        if self.held[images.rid]:
            return []
        del self.held[images.rid]
        if newest is None:
            return [images.rid]
        self._leaving[images.rid] = newest
        return []

    def answered(self, step: int) -> list[int]:
        """A step is answered. Returns the rids to give back now."""
        free = [rid for rid, newest in self._leaving.items() if newest <= step]
        for rid in free:
            del self._leaving[rid]
        return free

    def clear(self) -> None:
        """Forget all leases; the visual actor does the same."""
        self.held.clear()
        self._leaving.clear()

    @property
    def leaving(self) -> int:
        """Number of requests whose lease only a step in flight holds."""
        return len(self._leaving)
