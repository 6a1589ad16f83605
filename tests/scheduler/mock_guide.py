"""A guide actor without grammars: the allowed ids depend on all ids before, so a lost or doubled id shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from lightllm_mp.messages import Advance, CloseGuide, Forced, NeedMasks, Tokenized


class MockGuide:
    def __init__(self, vocab_size: int) -> None:
        self._vocab = vocab_size
        self.dead_end = -1
        """Number of ids after which no id is allowed; -1: no dead end."""
        self.jumps = False
        """Some ids are followed by a run of forced ids, which `tell` gets."""
        self.tell: Callable[[Forced], None] = lambda message: None
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
            self._tell(rid)

    def hear(self, message: Advance | NeedMasks | CloseGuide) -> None:
        match message:
            case Advance():
                columns = np.frombuffer(message.rids, "<i8").tolist(), np.frombuffer(message.ids, "<i4").tolist()
                for rid, token in zip(*columns, strict=True):
                    assert token in self.allowed(self._ids[rid])
                    knew = bool(self.forced(self._ids[rid]))
                    self._ids[rid].append(token)
                    if not knew:
                        self._tell(rid)
            case NeedMasks():
                self._wanted.append(message)
            case CloseGuide(rid):
                del self._ids[rid]

    def close(self, rid: int) -> None:
        """Close a guide. Like the actor, ignore a rid that is already gone."""
        self._ids.pop(rid, None)

    def masks(self, count: int) -> bytes:
        """The masks of the oldest step that needs `count` of them. Every id before that step has been heard."""
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

    def _tell(self, rid: int) -> None:
        ids = self._ids[rid]
        if len(run := self.forced(ids)) > 1:
            self.tell(Forced(rid, len(ids), np.array(run, "<i4").tobytes()))

    def forced(self, ids: Sequence[int]) -> list[int]:
        """The rest of the run of forced ids that the last id belongs to."""
        run: list[int] = []
        for end in range(len(ids) + 1) if self.jumps else ():
            total = sum(ids[:end])
            run = run[1:] or [3 + (total + 5 * k) % (self._vocab - 3) for k in range(total % 3 and total % 13)]
        return run

    def allowed(self, ids: Sequence[int]) -> set[int]:
        if len(ids) == self.dead_end:
            return set()
        if run := self.forced(ids):
            return {run[0]}
        return {token for token in range(self._vocab) if token % 4 == sum(ids) % 4 or not (token + len(ids)) % 7}
