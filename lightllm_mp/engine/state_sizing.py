"""Sizes the pool of recurrent states: the number of sequences at once, and of copies kept. Imports no torch."""

from __future__ import annotations

from lightllm_mp.config import EngineConfig

STATE_SHARE = 2
"""The states of running sequences take at most 1 / STATE_SHARE of the memory for KV and states."""
CHECKPOINT_SHARE = 3
"""Copies of states take at most 1 / CHECKPOINT_SHARE of the remaining memory, if their number is not given."""
CHECKPOINTS_PER_ROW = 4


def state_places(config: EngineConfig, budget: int, place_bytes: int, kv_bytes: int = 0) -> tuple[int, int]:
    """Number of rows and number of copies, for recurrent states of `place_bytes` bytes (0: the model has none) and at
    least `kv_bytes` for KV. If memory is short, there are fewer rows than asked for."""
    rows = config.running_max_req_size
    if not place_bytes:
        return rows, 0
    rows = min(rows, max(1, budget // STATE_SHARE // place_bytes - 1))
    if config.disable_prompt_cache or config.state_checkpoints is not None:
        return rows, 0 if config.disable_prompt_cache else config.state_checkpoints or 0
    left = budget - (rows + 1) * place_bytes
    most = min(left // CHECKPOINT_SHARE, left - kv_bytes) // place_bytes
    return rows, max(0, min(most, CHECKPOINTS_PER_ROW * rows))
