"""Draft tokens that are right with a given probability."""

from __future__ import annotations

import numpy as np

from lightllm_mp.plan import Ints
from lightllm_mp.scheduler.speculation.drafts import Drafts
from tests.scheduler.harness import VOCAB, Harness


def draft_answers(h: Harness, random: np.random.Generator, right: float) -> None:
    """Make each draft token the answer's token at its position with probability `right`, else any token."""
    drafts: Drafts = h.scheduler._drafts
    answers: dict[int, list[int]] = {}

    def propose(row: int, most: int) -> Ints:
        sequence = h.scheduler._rows.sequences[row]
        assert sequence is not None
        if sequence.rid not in answers:
            answers[sequence.rid] = h.answer_of(sequence.rid)
        known = h.scheduler._rows.known(row) - sequence.prompt_tokens
        ids = np.array(answers[sequence.rid][known : known + max(most, 0)], np.int32)
        ids = np.append(ids, random.integers(3, VOCAB, max(most, 0) - len(ids))).astype(np.int32)
        wrong = random.random(len(ids)) >= right
        ids[wrong] = random.integers(0, VOCAB, int(wrong.sum()))
        return ids[: int(random.integers(0, len(ids) + 1))] if random.random() < 0.2 else ids

    drafts._propose = propose  # type: ignore[method-assign]
