"""Counters of the scheduler since its process started. They never decrease; a reset keeps them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from lightllm_mp.messages import ABORT, LENGTH, STOP


@dataclass(slots=True)
class Counters:
    steps: int = 0
    admitted: int = 0
    preemptions: int = 0
    finished_stop: int = 0
    finished_length: int = 0
    finished_abort: int = 0
    prompt_tokens: int = 0
    """Prompt tokens of the sequences that have started."""
    generation_tokens: int = 0
    prefill_tokens: int = 0
    """Tokens that steps computed in chunks of prompts."""
    decode_tokens: int = 0
    """Tokens that steps computed to go on with answers."""
    step_rows: int = 0
    """Sequences of all steps."""
    prefix_queries_tokens: int = 0
    """Tokens that were looked up in the prefix tree."""
    prefix_hit_tokens: int = 0
    """Tokens that the prefix tree had."""
    evicted_tokens: int = 0
    draft_tokens: int = 0
    """Tokens that were drafted, and computed to see whether they come true."""
    accepted_tokens: int = 0
    """Draft tokens that came true."""
    invalid_logits: int = 0
    """Sequences that failed because their logits were not finite."""

    def ended(self, reason: int) -> None:
        """Count a sequence that ended for one of the finish reasons."""
        self.finished_stop += reason == STOP
        self.finished_length += reason == LENGTH
        self.finished_abort += reason == ABORT

    def by_name(self) -> dict[str, int]:
        """Called at every step; `asdict` takes several times as long."""
        return {name: getattr(self, name) for name in NAMES}


NAMES = tuple(field.name for field in fields(Counters))
