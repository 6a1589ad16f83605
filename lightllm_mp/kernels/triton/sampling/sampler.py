"""Samples the next token of every sequence, without a sort and without waiting for the host.

Results are those of engine/sampling/torch_sampler.py.

Rows of logits are read in chunks. Their number depends on the vocabulary alone, so that a row's result does not depend
on other rows. `scan` writes a few words per chunk, `finish` combines them. An id drawn with noise is the best of its
chunk by scores relative to the chunk's largest logit; `finish` compares the chunks' winners by scores relative to the
row's largest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.triton.block_sizes import next_power_of_2
from lightllm_mp.kernels.triton.launch import kernel
from lightllm_mp.kernels.triton.sampling.noise import (
    INFINITE,
    LOWEST,
    first_largest,
    log_exponential,
    noise_keys,
    ordered,
    score_scale,
    value,
)
from lightllm_mp.kernels.triton.sampling.rules import (
    BAN_UNTIL,
    FLAGS,
    IS_ADJUSTED,
    IS_CUT,
    IS_DRAWN,
    IS_HELD,
    IS_MASKED,
    WORDS,
    SampledSequences,
    held_bits,
)

CHUNK = 4096
GROUP = 32
"""Ids per group, whose largest logit is kept for truncated rows: a cache line."""
FLOOR = tl.constexpr(-9999.0)
"""As in engine/sampling/logprobs.py."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How rows of `vocab` logits are cut. A block is a power of two."""

    vocab: int
    vocab_block: int
    chunk: int
    chunks: int
    chunks_block: int
    groups: int
    groups_block: int

    @classmethod
    def of(cls, vocab: int) -> RowLayout:
        vocab_block = next_power_of_2(max(vocab, GROUP))
        chunk = min(CHUNK, vocab_block)
        chunks, groups = triton.cdiv(vocab, chunk), triton.cdiv(vocab, GROUP)
        return cls(vocab, vocab_block, chunk, chunks, next_power_of_2(chunks), groups, next_power_of_2(groups))


@dataclass(slots=True)
class RowScan:
    """Results of a pass over `n` rows."""

    layout: RowLayout
    partial: Tensor
    """int32 [5, n, chunks]: key of the largest raw logit, and bits of the sum of exp relative to it; then of adjusted
    logits: key of the largest, id of the winner, and (rows that are cut) bits of the sum of exp of scores."""
    groups: Tensor
    """float32 [n, groups]: the largest logit of each group of ids, in rows that are cut; undefined in others."""

    @classmethod
    def of(cls, logits: Tensor, layout: RowLayout, *, cut: bool) -> RowScan:
        n = logits.shape[0]
        partial = torch.empty((5, n, layout.chunks), dtype=torch.int32, device=logits.device)
        return cls(layout, partial, logits.new_empty((n, layout.groups)) if cut else logits)

    def run(
        self,
        logits: Tensor,
        work: Tensor,
        table: Tensor,
        sequences: SampledSequences,
        masks: Tensor | None,
        *,
        adjusted: bool,
    ) -> None:
        """Scans `logits` float32 [n, vocab] and copies to `work` the rows that will be adjusted, masked ones as minus
        infinity, and of held ones what `masks` allow; with `adjusted`, scans those rows of `work`. `table` holds the
        rules."""
        layout, n = self.layout, logits.shape[0]
        _scan_kernel.launch(
            (layout.chunks, n, 1),
            _scan_kernel.arguments(
                logits=logits,
                work=work,
                rules=table,
                rows=sequences.rows,
                positions=sequences.positions,
                partial=self.partial,
                groups=self.groups,
                masks=self.partial if masks is None else masks,
                rows_at=sequences.rows_at,
                positions_at=sequences.positions_at,
                count=n,
                VOCAB=layout.vocab,
                CHUNK=layout.chunk,
                GROUP=GROUP,
                ADJUSTED=int(adjusted),
                HELD=int(masks is not None),
            ),
            warps=max(1, layout.chunk // 512),
        )

    def finish(
        self, logits: Tensor, work: Tensor, table: Tensor, sequences: SampledSequences, ids: Tensor, scores: Tensor
    ) -> None:
        """Completes `ids` int64 [n], which holds the ids of rows that were cut. Writes to `scores` float32 [2, n] the
        ids' logprobs and the log of each row's sum of exp. Both are NaN if the row's logits are not finite; the logprob
        of a held row is minus infinity if no id is left."""
        layout, n = self.layout, logits.shape[0]
        _finish_kernel.launch(
            (n, 1, 1),
            _finish_kernel.arguments(
                logits=logits,
                work=work,
                rules=table,
                rows=sequences.rows,
                positions=sequences.positions,
                partial=self.partial,
                ids=ids,
                scores=scores,
                rows_at=sequences.rows_at,
                positions_at=sequences.positions_at,
                count=n,
                VOCAB=layout.vocab,
                CHUNKS=layout.chunks,
                CHUNKS_BLOCK=layout.chunks_block,
            ),
            warps=1,
        )


@kernel(numbers=["rows_at", "positions_at", "count"])
def _scan_kernel(
    logits,
    work,
    rules,
    rows,
    positions,
    partial,
    groups,
    masks,
    rows_at,
    positions_at,
    count,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
    ADJUSTED: tl.constexpr,
    HELD: tl.constexpr,
):
    chunk, line = tl.program_id(0), tl.program_id(1)
    row = tl.load(rows + rows_at + line)
    position = tl.load(positions + positions_at + line)
    rule = rules + row * WORDS
    flags = tl.load(rule + FLAGS)
    adjusted = (((flags & IS_ADJUSTED) != 0) | (position < tl.load(rule + BAN_UNTIL))).to(tl.int32)
    CHUNKS: tl.constexpr = (VOCAB + CHUNK - 1) // CHUNK
    GROUPS: tl.constexpr = (VOCAB + GROUP - 1) // GROUP
    if adjusted >= ADJUSTED:
        source = work if ADJUSTED else logits
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        inside = at < VOCAB
        begin = line.to(tl.int64) * VOCAB
        x = tl.load(source + begin + at, mask=inside, other=float("-inf"))
        key = ordered(x)
        top = tl.max(key, 0)
        shift = tl.where((top > LOWEST) & (top < INFINITE), value(top), 0.0)
        place, stride = partial + line * CHUNKS + chunk, count * CHUNKS
        if ADJUSTED == 0:
            tl.store(place, top)
            tl.store(place + stride, tl.sum(tl.exp(x - shift), 0).to(tl.int32, bitcast=True))
            if adjusted != 0:
                copied = tl.where((flags & IS_MASKED) != 0, float("-inf"), x)
                if HELD:
                    copied = tl.where(held_bits(masks, line, count, at, inside, VOCAB) != 0, copied, float("-inf"))
                tl.store(work + begin + at, copied, mask=inside)
        if adjusted == ADJUSTED:
            winner = tl.min(tl.where(key == top, at, VOCAB - 1), 0)
            if (flags & IS_DRAWN) != 0:
                scores = (x - shift) * score_scale(rule)
                if (flags & IS_CUT) != 0:
                    group = chunk * (CHUNK // GROUP) + tl.arange(0, CHUNK // GROUP)
                    best = tl.max(tl.reshape(x, [CHUNK // GROUP, GROUP]), 1)
                    tl.store(groups + line.to(tl.int64) * GROUPS + group, best, mask=group < GROUPS)
                    tl.store(place + 4 * stride, tl.sum(tl.exp(scores), 0).to(tl.int32, bitcast=True))
                else:
                    key0, key1 = noise_keys(rule, position)
                    winner = first_largest(scores - log_exponential(at, key0, key1), at, inside)
            tl.store(place + 2 * stride, top)
            tl.store(place + 3 * stride, winner)


@kernel(numbers=["rows_at", "positions_at", "count"])
def _finish_kernel(
    logits,
    work,
    rules,
    rows,
    positions,
    partial,
    ids,
    scores,
    rows_at,
    positions_at,
    count,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNKS_BLOCK: tl.constexpr,
):
    line = tl.program_id(0)
    row = tl.load(rows + rows_at + line)
    position = tl.load(positions + positions_at + line)
    rule = rules + row * WORDS
    flags = tl.load(rule + FLAGS)
    c = tl.arange(0, CHUNKS_BLOCK)
    inside = c < CHUNKS
    place, stride = partial + line * CHUNKS + c, count * CHUNKS
    begin = line.to(tl.int64) * VOCAB

    tops = tl.load(place, mask=inside, other=LOWEST)
    top = tl.max(tops, 0)
    sums = tl.load(place + stride, mask=inside, other=0).to(tl.float32, bitcast=True)
    best = value(top)
    weights = tl.where(tops > LOWEST, sums * tl.exp(value(tops) - best), 0.0)
    norm = best + tl.log(tl.sum(weights, 0))

    own_tops = tl.load(place + 2 * stride, mask=inside, other=LOWEST)
    winners = tl.load(place + 3 * stride, mask=inside, other=VOCAB - 1)
    own_top = tl.max(own_tops, 0)
    chosen = tl.min(tl.where(own_tops == own_top, winners, VOCAB - 1), 0)
    if (flags & IS_DRAWN) != 0:
        chosen = tl.zeros([], tl.int32)
        if (own_top > LOWEST) & (own_top < INFINITE):
            if (flags & IS_CUT) != 0:
                chosen = tl.load(ids + line).to(tl.int32)
            else:
                source = logits + begin
                if ((flags & IS_ADJUSTED) != 0) | (position < tl.load(rule + BAN_UNTIL)):
                    source = work + begin
                x = tl.load(source + winners, mask=inside, other=float("-inf"))
                key0, key1 = noise_keys(rule, position)
                noise = log_exponential(winners, key0, key1)
                chosen = first_largest((x - value(own_top)) * score_scale(rule) - noise, winners, inside)

    logprob = tl.load(logits + begin + chosen) - norm
    logprob = tl.where(((flags & IS_HELD) != 0) & (own_top <= LOWEST), float("-inf"), tl.maximum(logprob, FLOOR))
    good = (top > LOWEST) & (top < INFINITE)
    tl.store(ids + line, tl.where(good, chosen, 0).to(tl.int64))
    tl.store(scores + line, tl.where(good, logprob, float("nan")))
    tl.store(scores + count + line, tl.where(good, norm, float("nan")))
