"""The inputs of one body that asks for embeddings or scores: all of them are answered, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from lightllm_mp.actors.front.live_request import Answer, LiveRequest
from lightllm_mp.actors.http.live_group import LiveGroup
from lightllm_mp.errors import Overloaded

One = TypeVar("One")
MOST_LIVE = 128
"""Inputs of one body that are in the engine at once: enough to fill its steps, and few beside other clients'."""


class PooledBatch(LiveGroup, Generic[One]):
    """Submits at most `most` of the inputs at a time, in their order. An input that is answered gives its place back to
    the next one in the same turn of the loop. Raises like `submit`, which takes an input."""

    def __init__(self, inputs: Sequence[One], submit: Callable[[One], LiveRequest], *, most: int, label: str) -> None:
        self._inputs, self._submit, self._most = inputs, submit, most
        self._lives = [submit(inputs[0])]
        self._running = list(self._lives)
        super().__init__(self._lives, label)
        self._submit_more()

    async def answer(self) -> list[Answer]:
        """All answers, in the order of the inputs. Raises the first error."""
        for number in range(len(self._inputs)):
            await self._lives[number].answer()
            for live in [live for live in self._running if not live.open]:
                self._running.remove(live)
                live.close()
            self._submit_more()
        return self.answers

    def close(self) -> None:
        for live in self._running:
            live.close()

    def _submit_more(self) -> None:
        """Fills the places. Where this client gets no more of them, those that it has go on."""
        while len(self._lives) < len(self._inputs) and len(self._running) < self._most:
            try:
                live = self._submit(self._inputs[len(self._lives)])
            except Overloaded:
                if not self._running:
                    raise
                return
            self._lives.append(live)
            self._running.append(live)
            self.answers += live.answers
