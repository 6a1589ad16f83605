"""The sampler for CUDA: the results of torch_sampler.py, without waiting for the device; uploads only new rules."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightllm_mp.engine.pinned_upload import PinnedUpload
from lightllm_mp.engine.sampling.guide_masks import GuideMasks
from lightllm_mp.engine.sampling.logprobs import Alternatives, reportable
from lightllm_mp.engine.sampling.rules import (
    ADJUSTS,
    ALLOW,
    BAN,
    BIAS,
    GUIDE,
    MIN_P,
    NOISE,
    PENALTY,
    TOP,
    TRUNCATE,
    Lines,
    RuleTable,
)
from lightllm_mp.engine.sampling.torch_sampler import Choice
from lightllm_mp.kernels.triton.sampling.rules import (
    BANNED,
    BIASED,
    CUT,
    DRAWN,
    HELD,
    MASKED,
    PENALIZED,
    RULE,
    RULE_WORDS,
    SampledSequences,
    adjust,
    store_rules,
)
from lightllm_mp.kernels.triton.sampling.sampler import RowLayout, RowScan
from lightllm_mp.kernels.triton.sampling.truncation import draw_cut
from lightllm_mp.plan import PENALIZE_PROMPT, Ints, RowSetup

FIRST_TAIL_WORDS = 1 << 14
"""Initial room for biases, banned and allowed ids. It grows with the needs of the rows."""
FLAGS = (
    (PENALIZED, PENALTY),
    (BIASED, BIAS),
    (MASKED, ALLOW),
    (DRAWN, NOISE),
    (CUT, TRUNCATE | MIN_P),
    (HELD, GUIDE),
)
"""Bits of a device rule's flags, and the `needs` bits that set each of them."""
NO_TAIL = np.empty(0, np.int32)


class DeviceRules:
    """The rules of all rows as the kernels read them: `table` int32 [rows, RULE_WORDS], and `tails` int32."""

    def __init__(self, rules: RuleTable, staging: PinnedUpload) -> None:
        self._rules = rules
        rows, device = len(rules.records), rules.device
        self.table = torch.zeros((rows, RULE_WORDS), dtype=torch.int32, device=device)
        self.tails = torch.empty(FIRST_TAIL_WORDS, dtype=torch.int32, device=device)
        self.ban_until = np.zeros(rows, np.int64)
        """Per row: the position from which on the row bans no id."""
        self._tails: dict[int, Ints] = {}
        self._starts = np.zeros(rows, np.int32)
        self._used = 0
        self._changed: dict[int, None] = {}
        self._staging = staging

    def clear(self) -> None:
        self.table.zero_()
        self.ban_until[:] = 0
        self._tails.clear()
        self._changed.clear()
        self._used = 0

    def change(self, row: int, setup: RowSetup) -> None:
        """Gives `row` new rules; `upload` takes them to the device."""
        self._changed[row] = None
        self._tails[row] = self._tail(setup) if self._rules.needs[row] & (BIAS | BAN | ALLOW) else NO_TAIL

    def _tail(self, setup: RowSetup) -> Ints:
        """The tail of a row. With allowed ids, it has entries for these only: all other ids are masked."""
        biased, banned, allowed = (
            (ids >= 0) & (ids < self._rules.vocab) for ids in (setup.bias_ids, setup.masked_ids, setup.allowed_ids)
        )
        known = np.concatenate((setup.bias_ids[biased], setup.masked_ids[banned], setup.allowed_ids[allowed]))
        ids, at = np.unique(known, return_inverse=True)
        biases = int(biased.sum())
        values = np.zeros(len(ids), np.float32)
        np.add.at(values, at[:biases], setup.bias_values[biased])
        entries = ids.astype(np.int32)
        entries[at[biases : biases + banned.sum()]] |= np.int32(BANNED)
        if len(setup.allowed_ids):
            kept = np.isin(ids, setup.allowed_ids)
            entries, values = entries[kept], values[kept]
        return np.concatenate((entries, values.view(np.int32)))

    def upload(self) -> None:
        """Takes all changes to the device with one copy and one kernel."""
        if not self._changed:
            return
        tails = [self._tails[row] for row in self._changed]
        if self._used + sum(map(len, tails)) > self.tails.shape[0]:
            tails = self._lay_out_anew()
        rows = np.fromiter(self._changed, np.int32)
        lengths = np.array([len(tail) for tail in tails], np.int32)
        self._starts[rows] = self._used + lengths.cumsum() - lengths
        words = self._staging.send_close((rows, self._records(rows, lengths), *tails))
        store_rules(self.table, self.tails, words, len(rows), self._used)
        self._used += int(lengths.sum())
        self._changed.clear()

    def _lay_out_anew(self) -> list[Ints]:
        """Makes room: writes the tails of all rows again, without those of ended sequences."""
        for row, tail in self._tails.items():
            if len(tail):
                self._changed[row] = None
        tails = [self._tails[row] for row in self._changed]
        needed = 2 * sum(map(len, tails))
        if needed > self.tails.shape[0]:
            self.tails = self.tails.new_empty(1 << (needed - 1).bit_length())
        self._used = 0
        return tails

    def _records(self, rows: Ints, lengths: Ints) -> NDArray[np.int32]:
        source, needs = self._rules.records[rows], self._rules.needs[rows]
        records = np.zeros(len(rows), RULE)
        for bit, kinds in FLAGS:
            records["flags"] |= np.where(needs & kinds, bit, 0)
        records["seed"] = source["seed"]
        records["temperature"] = source["temperature"]
        records["top_k"] = np.where(source["top_k"] < self._rules.vocab, source["top_k"].clip(0), 0)
        records["top_p"] = source["top_p"].clip(0, 1)
        with np.errstate(divide="ignore"):
            records["reach"] = -np.log(source["min_p"].clip(0, 1))
        for name in ("presence", "frequency", "repetition"):
            records[name] = source[f"{name}_penalty"]
        whole = source["flags"] & PENALIZE_PROMPT != 0
        records["counted_from"] = np.where(whole, 0, source["prompt_tokens"])
        banning = needs & BAN != 0
        records["ban_until"] = np.where(banning, source["prompt_tokens"] + source["min_new_tokens"], 0)
        records["tail_start"], records["tail_count"] = self._starts[rows], lengths // 2
        self.ban_until[rows] = records["ban_until"]
        return records.view(np.int32)


class CudaSampler:
    """Holds the rules of all rows. `tokens` is the device's token table, int32 [rows or more, context]."""

    def __init__(self, rules: RuleTable, tokens: Tensor) -> None:
        self.rules, self.tokens = rules, tokens
        self._layout = RowLayout.of(rules.vocab)
        self._staging = PinnedUpload(rules.device)
        self._device_rules = DeviceRules(rules, self._staging)
        self._counts = torch.zeros((0, rules.vocab), dtype=torch.int32, device=rules.device)
        self._lines: tuple[bytes, Tensor] | None = None

    def set(self, setups: list[RowSetup]) -> None:
        """Gives rows the rules of new sequences. ValueError for a row that does not exist."""
        for setup in setups:
            self.rules.set(setup)
            self._device_rules.change(int(setup.rules["row"]), setup)
        self._device_rules.upload()

    def clear(self) -> None:
        self.rules.clear()
        self._device_rules.clear()

    def choose(
        self,
        logits: Tensor,
        rows: Ints,
        positions: Lines,
        at: tuple[Tensor, Tensor],
        masks: GuideMasks | None = None,
    ) -> Choice:
        """Samples the next token for float32 `logits` [n, vocab] of sequences in `rows`, at `positions` (both [n]).
        `at` holds both on the device as int32. A row without a mask in `masks` is unconstrained."""
        needs = self.rules.needs[rows]
        wanted = int(np.bitwise_or.reduce(needs))
        if wanted & BAN and not (positions < self._device_rules.ban_until[rows]).any():
            wanted &= ~BAN
        table, sequences = self._device_rules.table, _sequences(*at)
        logits = logits.contiguous()
        cut = bool(wanted & (TRUNCATE | MIN_P))
        scan, work = RowScan.of(logits, self._layout, cut=cut), logits
        if wanted & ADJUSTS:
            work = torch.empty_like(logits)
        held = None if masks is None else self._staging.send_close(masks.parts(len(rows)))
        scan.run(logits, work, table, sequences, held, adjusted=False)
        if work is not logits:
            if wanted & ADJUSTS & ~GUIDE:
                self._adjust(logits, work, sequences, held, int(positions.max()), penalties=bool(wanted & PENALTY))
            scan.run(logits, work, table, sequences, None, adjusted=True)
        ids = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        scores = logits.new_empty((2, len(rows)))
        if cut:
            draw_cut(scan, logits, work, table, sequences, ids)
        scan.finish(logits, work, table, sequences, ids, scores)
        choice = Choice(ids, scores[0])
        if wanted & TOP:
            choice.top = self._alternatives(logits, scores[1], np.flatnonzero(needs & TOP), rows)
        return choice

    def _adjust(
        self,
        logits: Tensor,
        work: Tensor,
        sequences: SampledSequences,
        held: Tensor | None,
        longest: int,
        *,
        penalties: bool,
    ) -> None:
        if penalties and work.shape[0] > self._counts.shape[0]:
            self._counts = self._counts.new_zeros(work.shape)
        rules = self._device_rules
        adjust(
            logits,
            work,
            self._counts,
            self.tokens,
            rules.table,
            rules.tails,
            sequences,
            held,
            longest,
            penalties=penalties,
        )

    def _alternatives(
        self, logits: Tensor, norms: Tensor, lines: Lines, rows: Ints
    ) -> list[tuple[Lines, Alternatives]]:
        """The alternatives of the sequences `lines`, which are grouped by their number of alternatives."""
        counts = self.rules.records["top_logprobs"][rows[lines]]
        order = counts.argsort(kind="stable")
        lines, counts = lines[order], counts[order]
        if not np.array_equal(lines, np.arange(len(rows))):
            chosen = self._put(lines)
            logits, norms = logits.index_select(0, chosen), norms.index_select(0, chosen)
        values, ids = logits.topk(min(int(counts[-1]), logits.shape[1]))
        values = reportable(values - norms[:, None])
        starts = np.flatnonzero(np.diff(counts, prepend=0)).tolist()
        parts = [slice(*ends) for ends in pairwise([*starts, len(lines)])]
        return [(lines[part], (ids[part, : counts[part.start]], values[part, : counts[part.start]])) for part in parts]

    def _put(self, lines: Lines) -> Tensor:
        """Uploads `lines` as int32, unless they equal the last upload: successive steps often have the same ones."""
        known = lines.tobytes()
        if self._lines is None or self._lines[0] != known:
            self._lines = known, self._staging.send_close((lines,))
        return self._lines[1]


def _sequences(rows: Tensor, positions: Tensor) -> SampledSequences:
    """Storages of the tensors and offsets of the sequences: launches with aligned addresses are faster."""
    first, second = (x.as_strided((1,), (1,), 0) for x in (rows, positions))
    return SampledSequences(first, second, int(rows.storage_offset()), int(positions.storage_offset()))
