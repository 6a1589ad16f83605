"""Chunked prefill: which prompt positions the next step computes, and their KV slots."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import ImageSpan
from lightllm_mp.scheduler.admission import UPLOAD_POSITIONS, service_order
from lightllm_mp.scheduler.kv_memory import KvMemory
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence


def whole_images(spans: Seq[ImageSpan], start: int, count: int, most: int) -> int:
    """The length of a chunk from `start`: `count` tokens, unless it would end inside an image. Then it ends behind that
    image if `most` tokens reach that far, else before it."""
    for span in spans:
        if span.start < start + count < span.end:
            return span.end - start if span.end - start <= most else max(span.start - start, 0)
    return count


class PromptChunks:
    """`moved` gets (row, life, start, end) of positions whose slots the worker does not know yet."""

    def __init__(self, limits: EngineLimits, rows: Rows, kv: KvMemory, moved: list[tuple[int, int, int, int]]) -> None:
        self._rows, self._kv, self._moved = rows, kv, moved
        self._whole_images = limits.whole_images
        self._whole = limits.pooled.whole_prompts if limits.pooled is not None else 0

    def take(self, prefilling: Iterable[Sequence], budget: int) -> dict[Sequence, int]:
        """Give prompts, in service order, slots for the tokens that a step of `budget` tokens computes. Returns the
        start of each sequence's chunk."""
        return self._whole_prompts(prefilling) if self._whole else self._parts(list(prefilling), budget)

    def _whole_prompts(self, prefilling: Iterable[Sequence]) -> dict[Sequence, int]:
        """Give whole prompts slots. The first one that does not fit waits for the next step, and all behind it wait
        too, so that no long prompt waits forever."""
        rows, starts, budget = self._rows, dict[Sequence, int](), self._whole
        for sequence in prefilling:
            row, count = sequence.row, len(sequence.ids)
            slots = self._kv.take(count) if count <= budget or not starts else None
            if slots is None:
                break
            rows.slots[:, row, :count] = slots
            rows.planned[row] = count
            starts[sequence] = 0
            budget -= count
        return starts

    def _parts(self, prompts: list[Sequence], budget: int) -> dict[Sequence, int]:
        rows, starts, uploads = self._rows, dict[Sequence, int](), 0
        left = [(s.tenant, s.priority, int(rows.target[s.row] - rows.planned[s.row])) for s in prompts]
        for index, most in service_order(left, budget):
            if not (budget and self._kv.available):
                break
            sequence = prompts[index]
            row = sequence.row
            if sequence not in starts:
                self._catch_up(sequence)
                known = 0 if sequence.uploaded else int(rows.planned[row])
                if uploads and uploads + known > UPLOAD_POSITIONS:
                    continue
                uploads += known
            start, count = int(rows.planned[row]), min(most, budget, int(rows.target[row] - rows.planned[row]))
            room = min(budget, self._kv.available)
            count = min(count, room)
            if self._whole_images:
                count = whole_images(sequence.spans, start, count, room)
            slots = self._kv.take(count)
            if slots is None or not count:
                continue
            rows.slots[:, row, start : start + count] = slots
            rows.planned[row] += count
            starts.setdefault(sequence, start)
            budget -= count
        return starts

    def _catch_up(self, sequence: Sequence) -> None:
        """Use what other sequences have computed of this prompt since the sequence was admitted."""
        start, end = self._kv.catch_up(sequence)
        if sequence.uploaded and start < end:
            self._moved.append((sequence.row, int(self._rows.life[sequence.row]), start, end))
