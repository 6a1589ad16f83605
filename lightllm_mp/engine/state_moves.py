"""Moves of recurrent states in a plan: the states that a step starts from, saves on the way, and copies at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightllm_mp.engine.step_inputs import Step
from lightllm_mp.kernels.batch import StateSave
from lightllm_mp.models.decoder.state_pool import StatePool
from lightllm_mp.plan import NO_STATE, Ints


@dataclass(slots=True)
class StateMoves:
    """The moves of one step, as places of the pool."""

    cleared: list[int] = field(default_factory=list)
    """Working states of sequences that start."""
    loaded: dict[int, int] = field(default_factory=dict)
    """Copies before the step: working state -> the copy that it is loaded from."""
    saved: list[StateSave] = field(default_factory=list)
    """Copies that each layer saves in the middle of a sequence's tokens."""
    kept: dict[int, int] = field(default_factory=dict)
    """Copies after the step: copy -> the working state that it is made from."""

    @classmethod
    def of(cls, states: Ints, step: Step | None, pool: StatePool | None) -> StateMoves:
        """The moves in the `states` section of a plan. ValueError for rows and positions that the step does not
        compute, and for places outside the pool."""
        moves = cls()
        if not len(states):
            return moves
        if pool is None or step is None:
            raise ValueError("a plan names states, but it has no sequences, or the model has no recurrent layers")
        places = pool.first_checkpoint, pool.first_checkpoint + pool.checkpoints
        index = {row: at for at, row in enumerate(step.rows.tolist())}
        for row, position, place in states.tolist():
            at = index.get(row, -1)
            start, end = int(step.starts[at]), int(step.ends[at])
            if at < 0 or not start <= position <= end or not (places[0] <= place < places[1] or position == 0):
                raise ValueError(f"a plan names state {place} of row {row} at {position}, which its step does not have")
            if place == NO_STATE:
                moves.cleared.append(row)
            elif position == start:
                moves.loaded[row] = place
            elif position == end:
                moves.kept[place] = row
            else:
                moves.saved.append(StateSave(at, position - start, place))
        moves.saved.sort()
        return moves
