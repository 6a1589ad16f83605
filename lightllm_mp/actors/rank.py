"""What every worker of a tensor-parallel model does about the others."""

from __future__ import annotations

from lightllm_mp.actors.runtime.actor import BlockingActor
from lightllm_mp.actors.runtime.mailbox import Received
from lightllm_mp.messages import Reset, Stop, Wire


class RankActor(BlockingActor):
    """One of `ranks` actors that get the same plans and compute each of them together."""

    ranks = 1

    def handle(self, received: list[Received]) -> None:
        """Ranks leave after the same step, else one would wait for the others in it for ever. They are told to when the
        router is gone from its lanes: every plan that there will be is here or still in the lane."""
        if self.ranks > 1 and any(_ends(message) for _, message in received):
            while more := self.mailbox.receive():
                received = received + more
            received = sorted(received, key=lambda entry: _ends(entry[1]))
        super().handle(received)


def _ends(message: Wire | bytes) -> bool:
    return isinstance(message, Reset | Stop)
