"""A guide actor without grammars: what may follow depends on all ids before, so that a lost or doubled one shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from lightllm_mp.messages import Advance, CloseGuide, NeedMasks, Tokenized


class MockGuide:
    def __init__(self, vocab_size: int) -> None:
        self._vocab = vocab_size
        self.dead_end = -1
        """After so many ids nothing is allowed; -1: never."""
        self.reset()

    def reset(self) -> None:
        self._ids: dict[int, list[int]] = {}
        self._wanted: deque[NeedMasks] = deque()

    @property
    def open_rids(self) -> set[int]:
        return set(self._ids)

    def open(self, request: Tokenized) -> None:
        emitted = np.frombuffer(request.ids, "<i4")[request.prompt_tokens :].tolist()
        for rid in range(request.rid, request.rid + request.terms.n):
            assert rid not in self._ids
            self._ids[rid] = list(emitted)

    def hear(self, message: Advance | NeedMasks | CloseGuide) -> None:
        match message:
            case Advance():
                columns = np.frombuffer(message.rids, "<i8").tolist(), np.frombuffer(message.ids, "<i4").tolist()
                for rid, token in zip(*columns, strict=True):
                    assert token in self.allowed(self._ids[rid])
                    self._ids[rid].append(token)
            case NeedMasks():
                self._wanted.append(message)
            case CloseGuide(rid):
                del self._ids[rid]

    def close(self, rid: int) -> None:
        """As the actor does: whoever is not there is gone already."""
        self._ids.pop(rid, None)

    def masks(self, count: int) -> bytes:
        """The masks of the oldest step that needs `count` of them; every id that it follows has been heard."""
        if not count:
            return b""
        wanted = self._wanted.popleft()
        rids, counts = np.frombuffer(wanted.rids, "<i8").tolist(), np.frombuffer(wanted.counts, "<i4").tolist()
        assert len(rids) == count
        bits = np.zeros((count, -(-self._vocab // 32) * 32), np.uint8)
        for line, (rid, known) in enumerate(zip(rids, counts, strict=True)):
            ids = self._ids.get(rid)
            assert ids is None or len(ids) == known
            bits[line, sorted(range(self._vocab) if ids is None else self.allowed(ids))] = 1
        return np.packbits(bits, axis=1, bitorder="little").tobytes()

    def allowed(self, ids: Sequence[int]) -> set[int]:
        if len(ids) == self.dead_end:
            return set()
        return {token for token in range(self._vocab) if token % 4 == sum(ids) % 4 or not (token + len(ids)) % 7}
