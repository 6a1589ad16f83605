"""What a rank does with its messages. It imports no torch."""

from __future__ import annotations

from lightllm_mp.actors.runtime.actor import BlockingActor
from lightllm_mp.actors.runtime.mailbox import Mailbox, Received
from lightllm_mp.messages import Reset, Stop, Wire


class RankActor(BlockingActor):
    """One of `ranks` actors that get the same plans and compute each plan together."""

    ranks = 1

    def handle(self, received: list[Received]) -> None:
        super().handle(plans_first(self.mailbox, received) if self.ranks > 1 else received)


def plans_first(mailbox: Mailbox, received: list[Received]) -> list[Received]:
    """For one of several ranks: Reset and Stop come after all plans. Ranks leave after the same step, else one would
    wait in it for the others for ever. When these messages come, the router has left its lanes, so all its plans are
    here or in the lane."""
    if any(_ends(message) for _, message in received):
        while more := mailbox.receive():
            received = received + more
        received = sorted(received, key=lambda entry: _ends(entry[1]))
    return received


def _ends(message: Wire | bytes) -> bool:
    return isinstance(message, Reset | Stop)
