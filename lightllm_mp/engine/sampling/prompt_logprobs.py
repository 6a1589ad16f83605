"""Logprobs of prompt tokens, computed chunk by chunk with the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightllm_mp.engine.sampling.logprobs import Alternatives, alternatives, finite_or_nan, known_logprobs_at
from lightllm_mp.engine.sampling.rules import PROMPT, RuleTable
from lightllm_mp.engine.step_inputs import Step

Logits = Callable[[Tensor], Tensor]
"""Hidden states [n, hidden] -> float32 logits [n, vocab]."""


@dataclass(slots=True)
class ChunkLogprobs:
    """Logprobs of one sequence: positions start .. start + n - 1 predict the tokens at start + 1 .. start + n."""

    sequence: int
    """Index of the sequence in the plan."""
    logprobs: Tensor
    """float32 [n]; NaN where the logits are not finite."""
    top: Alternatives | None


def asks_for_lines(step: Step, rules: RuleTable) -> bool:
    """Whether a sequence of the step needs the logits of more than its last token."""
    return bool((rules.needs[step.rows] & PROMPT).any())


def prompt_logprobs(
    logits: Logits, hidden: Tensor, step: Step, tokens: Tensor, rules: RuleTable, block: int
) -> Iterator[ChunkLogprobs]:
    """For each sequence that asks for prompt logprobs: the positions of its chunk whose next token is in the prompt.

    `hidden` [lines, hidden] is the step's. `tokens` is the device's token table, which must hold the prompt up to one
    position past the chunk. At most `block` rows of logits exist at once.
    """
    for sequence in np.flatnonzero(rules.needs[step.rows] & PROMPT).tolist():
        row, start, first = int(step.rows[sequence]), int(step.starts[sequence]), int(step.seq_start[sequence])
        record = rules.records[row]
        count = min(int(step.ends[sequence]), int(record["prompt_tokens"]) - 1) - start
        if count <= 0:
            continue
        following = tokens[row, start + 1 : start + 1 + count].long()
        top_n = int(record["prompt_logprobs"])
        scores, tops = [], []
        for part, ids in zip(hidden[first : first + count].split(block), following.split(block), strict=True):
            table = torch.log_softmax(logits(part), -1)
            scores.append(finite_or_nan(known_logprobs_at(table, ids), table))
            if top_n:
                tops.append(alternatives(table, top_n))
        best = (torch.cat([ids for ids, _ in tops]), torch.cat([values for _, values in tops])) if tops else None
        yield ChunkLogprobs(sequence, torch.cat(scores), best)
