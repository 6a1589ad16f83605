"""The sampler: chooses the next token of every sequence of a step, each by its own rules.

Order: bias, penalties, banned and allowed ids, masks, temperature, top-k, top-p, min-p, and then the id with the
largest sum of score and Gumbel noise, which is a draw from the softmax of the remaining ids (the Gumbel-max trick). A
row pays only for the rules that it uses: a greedy row without rules costs an argmax and the log-softmax for its
logprob. A row's id depends only on its own logits, rules, seed and position, to the last bit, never on other rows.

Temperature 0 and top-k 1 are greedy; of equal logits the smallest id wins. A row that offers no choice (a logit is NaN
or plus infinity, all are minus infinity, or every id is banned) gets id 0, and unless its ids are banned, logprob NaN.
A row with a mask whose rules leave no id gets id 0 and logprob minus infinity.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.sampling.guide_masks import GuideMasks
from lightllm_mp.engine.sampling.gumbel import GumbelRows, draw_truncated, draw_whole
from lightllm_mp.engine.sampling.logprobs import FLOOR, Alternatives, alternatives, logprobs_at
from lightllm_mp.engine.sampling.noise import row_keys
from lightllm_mp.engine.sampling.penalties import NEGATIVE_INFINITY, Penalizer, add_bias, allow_only, ban
from lightllm_mp.engine.sampling.rules import (
    ADJUSTS,
    ALLOW,
    BAN,
    BIAS,
    MASS,
    MIN_P,
    NOISE,
    PENALTY,
    TOP,
    TRUNCATE,
    Lines,
    RuleTable,
)
from lightllm_mp.engine.sampling.topk import first_argmax
from lightllm_mp.plan import Ints


@dataclass(slots=True)
class Choice:
    """Sampled ids of a block of sequences."""

    ids: Tensor
    """int64 [n]"""
    logprobs: Tensor
    """float32 [n]: log-softmax of the raw logits (see logprobs.py). NaN: the row's logits are not finite. Minus
    infinity: the row's mask and rules leave no id."""
    top: list[tuple[Lines, Alternatives]] = field(default_factory=list)
    """Alternatives of the sequences that ask for them, with the indices of these sequences in the block."""


class TorchSampler:
    """Holds the rules of all rows. `tokens` is the device's token table, int32 [rows, context]."""

    def __init__(self, rules: RuleTable, tokens: Tensor) -> None:
        self.rules, self.tokens = rules, tokens
        self.device = rules.device
        self._penalizer = Penalizer(rules.vocab, rules.device)
        self._table = torch.empty((0, rules.vocab), dtype=torch.float32, device=rules.device)

    def choose(self, logits: Tensor, rows: Ints, positions: Lines, masks: GuideMasks | None = None) -> Choice:
        """Samples the next token for float32 `logits` [n, vocab] of sequences in `rows`, at `positions` (both [n]).

        Overwrites `logits`. A row without a mask in `masks` is unconstrained.
        """
        needs = self._needs(rows, positions)
        wanted = int(np.bitwise_or.reduce(needs))
        table = self._log_softmax(logits)
        ids = first_argmax(logits)
        if wanted & ADJUSTS:
            self._adjust(logits, needs, rows, positions, masks)
            ids = first_argmax(logits)
        ended = self._dead_ends(logits, ids, masks) if masks is not None else None
        if wanted & NOISE:
            ids = self._by_draw(logits, ids, needs, rows, positions)
        logprobs = logprobs_at(table, ids)
        choice = Choice(ids.masked_fill_(logprobs.isnan(), 0), logprobs.clamp_(min=FLOOR))
        if ended is not None:
            choice.logprobs[ended] = NEGATIVE_INFINITY
        if wanted & TOP:
            choice.top = self._alternatives(table, np.flatnonzero(needs & TOP), rows)
        return choice

    def _log_softmax(self, logits: Tensor) -> Tensor:
        count = logits.shape[0]
        if count > self._table.shape[0]:
            self._table = torch.empty_like(logits)
        return torch.log_softmax(logits, -1, out=self._table[:count])

    def _needs(self, rows: Ints, positions: Lines) -> np.ndarray:
        needs = self.rules.needs[rows]
        if np.bitwise_or.reduce(needs) & BAN:
            records = self.rules.records[rows]
            done = positions - records["prompt_tokens"] >= records["min_new_tokens"]
            needs = np.where(done, needs & ~np.uint16(BAN), needs)
        return needs

    def _dead_ends(self, logits: Tensor, best: Tensor, masks: GuideMasks) -> Tensor:
        """int64: the masked sequences for which even the best id is not allowed."""
        lines = self._put(masks.lines)
        return lines[logits[lines, best[lines]] == NEGATIVE_INFINITY]

    def _by_draw(self, logits: Tensor, ids: Tensor, needs: np.ndarray, rows: Ints, positions: Lines) -> Tensor:
        """int64 [n]: `ids`, replaced by draws for sequences with noise."""
        noisy = np.flatnonzero(needs & NOISE)
        if len(noisy) == len(rows):
            return self._draw(logits, needs, rows, positions)
        at = self._put(noisy)
        ids[at] = self._draw(logits[at], needs[noisy], rows[noisy], positions[noisy])
        return ids

    def _adjust(
        self, logits: Tensor, needs: np.ndarray, rows: Ints, positions: Lines, masks: GuideMasks | None
    ) -> None:
        wanted = int(np.bitwise_or.reduce(needs))
        if wanted & BIAS:
            lines = np.flatnonzero(needs & BIAS)
            add_bias(logits, *self.rules.bias(lines, rows[lines]))
        if wanted & PENALTY:
            lines = np.flatnonzero(needs & PENALTY)
            history = self.rules.history(rows[lines], positions[lines], self.tokens)
            self._penalizer.apply(logits, self._put(lines), history)
        if wanted & BAN:
            lines = np.flatnonzero(needs & BAN)
            ban(logits, *self.rules.banned(lines, rows[lines]))
        if wanted & ALLOW:
            lines = np.flatnonzero(needs & ALLOW)
            allow_only(logits, self._put(lines), *self.rules.allowed(lines, rows[lines]))
        if masks is not None:
            for line, ids in masks.forbidden(logits.shape[1]):
                logits[line].masked_fill_(self._put(ids), NEGATIVE_INFINITY)

    def _draw(self, logits: Tensor, needs: np.ndarray, rows: Ints, positions: Lines) -> Tensor:
        """int64 [n]: draws with noise. Overwrites `logits` with scores."""
        best = logits.amax(-1, keepdim=True)
        field = GumbelRows(
            scores=logits.sub_(best).div_(self.rules.column("temperature", rows)),
            keys=self._put(row_keys(self.rules.records["seed"][rows], positions)),
            limits=self.rules.limits(rows),
        )
        wanted = int(np.bitwise_or.reduce(needs))
        top_p_alone, min_p = bool(wanted & MASS), bool(wanted & MIN_P)
        truncated = needs & TRUNCATE != 0
        if truncated.all():
            ids = draw_truncated(field, top_p_alone=top_p_alone)
        elif truncated.any():
            ids = torch.empty(len(rows), dtype=torch.int64, device=self.device)
            cut, others = self._put(np.flatnonzero(truncated)), self._put(np.flatnonzero(~truncated))
            ids[cut] = draw_truncated(field.of(cut), top_p_alone=top_p_alone)
            ids[others] = draw_whole(field.of(others), min_p=min_p)
        else:
            ids = draw_whole(field, min_p=min_p)
        return ids.masked_fill_(~best[:, 0].isfinite(), 0)

    def _alternatives(self, table: Tensor, lines: Lines, rows: Ints) -> list[tuple[Lines, Alternatives]]:
        counts = self.rules.records["top_logprobs"][rows[lines]]
        groups = [(lines[counts == count], int(count)) for count in np.unique(counts)]
        return [(group, alternatives(table[self._put(group)], count)) for group, count in groups]

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)
