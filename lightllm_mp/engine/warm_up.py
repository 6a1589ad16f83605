"""Plans of the worst steps for warm-up: the longest prefill, the largest decode batch, every sampling rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightllm_mp.messages import Sampling
from lightllm_mp.plan import NO_STATE, PlanBuilder

EVERYTHING = Sampling(
    seed=1,
    temperature=0.8,
    top_k=50,
    top_p=0.95,
    min_p=0.01,
    presence_penalty=0.5,
    frequency_penalty=0.5,
    repetition_penalty=1.1,
    penalize_prompt=True,
    min_new_tokens=2,
    bias_ids=np.zeros(1, "<i4").tobytes(),
    bias_values=np.ones(1, "<f4").tobytes(),
    top_logprobs=20,
)
SHORT = 16
"""Tokens of a short chunk."""
HARDEST = (
    Sampling(seed=1),
    EVERYTHING,
    Sampling(seed=1, temperature=1.0),
    # Hot enough that no candidate list reaches the top-p mass, so that whole rows are sorted.
    Sampling(seed=1, temperature=1e4, top_p=0.999),
)


def warm_up_plans(
    *,
    rows: int,
    max_context: int,
    step_tokens: int,
    kv_tokens: int,
    spare_slots: Sequence[int],
    pool: bool = False,
    sections: bool = False,
    checkpoint: int | None = None,
) -> Iterator[bytes]:
    """A prefill step of `step_tokens`, a decode step of all rows, which take the rules of HARDEST in turn, and small
    steps for other kernels: the same rules with masks, a single token, a short chunk, and a short chunk beside a decode
    token.

    All KV goes to `spare_slots`, one per space. Decode rows are equally long, as long as a pool of `kv_tokens` allows.
    With `pool` there are only prefill steps, whose sequences get pooled rows. `sections`: the first step has positions
    of three components. `checkpoint`: the place where the short chunk saves a recurrent state.
    """
    yield _prefill(rows, max_context, step_tokens, spare_slots, pool, sections)
    if pool:
        yield _prefill(1, 1, 1, spare_slots, pool)
        return
    yield _decode(min(rows, step_tokens), min(max_context, max(1, kv_tokens // rows)), spare_slots)
    yield _decode(min(rows, step_tokens, len(HARDEST)), 1, spare_slots, guided=True)
    yield _decode(1, 1, spare_slots)
    short = min(SHORT, max_context, step_tokens)
    yield _prefill(1, short, short, spare_slots, checkpoint=checkpoint)
    if rows > 1 and step_tokens > 1:
        yield _mixed(min(SHORT, max_context, step_tokens - 1), spare_slots)


def _prefill(
    rows: int,
    max_context: int,
    step_tokens: int,
    spare_slots: Sequence[int],
    pool: bool = False,
    sections: bool = False,
    checkpoint: int | None = None,
) -> bytes:
    """A step's tokens in as few sequences as possible, each of which is the last part of a full context."""
    builder, left = PlanBuilder(0), step_tokens
    for row in range(rows):
        count = min(left, max_context)
        if not count:
            break
        _fill(builder, row, max_context, Sampling(seed=1), spare_slots)
        builder.add(row, max_context - count, count, sample=not pool, pool=pool)
        if sections:
            builder.write_rotary(
                row, max_context - count, np.arange(max_context - count, max_context)[:, None].repeat(3, 1)
            )
        if checkpoint is not None:
            builder.state(row, max_context - count, NO_STATE)
            builder.state(row, max_context - count // 2, checkpoint)
        left -= count
    return builder.pack()


def _decode(rows: int, context: int, spare_slots: Sequence[int], *, guided: bool = False) -> bytes:
    builder = PlanBuilder(1)
    for row in range(rows):
        _fill(builder, row, context, HARDEST[row % len(HARDEST)], spare_slots, guided=guided)
    builder.add_each(np.arange(rows), np.full(rows, context - 1))
    return builder.pack()


def _mixed(chunk: int, spare_slots: Sequence[int]) -> bytes:
    """A decode token of row 0 and `chunk` prompt tokens of row 1."""
    builder = PlanBuilder(4)
    for row in (0, 1):
        _fill(builder, row, chunk, Sampling(seed=1), spare_slots)
    builder.add_each(np.zeros(1, np.int32), np.zeros(1, np.int32))
    builder.add(1, 0, chunk, sample=True)
    return builder.pack()


def _fill(
    builder: PlanBuilder,
    row: int,
    context: int,
    sampling: Sampling,
    spare_slots: Sequence[int],
    *,
    guided: bool = False,
) -> None:
    builder.setup(row, context, sampling, masked_ids=(0,), guided=guided)
    builder.write_ids(row, 0, np.zeros(context, np.int32))
    builder.write_slots(row, 0, np.array(spare_slots, np.int32)[:, None].repeat(context, 1))
