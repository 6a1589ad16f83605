"""CUDA graphs of decode steps, captured for a ladder of batch sizes; a step takes the next larger size."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable

import torch

GRAPH_BYTES = 4 << 20
"""An upper bound of the bytes that the driver keeps for a captured step."""


def graph_bytes(most: int) -> int:
    """Device memory of the graphs of steps of up to `most` sequences, beside what the largest needs to run."""
    return GRAPH_BYTES * len(ladder(most))


def ladder(most: int) -> list[int]:
    """Sizes up to `most` that keep padding small: 1, 2, 4, 8, then steps of 8, 16 and 32."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, most, 32)]
    return [size for size in sizes if size < most] + [most]


class DecodeGraphs:
    """Captures `work(size)` for each size, the largest first, so that smaller graphs fit into its memory."""

    def __init__(self, work: Callable[[int], None], most: int) -> None:
        self._work = work
        self._sizes = ladder(most)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, count: int | None = None) -> None:
        """Capture all sizes, or the `count` largest."""
        gc.collect()
        gc.disable()  # freeing a tensor or graph would break the capture
        try:
            for size in self._sizes[::-1][:count]:
                self._capture(size)
        finally:
            gc.enable()

    def _capture(self, size: int) -> None:
        self._work(size)  # compiles kernels and sets up what a capture must not
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._work(size)
        self._graphs[size] = graph

    def size_for(self, sequences: int) -> int | None:
        """The size of the graph that serves this many sequences; None if there is none."""
        at = bisect_left(self._sizes, sequences)
        size = self._sizes[at] if at < len(self._sizes) else None
        return size if size in self._graphs else None

    def replay(self, size: int) -> None:
        self._graphs[size].replay()
