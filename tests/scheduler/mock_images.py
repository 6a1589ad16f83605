"""A visual actor without a model: a slot's embedding is the slot's pseudo id, and the mock tracks the leases."""

from __future__ import annotations

import numpy as np

from lightllm_mp.messages import Embedded, ImageBlock, ImageInfo, ImageSpan, Tokenized
from lightllm_mp.vision.placeholders import pseudo_ids

ROW_BYTES = 4
GONE = -7
"""Content of a block without a lease."""
Part = list[int] | tuple[str, int]
"""Part of a prompt: ids of text, or an image's name and its number of slots."""


def image_prompt(vocab: int, *parts: Part) -> tuple[list[int], tuple[ImageSpan, ...]]:
    ids: list[int] = []
    spans = []
    for part in parts:
        if isinstance(part, tuple):
            image = ImageInfo(part[0].encode(), 0, 0, part[1])
            spans.append(ImageSpan(len(ids), image))
            ids += pseudo_ids(image, vocab).tolist()
        else:
            ids += part
    return ids, tuple(spans)


class MockImages:
    """Blocks have large offsets, so that these need both words of a plan. A block without a lease is overwritten."""

    base = 5 << 32

    def __init__(self, vocab: int) -> None:
        self._vocab = vocab
        self._memory = np.full(0, GONE, np.int64)
        self._blocks: dict[bytes, tuple[int, int]] = {}
        """Key -> (first row, number of rows)."""
        self.leases: dict[int, tuple[bytes, ...]] = {}
        self.released: list[int] = []

    def embed(self, request: Tokenized) -> Embedded:
        """The answer to a request's Encode."""
        assert request.rid not in self.leases
        rows = {span.image.key: span.image.tokens for span in reversed(request.spans)}
        self.leases[request.rid] = keys = tuple(dict.fromkeys(span.image.key for span in request.spans))
        blocks = [self._block(key, rows[key]) for key in keys]
        return Embedded(request.rid, tuple(blocks))

    def _block(self, key: bytes, rows: int) -> ImageBlock:
        if key not in self._blocks:
            self._blocks[key] = len(self._memory), rows
            self._memory = np.append(self._memory, pseudo_ids(ImageInfo(key, 0, 0, rows), self._vocab))
        return ImageBlock(key, self.base + ROW_BYTES * self._blocks[key][0], rows, 1)

    def release(self, rid: int) -> None:
        """Give a lease back. KeyError when it comes back twice, or was never given."""
        gone = set(self.leases.pop(rid)) - {key for keys in self.leases.values() for key in keys}
        self.released.append(rid)
        for key in gone:
            first, rows = self._blocks.pop(key)
            self._memory[first : first + rows] = GONE

    def reset(self) -> None:
        """Forget the leases. The embeddings stay."""
        self.leases.clear()

    def rows(self, offset: int, first: int, count: int) -> np.ndarray:
        start = (offset - self.base) // ROW_BYTES + first
        assert 0 <= start <= start + count <= len(self._memory)
        return self._memory[start : start + count]
