"""The sampling rules of every row, kept on the host: they come with plans, so no step waits for the device."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightllm_mp.engine.sampling.penalties import History
from lightllm_mp.engine.sampling.truncation import TruncationRules
from lightllm_mp.plan import GUIDED, PENALIZE_PROMPT, SETUP_DTYPE, Ints, RowSetup

NOISE, TRUNCATE, MASS, MIN_P, PENALTY, BIAS, BAN, TOP, PROMPT, ALLOW, GUIDE = (1 << bit for bit in range(11))
"""Bits of a `needs` word: what a row needs besides an argmax (MASS: top-p over the whole row; GUIDE: a mask in every
step)."""
ADJUSTS = PENALTY | BIAS | BAN | ALLOW | GUIDE

Lines = NDArray[np.int64]
"""Indices of sequences within a step's logits."""


class RuleTable:
    """One record per row. A row that is not set up is greedy and has no rules."""

    def __init__(self, rows: int, vocab: int, device: torch.device) -> None:
        self.vocab, self.device = vocab, device
        self.records = np.zeros(rows, SETUP_DTYPE)
        self.needs = np.zeros(rows, np.uint16)
        """Per row: the bits of its needs."""
        self._bias: dict[int, tuple[Ints, NDArray[np.float32]]] = {}
        self._banned: dict[int, Ints] = {}
        self._allowed: dict[int, Ints] = {}
        self.clear()

    def clear(self) -> None:
        """Makes all rows greedy and removes their rules."""
        self.records[:] = np.zeros(1, SETUP_DTYPE)
        self.records["prompt_logprobs"] = -1
        self.needs[:] = 0
        self._bias.clear()
        self._banned.clear()
        self._allowed.clear()

    def set(self, setup: RowSetup) -> None:
        """Starts a new sequence in row `setup.rules["row"]`. Ignores ids of its tail that are outside the vocabulary.

        ValueError for a row that does not exist.
        """
        row = int(setup.rules["row"])
        if not 0 <= row < len(self.records):
            raise ValueError(f"a plan sets up row {row} of {len(self.records)}")
        inside = self._inside(setup.bias_ids)
        self._bias[row] = setup.bias_ids[inside], setup.bias_values[inside]
        self._banned[row] = setup.masked_ids[self._inside(setup.masked_ids)]
        self._allowed[row] = setup.allowed_ids[self._inside(setup.allowed_ids)]
        self.records[row] = setup.rules
        self.needs[row] = self._needs(row)

    def _inside(self, ids: Ints) -> NDArray[np.bool_]:
        return (ids >= 0) & (ids < self.vocab)

    def _needs(self, row: int) -> int:
        rules = self.records[row]
        noise = rules["temperature"] > 0 and rules["top_k"] != 1
        penalty = rules["presence_penalty"] or rules["frequency_penalty"] or rules["repetition_penalty"] != 1
        top_k, top_p = 0 < rules["top_k"] < self.vocab, rules["top_p"] < 1
        return (
            (NOISE if noise else 0)
            | (TRUNCATE if noise and (top_k or top_p) else 0)
            | (MASS if noise and top_p and not top_k else 0)
            | (MIN_P if noise and rules["min_p"] > 0 else 0)
            | (PENALTY if penalty else 0)
            | (BIAS if len(self._bias[row][0]) else 0)
            | (BAN if len(self._banned[row]) and rules["min_new_tokens"] > 0 else 0)
            | (ALLOW if rules["allowed"] > 0 else 0)
            | (GUIDE if rules["flags"] & GUIDED else 0)
            | (TOP if rules["top_logprobs"] > 0 else 0)
            | (PROMPT if rules["prompt_logprobs"] >= 0 else 0)
        )

    def column(self, name: str, rows: Ints) -> Tensor:
        """One float rule of `rows`, float32 [n, 1] on the device."""
        return torch.from_numpy(self.records[name][rows]).to(self.device)[:, None]

    def limits(self, rows: Ints) -> TruncationRules:
        top_k = self.records["top_k"][rows].astype(np.int64)
        log_min_p = [math.log(p) if p > 0 else -math.inf for p in self.records["min_p"][rows].tolist()]
        return TruncationRules(
            top_k=torch.from_numpy(np.maximum(top_k, 0) * (top_k < self.vocab)).to(self.device)[:, None],
            top_p=self.column("top_p", rows),
            log_min_p=torch.tensor(log_min_p, dtype=torch.float32, device=self.device)[:, None],
        )

    def bias(self, lines: Lines, rows: Ints) -> tuple[Tensor, Tensor, Tensor]:
        """(line, id, value) of every bias of the sequences `lines`, which are in `rows`."""
        tails = [self._bias[row] for row in rows.tolist()]
        ids, values = (np.concatenate([tail[part] for tail in tails]) for part in (0, 1))
        return *self._flat(lines, [len(tail[0]) for tail in tails], ids), torch.from_numpy(values).to(self.device)

    def banned(self, lines: Lines, rows: Ints) -> tuple[Tensor, Tensor]:
        """(line, id) of every banned id of the sequences `lines`, which are in `rows`."""
        return self._listed(self._banned, lines, rows)

    def allowed(self, lines: Lines, rows: Ints) -> tuple[Tensor, Tensor]:
        """(line, id) of every allowed id of the sequences `lines`, which are in `rows`."""
        return self._listed(self._allowed, lines, rows)

    def _listed(self, ids: dict[int, Ints], lines: Lines, rows: Ints) -> tuple[Tensor, Tensor]:
        tails = [ids[row] for row in rows.tolist()]
        return self._flat(lines, [len(tail) for tail in tails], np.concatenate(tails))

    def _flat(self, lines: Lines, lengths: list[int], ids: Ints) -> tuple[Tensor, Tensor]:
        flat = torch.from_numpy(np.stack((np.repeat(lines, lengths), ids.astype(np.int64))))
        return tuple(flat.to(self.device))

    def history(self, rows: Ints, positions: Lines, tokens: Tensor) -> History:
        """The tokens that penalties count for sequences in `rows` whose next token is at `positions`.

        `tokens` int32 [rows, context] is the device's token table. Every step counts again from the table, so a resumed
        sequence gets the same counts.
        """
        records = self.records[rows]
        whole = (records["flags"] & PENALIZE_PROMPT) != 0
        first = np.where(whole, 0, records["prompt_tokens"]).astype(np.int64)
        low = int(min(first.min(), positions.min() - 1))
        ends = torch.from_numpy(np.stack((rows.astype(np.int64), first, positions))).to(self.device)
        window = tokens[ends[0], low : int(positions.max())].long()
        at = torch.arange(low, low + window.shape[1], device=self.device)
        return History(
            tokens=window,
            counted=(at >= ends[1, :, None]) & (at < ends[2, :, None]),
            presence=self.column("presence_penalty", rows),
            frequency=self.column("frequency_penalty", rows),
            repetition=self.column("repetition_penalty", rows),
        )
