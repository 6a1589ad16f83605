"""Requests with images come in two halves, in any order: ids from the tokenizer, embeddings from the visual actor.

Nothing stays here for ever: lanes keep order, and whoever gives a request up has Abort follow it on each lane, so that
an Abort comes behind every half.
"""

from __future__ import annotations

from lightllm_mp.messages import Embedded, Tokenized


class Pairing:
    """What is held of requests that are not whole."""

    def __init__(self) -> None:
        self._tokenized: dict[int, Tokenized] = {}
        self._embedded: dict[int, Embedded] = {}

    def __len__(self) -> int:
        return len(self._tokenized) + len(self._embedded)

    def tokenized(self, request: Tokenized) -> Embedded | None:
        """The other half of a request with images, or None: it is held."""
        if (other := self._embedded.pop(request.rid, None)) is None:
            self._tokenized[request.rid] = request
        return other

    def embedded(self, message: Embedded) -> Tokenized | None:
        """The other half, or None: it is held, and with it the lease."""
        if (other := self._tokenized.pop(message.rid, None)) is None:
            self._embedded[message.rid] = message
        return other

    def drop(self, rid: int) -> bool:
        """Nobody wants this request any more. Whether that leaves a lease to be given back."""
        self._tokenized.pop(rid, None)
        return self._embedded.pop(rid, None) is not None

    def clear(self) -> None:
        self._tokenized.clear()
        self._embedded.clear()
