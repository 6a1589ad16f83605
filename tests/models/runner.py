"""Runs forward steps by hand: a KV pool with shuffled slots, and sequences that take turns or share steps."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field

import torch

from lightllm_mp.kernels.batch import Batch, StateSave
from lightllm_mp.models.decoder.decoder import Decoder
from lightllm_mp.models.decoder.embedding import ImageRows
from lightllm_mp.models.decoder.kv_pool import KVPool
from lightllm_mp.models.decoder.length_class import class_bounds
from lightllm_mp.models.decoder.state_pool import StatePool
from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.vision.sizing import PatchGrid, PlacedImage, mrope_positions
from tests.models.golden import Prompt, Slots


def length_class(spec: ModelSpec, prompt: int) -> int:
    """Class of a prompt of `prompt` tokens, as in the scheduler; the last one for prompts that are too long."""
    return bisect_left(class_bounds(spec), prompt)


@dataclass
class Sequence:
    """One sequence: its row in the slot table and the ids whose keys and values are in the pool."""

    row: int
    ids: list[int] = field(default_factory=list)
    prompt: int = 0
    """Length of the prompt, as far as it is known; 0: nothing was fed yet."""
    slots: tuple[Slots, ...] = ()
    rotary: torch.Tensor | None = None
    """[prompt, 3]: positions by component."""
    shift: int = 0
    """The shift of the positions behind these."""
    kept: dict[int, int] = field(default_factory=dict)
    """Places of kept states by their number of tokens."""

    def rotary_at(self, start: int, end: int) -> torch.Tensor:
        """[end - start, 3]"""
        after = torch.arange(start, end)[:, None].repeat(1, 3) + self.shift
        known = 0 if self.rotary is None else max(0, len(self.rotary) - start)
        return after if self.rotary is None else torch.cat((self.rotary[start:end], after[known:]))

    def images(self, line: int, start: int, end: int) -> list[ImageRows]:
        """The image rows for positions start .. end - 1, the first of which is row `line` of a step."""
        parts = ((s, max(start, s.start), min(end, s.end)) for s in self.slots)
        return [_image_rows(s, line + a - start, slice(a - s.start, b - s.start)) for s, a, b in parts if a < b]


def _image_rows(slots: Slots, line: int, part: slice) -> ImageRows:
    return ImageRows(line, slots.embeds[part], None if slots.deep is None else slots.deep[:, part])


class Runner:
    """Steps a decoder on its device and copies the results to the host. Slots come from a shuffled free list, so no
    test depends on their order. If some layers have a window, these have their own slots."""

    def __init__(self, decoder: Decoder, *, slots: int = 4096, rows: int = 64, width: int = 1024) -> None:
        self.decoder = decoder
        self.device = decoder.rotary.device
        self.states = None
        if decoder.spec.delta is not None:
            self.states = StatePool(decoder.spec, rows, rows, dtype=decoder.dtype, device=self.device)
            for state in (self.states.recurrent, self.states.conv):
                state.fill_(float("nan"))
        near = slots - 1 if decoder.spec.window is not None and decoder.spec.global_layers else 0
        self.kv = KVPool(
            decoder.spec, slots, dtype=decoder.dtype, device=self.device, states=self.states, window_slots=near
        )
        self.kv.data.fill_(float("nan"))  # memory that was not written must not be read
        spare = torch.tensor(self.kv.spare_slots, dtype=torch.int32, device=self.device)
        self.tables = spare[:, None, None].repeat(1, rows, width)
        shuffled = torch.Generator().manual_seed(1)
        self.free = [torch.randperm(count, generator=shuffled).tolist() for count in self.kv.spare_slots]
        self.rows = 0
        self.kept = 0

    def sequence(self, prompt: Prompt | None = None, like: Sequence | None = None, shared: int = 0) -> Sequence:
        """A new sequence; its first `shared` tokens reuse the slots of `like`, as after a prefix hit. It has the images
        of `prompt`."""
        seq = Sequence(self.rows, slots=prompt.slots if prompt is not None else ())
        rope = self.decoder.spec.rope
        if prompt is not None and prompt.slots and rope is not None and rope.sections:
            merge = math.isqrt(math.prod(prompt.slots[0].grid) // len(prompt.slots[0].embeds))
            placed = [PlacedImage(s.start, PatchGrid(*s.grid)) for s in prompt.slots]
            positions, seq.shift = mrope_positions(len(prompt.ids), placed, merge)
            seq.rotary = torch.from_numpy(positions.T.copy())
            assert seq.shift == prompt.rope_delta
        self.rows += 1
        if like is not None:
            self.tables[:, seq.row, :shared] = self.tables[:, like.row, :shared]
            seq.ids = like.ids[:shared]
        if self.states is not None and like is not None and shared:
            self.states.copy([like.kept[shared]], [seq.row])
        elif self.states is not None:
            self.states.clear([seq.row])
        return seq

    def keep(self, seq: Sequence, tokens: int) -> None:
        """Keeps a state of the first `tokens` tokens when they are computed, if the model has states."""
        if self.states is not None:
            seq.kept[tokens] = self.states.first_checkpoint + self.kept
            self.kept += 1

    def step(self, work: list[tuple[Sequence, list[int]]]) -> list[torch.Tensor]:
        """Feeds each sequence its new ids in one forward pass; the logits [new ids, vocab] of each, or its scores
        [new ids] if the model gives those."""
        for seq, ids in work:
            at = len(seq.ids)
            for table, free in zip(self.tables, self.free, strict=True):
                table[seq.row, at : at + len(ids)] = self.ints([free.pop() for _ in ids])
            seq.ids = seq.ids + ids
            seq.prompt = seq.prompt or len(seq.ids)
        queries = [len(ids) for _, ids in work]
        batch = Batch.of(queries, [len(s.ids) for s, _ in work], [s.row for s, _ in work], *self.tables)
        firsts = [length_class(self.decoder.spec, s.prompt) * self.decoder.spec.max_context for s, _ in work]
        batch.rotary_at = batch.positions + self.ints(
            [f for f, n in zip(firsts, queries, strict=True) for _ in range(n)]
        )
        batch.state_saves = tuple(
            StateSave(i, tokens - len(seq.ids) + queries[i], place)
            for i, (seq, _) in enumerate(work)
            for tokens, place in sorted(seq.kept.items())
            if 0 < tokens - len(seq.ids) + queries[i] <= queries[i]
        )
        images: list[ImageRows] = []
        if any(s.slots for s, _ in work):
            spans = [(s, len(s.ids) - n, len(s.ids)) for (s, _), n in zip(work, queries, strict=True)]
            for (s, start, end), line in zip(spans, batch.seq_start.tolist(), strict=False):
                images += s.images(line, start, end)
            if any(s.rotary is not None for s, _ in work):
                batch.rotary_at = torch.cat([s.rotary_at(start, end) for s, start, end in spans]).int().to(self.device)
        ids = self.ints([i for _, ids in work for i in ids])
        hidden = self.decoder.forward(ids, batch, self.kv, images)
        if self.decoder.spec.pooling is None:
            return list(self.decoder.logits(hidden).cpu().split(queries))
        return [rows.squeeze(-1) for rows in self.decoder.pool(hidden).cpu().split(queries)]

    def ints(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def prefill(self, seq: Sequence, ids: list[int], chunk: int | None = None) -> torch.Tensor:
        """Feeds a prompt alone in chunks; logits of all its positions."""
        chunk, at = chunk or len(ids), len(seq.ids)
        seq.prompt = seq.prompt or at + len(ids)
        parts, start = [], at
        while start < at + len(ids):
            end = self.whole(seq.slots, min(start + chunk, at + len(ids)), up=True)
            parts += self.step([(seq, ids[start - at : end - at])])
            start = end
        return torch.cat(parts)

    def whole(self, slots: tuple[Slots, ...], position: int, *, up: bool = False) -> int:
        """`position`, or the start or end (`up`) of the image that it cuts, if the model computes images whole."""
        cut = [s for s in slots if s.start < position < s.end and self.decoder.spec.image_span]
        return position if not cut else cut[0].end if up else cut[0].start

    def decode(self, work: list[tuple[Sequence, torch.Tensor]], count: int) -> tuple[list[list[int]], torch.Tensor]:
        """Greedy continuation of sequences, together, from the logits of their last positions.

        Returns `count` ids for each, and the logits [sequences, count, vocab] that they were chosen from.
        """
        seqs = [seq for seq, _ in work]
        last = torch.stack([logits[-1] for _, logits in work])
        seen = [last]
        for _ in range(count - 1):
            ids = last.argmax(-1).tolist()
            last = torch.cat(self.step([(seq, [i]) for seq, i in zip(seqs, ids, strict=True)]))
            seen.append(last)
        logits = torch.stack(seen, dim=1)
        return logits.argmax(-1).tolist(), logits
