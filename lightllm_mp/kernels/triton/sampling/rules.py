"""The sampling rules of all rows on the device, and the kernels that apply bias, ban, mask and penalties to logits.

A row's rules are one record of a table of words; neutral values turn a rule off. Biases and banned ids are entries of
a tail: distinct ids, those to ban with BANNED set, then as many values to add. A row with MASKED may sample the ids of
its tail only: the scan of sampler.py copies the row to `work` as minus infinity, and `adjust` puts the tail's ids back.
A row with HELD has a mask of its own in each step, int32 bits; the scan copies what it allows. The masks of a step are
one int32 tensor: for each of its n sequences the index of its mask, or -1, then the masks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from lightllm_mp.kernels.triton.launch import kernel

RULE = np.dtype(
    [
        ("flags", "<i4"),
        ("seed", "<i8"),
        ("temperature", "<f4"),
        ("top_k", "<i4"),
        ("top_p", "<f4"),
        ("reach", "<f4"),
        ("presence", "<f4"),
        ("frequency", "<f4"),
        ("repetition", "<f4"),
        ("counted_from", "<i4"),
        ("ban_until", "<i4"),
        ("tail_start", "<i4"),
        ("tail_count", "<i4"),
        ("spare", "<i8"),
    ]
)
"""One row. `top_k` 0, `top_p` 1 and `reach` infinity: off. `reach` is the largest distance of a score below the best,
-log(min_p). Penalties count from position `counted_from` on; ids are banned while the position to sample is below
`ban_until`."""
RULE_WORDS = RULE.itemsize // 4
PENALIZED, BIASED, DRAWN, CUT, MASKED, HELD = 1, 2, 4, 8, 16, 32
"""Bits of `flags`: the row has penalties, biases, noise, limits (top-k, top-p, min-p), allowed ids, or masks."""
BANNED = -(1 << 31)

BLOCK = 1024
MOST_PARTS = 32
"""Programs that share one row's history."""


def _word(name: str) -> tl.constexpr:
    assert RULE.fields is not None
    return tl.constexpr(RULE.fields[name][1] // 4)


WORDS = tl.constexpr(RULE_WORDS)
FLAGS, SEED, TEMPERATURE = _word("flags"), _word("seed"), _word("temperature")
TOP_K, TOP_P, REACH = _word("top_k"), _word("top_p"), _word("reach")
PRESENCE, FREQUENCY, REPETITION = _word("presence"), _word("frequency"), _word("repetition")
COUNTED_FROM, BAN_UNTIL = _word("counted_from"), _word("ban_until")
TAIL_START, TAIL_COUNT = _word("tail_start"), _word("tail_count")
IS_PENALIZED, IS_DRAWN, IS_CUT, IS_MASKED = (tl.constexpr(bit) for bit in (PENALIZED, DRAWN, CUT, MASKED))
IS_HELD = tl.constexpr(HELD)
HAS_TAIL = tl.constexpr(BIASED | MASKED)
"""A row's tail counts with one of these flags, or while the position is below `ban_until`."""
IS_ADJUSTED = tl.constexpr(PENALIZED | BIASED | MASKED | HELD)
"""A row is adjusted with one of these flags, or while the position is below `ban_until`."""


class SampledSequences(NamedTuple):
    """The sequences that are sampled together: where their rows and the positions to sample begin."""

    rows: Tensor
    """int32, from `rows_at` on."""
    positions: Tensor
    """int32, from `positions_at` on."""
    rows_at: int
    positions_at: int


def store_rules(table: Tensor, tails: Tensor, words: Tensor, rows: int, tail_at: int) -> None:
    """Writes `words` int32, which hold row numbers, RULE records of as many `rows`, and tail entries, to `table` int32
    [any, RULE_WORDS] and to `tails` int32 from `tail_at` on."""
    rest = words.shape[0] - rows
    grid = (triton.cdiv(rest, BLOCK), 1, 1)
    _store_kernel.launch(
        grid,
        _store_kernel.arguments(
            table=table, tails=tails, words=words, rows=rows, rest=rest, tail_at=tail_at, BLOCK=BLOCK
        ),
    )


def adjust(
    logits: Tensor,
    work: Tensor,
    counts: Tensor,
    tokens: Tensor,
    table: Tensor,
    tails: Tensor,
    sequences: SampledSequences,
    masks: Tensor | None,
    longest: int,
    *,
    penalties: bool,
) -> None:
    """Applies bias, ban, mask and `penalties` in place to `work` float32 [n, vocab], for sequences that have them.
    `work` holds their `logits`, or minus infinity if they are masked. `masks`: those of the step.

    `counts` int32 [at least n, vocab] is zero before and after. `tokens` int32 [any, width] is the token table,
    `longest` the largest position.
    """
    n, vocab = work.shape
    grid = (min(MOST_PARTS, triton.cdiv(longest, BLOCK)) if penalties else 1, n, 1)
    _adjust_kernel.launch(
        grid,
        _adjust_kernel.arguments(
            logits=logits,
            work=work,
            counts=counts,
            tokens=tokens,
            rules=table,
            tails=tails,
            rows=sequences.rows,
            positions=sequences.positions,
            masks=counts if masks is None else masks,
            rows_at=sequences.rows_at,
            positions_at=sequences.positions_at,
            width=tokens.shape[1],
            VOCAB=vocab,
            BLOCK=BLOCK,
            HELD=int(masks is not None),
        ),
    )
    if penalties:
        _penalize_kernel.launch(
            grid,
            _penalize_kernel.arguments(
                work=work,
                counts=counts,
                tokens=tokens,
                rules=table,
                rows=sequences.rows,
                positions=sequences.positions,
                rows_at=sequences.rows_at,
                positions_at=sequences.positions_at,
                width=tokens.shape[1],
                VOCAB=vocab,
                BLOCK=BLOCK,
            ),
        )


@triton.jit
def held_bits(masks, line, lines, at, inside, VOCAB: tl.constexpr):
    """1 at the ids `at` that the mask of the sequence `line` of `lines` allows, 0 at others; no mask allows all."""
    mask = tl.load(masks + line)
    words: tl.constexpr = (VOCAB + 31) // 32
    held = inside & (tl.where(mask >= 0, at, VOCAB) < VOCAB)
    word = tl.load(masks + lines + mask.to(tl.int64) * words + at // 32, mask=held, other=-1)
    return (word >> (at % 32)) & 1


@kernel(numbers=["rows", "rest", "tail_at"])
def _store_kernel(table, tails, words, rows, rest, tail_at, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words + rows + at, mask=at < rest, other=0)
    of_rules = at < rows * WORDS
    row = tl.load(words + at // WORDS, mask=of_rules, other=0)
    tl.store(table + row * WORDS + at % WORDS, word, mask=of_rules)
    tl.store(tails + tail_at + at - rows * WORDS, word, mask=(at < rest) & (at >= rows * WORDS))


@kernel(numbers=["rows_at", "positions_at", "width"])
def _adjust_kernel(
    logits,
    work,
    counts,
    tokens,
    rules,
    tails,
    rows,
    positions,
    masks,
    rows_at,
    positions_at,
    width,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    HELD: tl.constexpr,
):
    """Adds biases and bans, puts allowed ids back, and counts the history."""
    part, parts, line = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    row = tl.load(rows + rows_at + line)
    position = tl.load(positions + positions_at + line)
    begin = line.to(tl.int64) * VOCAB
    rule = rules + row * WORDS
    flags, banning = tl.load(rule + FLAGS), position < tl.load(rule + BAN_UNTIL)
    if ((flags & IS_ADJUSTED) != 0) | banning:
        biasing = (flags & HAS_TAIL) != 0
        source = work + begin
        if (flags & IS_MASKED) != 0:
            source = logits + begin
        many = tl.where(biasing | banning, tl.load(rule + TAIL_COUNT), 0)
        tail = tails + tl.load(rule + TAIL_START)
        for first in range(part * BLOCK, many, parts * BLOCK):
            at = first + tl.arange(0, BLOCK)
            entry = tl.load(tail + at, mask=at < many, other=0)
            value = tl.load(tail + many + at, mask=at < many, other=0).to(tl.float32, bitcast=True)
            token = entry & 0x7FFFFFFF
            adjusted = tl.load(source + token, mask=at < many, other=0.0) + value
            adjusted = tl.where((entry < 0) & banning, float("-inf"), adjusted)
            if HELD:
                allowed = held_bits(masks, line, tl.num_programs(1), token, at < many, VOCAB)
                adjusted = tl.where(allowed != 0, adjusted, float("-inf"))
            tl.store(work + begin + token, adjusted, mask=at < many)
        start = tl.where((flags & IS_PENALIZED) != 0, tl.load(rule + COUNTED_FROM), position)
        for first in range(start + part * BLOCK, position, parts * BLOCK):
            at = first + tl.arange(0, BLOCK)
            token = tl.load(tokens + row.to(tl.int64) * width + at, mask=at < position, other=-1)
            tl.atomic_add(counts + begin + token, 1, mask=(token >= 0) & (token < VOCAB), sem="relaxed")


@kernel(numbers=["rows_at", "positions_at", "width"])
def _penalize_kernel(
    work, counts, tokens, rules, rows, positions, rows_at, positions_at, width, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    """Reads the history again: the program that takes an id's count applies it, so counts are zero afterwards."""
    part, parts, line = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    row = tl.load(rows + rows_at + line)
    position = tl.load(positions + positions_at + line)
    begin = line.to(tl.int64) * VOCAB
    rule = rules + row * WORDS
    if (tl.load(rule + FLAGS) & IS_PENALIZED) != 0:
        presence, frequency = (
            tl.load(rule + PRESENCE).to(tl.float32, bitcast=True),
            tl.load(rule + FREQUENCY).to(tl.float32, bitcast=True),
        )
        repetition = tl.load(rule + REPETITION).to(tl.float32, bitcast=True)
        for first in range(tl.load(rule + COUNTED_FROM) + part * BLOCK, position, parts * BLOCK):
            at = first + tl.arange(0, BLOCK)
            token = tl.load(tokens + row.to(tl.int64) * width + at, mask=at < position, other=-1)
            known = (token >= 0) & (token < VOCAB)
            seen = tl.atomic_xchg(counts + begin + token, 0, mask=known, sem="relaxed")
            mine = known & (seen > 0)
            value = tl.load(work + begin + token, mask=mine, other=0.0)
            scaled = tl.where(value > 0, value / repetition, value * repetition)
            scaled -= frequency * seen.to(tl.float32) + presence
            tl.store(work + begin + token, scaled, mask=mine & (value > float("-inf")))
