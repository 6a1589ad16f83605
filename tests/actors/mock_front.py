"""An HTTP actor that one kind of request ends."""

from __future__ import annotations

import os

from lightllm_mp.actors.http.actor import HttpActor
from lightllm_mp.messages import Scheduled, Wire

POISON = "poison"


class PoisonedHttpActor(HttpActor):
    """Dies of every prompt that is POISON, when its prefill begins."""

    def on_message(self, peer: str, message: Wire) -> None:
        answer = self.frontend._answers.get(message.rid) if isinstance(message, Scheduled) else None
        if answer is not None and answer.live.request.text == POISON:
            os._exit(3)
        super().on_message(peer, message)
