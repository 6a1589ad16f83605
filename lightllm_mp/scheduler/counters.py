"""What the scheduler has counted since the process began. Counters never decrease, a reset does not touch them."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    steps: int = 0
    admitted: int = 0
    preemptions: int = 0
    finished_stop: int = 0
    finished_length: int = 0
    finished_abort: int = 0
    prompt_tokens: int = 0
    """Of sequences that have started."""
    generation_tokens: int = 0
    prefix_queries_tokens: int = 0
    """Prompt tokens that were looked up in the prefix tree."""
    prefix_hit_tokens: int = 0
    """Those of them that were found."""
    evicted_tokens: int = 0

    def by_name(self) -> dict[str, int]:
        """Each step asks: `asdict` takes several times as long."""
        return {name: getattr(self, name) for name in NAMES}


NAMES = tuple(field.name for field in fields(Counters))
