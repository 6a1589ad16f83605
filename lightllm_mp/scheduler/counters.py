"""The scheduler's counters since its process started. They never decrease; a reset keeps them."""

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
    """Tokens that steps computed in chunks of prompts (prefill)."""
    decode_tokens: int = 0
    """Tokens that steps computed to go on with answers (decode)."""
    step_rows: int = 0
    """Sequences per step, summed over all steps."""
    prefix_queries_tokens: int = 0
    """Tokens that were looked up in the prefix tree."""
    prefix_hit_tokens: int = 0
    """Tokens that were found in the prefix tree."""
    evicted_tokens: int = 0
    draft_tokens: int = 0
    """Draft tokens that steps computed to verify them."""
    accepted_tokens: int = 0
    """Draft tokens that were accepted."""
    invalid_logits: int = 0
    """Sequences that failed because their logits were not finite."""

    def ended(self, reason: int) -> None:
        """Count a sequence that ended with this finish reason."""
        self.finished_stop += reason == STOP
        self.finished_length += reason == LENGTH
        self.finished_abort += reason == ABORT

    def by_name(self) -> dict[str, int]:
        """All counters by name. The scheduler calls it at every step; `asdict` takes several times as long."""
        return {name: getattr(self, name) for name in NAMES}


NAMES = tuple(field.name for field in fields(Counters))
