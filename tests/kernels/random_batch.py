"""Random steps over a random KV pool, for comparing ops."""

from __future__ import annotations

from dataclasses import replace

import torch

from lightllm_mp.kernels import reference
from lightllm_mp.kernels.batch import Batch
from lightllm_mp.kernels.table import HeadLayout, LayerKV

SLOTS, WIDTH = 1500, 400
"""At least."""


def image(new: int) -> tuple[int, int]:
    """Start and end of the image among a sequence's new tokens."""
    return new // 4, max(new - new // 8, new // 4)


def visible(new: int, context: int) -> list[int]:
    """`Batch.visible` of a sequence."""
    begin, end = image(new)
    return [context - new + (end if begin <= i < end else i + 1) for i in range(new)]


class RandomStep:
    """Sequences with these (new tokens, context), shuffled slots, and keys and values for all of them. Values of
    another width are the first part of the keys (latent attention)."""

    def __init__(self, sizes: list[tuple[int, int]], layout: HeadLayout, dtype: torch.dtype, seed: int = 0) -> None:
        self.layout = layout
        random = torch.Generator().manual_seed(seed)
        contexts = [context for _, context in sizes]
        width, slots = max(WIDTH, *contexts), max(SLOTS, sum(contexts))
        self.table = torch.full((len(sizes) + 2, width), slots, dtype=torch.int32)
        free = torch.randperm(slots, generator=random).int()
        for row, (_, context) in enumerate(sizes):
            self.table[row + 1, :context], free = free[:context], free[context:]
        rows = list(range(1, len(sizes) + 1))
        self.batch = Batch.of([n for n, _ in sizes], contexts, rows, self.table)
        if layout.image_spans:
            self.batch.visible = torch.tensor([end for size in sizes for end in visible(*size)], dtype=torch.int32)
        shape = (slots + 1, layout.kv_heads, layout.head_dim)
        self.keys = torch.randn(shape, generator=random).to(dtype)
        apart = torch.randn(shape, generator=random).to(dtype)
        self.values = self.keys[..., : layout.value_dim] if layout.value_dim else apart
        tokens, width = self.batch.tokens, layout.heads * layout.head_dim
        self.q = torch.randn(tokens, width, generator=random).to(dtype)
        all_heads = (layout.heads + 2 * layout.kv_heads) * layout.head_dim
        self.qkv = torch.randn(tokens, all_heads, generator=random).to(dtype)

    @property
    def kv(self) -> LayerKV:
        return LayerKV(self.keys, self.values)

    def stored_as(self, dtype: torch.dtype) -> LayerKV:
        """The pool in 8 bits."""
        shape = self.keys.shape
        scales = (torch.zeros(shape[:2], dtype=torch.float16) for _ in range(2))
        kv = LayerKV(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), *scales)
        everywhere = replace(self.batch, slots=torch.arange(shape[0], dtype=torch.int32))
        reference.TABLE.kv_write(self.keys, self.values, kv, everywhere)
        return kv

    def spoil_behind_windows(self) -> None:
        """Writes NaN where no new token of a sequence reads: those slots may belong to others."""
        starts, contexts, rows = (x.tolist() for x in (self.batch.seq_start, self.batch.context, self.batch.rows))
        for i, (context, row) in enumerate(zip(contexts, rows, strict=True)):
            behind = self.table[row, : max(0, context - (starts[i + 1] - starts[i]) - self.layout.window + 1)].long()
            self.keys[behind] = self.values[behind] = float("nan")

    def part(self, sequence: int, start: int, end: int) -> tuple[torch.Tensor, Batch]:
        """The step with only the new tokens [start, end) of one sequence, after those before them."""
        first = int(self.batch.seq_start[sequence])
        new = int(self.batch.seq_start[sequence + 1]) - first
        context = int(self.batch.context[sequence]) - new + end
        batch = Batch.of([end - start], [context], [int(self.batch.rows[sequence])], self.table)
        if self.batch.visible is not None:
            batch.visible = self.batch.visible[first + start : first + end].contiguous()
        return self.q[first + start : first + end].contiguous(), batch
