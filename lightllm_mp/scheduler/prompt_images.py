"""The images of a prompt as the scheduler knows them: where they stand, where their embeddings lie, who reads them."""

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
    """Positions position .. position + length - 1 take rows first .. first + length - 1 of the block at `offset`."""

    position: int
    length: int
    offset: int
    first: int


@dataclass(slots=True, eq=False)
class PromptImages:
    """Shared by the n sequences of a request. `offsets`: of each span's block, in bytes of image memory."""

    rid: int
    spans: tuple[ImageSpan, ...]
    offsets: tuple[int, ...]
    rotary: Ints | None = None
    """int32 [positions up to the last image's end, 3]: rotary lines by component, for models with such positions."""
    shift: int = 0
    """What later positions are moved by."""

    def parts(self, start: int, end: int) -> Iterator[ImagePart]:
        """What the chunk of positions start .. end - 1 reads of the images."""
        for span, offset in zip(self.spans, self.offsets, strict=True):
            first, last = max(start, span.start), min(end, span.end)
            if first < last:
                yield ImagePart(first, last - first, offset, first - span.start)

    def rotary_lines(self, start: int, end: int) -> Ints:
        """Those of the chunk that `shift` does not tell: int32 [n, 3] from position `start` on, perhaps none."""
        return np.empty((0, 3), np.int32) if self.rotary is None else self.rotary[start:end]


def prompt_images(request: Tokenized, embedded: Embedded | None) -> PromptImages | None:
    """What a request with image spans says, and what the visual actor has for it; None: there are no images.

    ValueError when these do not go together: one of them broke the protocol.
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
    """Lines up to the end of the last image, and the shift of what follows. A slot is merge x merge patches."""
    if not any(span.image.grid for span in spans):
        return None, 0
    merge = math.isqrt(math.prod(spans[0].image.grid) // spans[0].image.tokens)
    placed = [PlacedImage(span.start, PatchGrid(*span.image.grid)) for span in spans]
    positions, shift = mrope_positions(spans[-1].end, placed, merge)
    return np.ascontiguousarray(positions.T), shift


class Leases:
    """Which requests' embeddings the visual actor has to keep, and which may go.

    A lease is held until the last of the request's sequences has ended: whoever is preempted may have to read the
    images again. Even then a step in flight may read them, so it is given back when the newest of these is answered.
    """

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        """By the request's rid: sequences that have not ended."""
        self._leaving: dict[int, int] = {}
        """By rid: the step whose answer is waited for."""

    def hold(self, images: PromptImages | None, sequences: int) -> None:
        if images is not None:
            self.held[images.rid] = sequences

    def let_go(self, images: PromptImages | None, newest: int | None) -> list[int]:
        """One of the sequences has ended; `newest` is the last step in flight. The rids to be given back now."""
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
        """A step is done: the rids to be given back now."""
        free = [rid for rid, newest in self._leaving.items() if newest <= step]
        for rid in free:
            del self._leaving[rid]
        return free

    def clear(self) -> None:
        """The visual actor forgets its leases too."""
        self.held.clear()
        self._leaving.clear()

    @property
    def leaving(self) -> int:
        """Requests that only a step in flight keeps."""
        return len(self._leaving)
