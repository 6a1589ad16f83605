"""A worker without a model: it executes plans like a real worker and notices every wrong slot.

Its "KV" of a token is the token itself plus a digest of the whole prefix up to it, stored in the token's slot. The next
id is a function of the digest of all ids before it, read back through the slots. So a slot that was freed too early,
shared with the wrong prefix, written twice or looked up at the wrong position changes the answer. With `checks`, every
slot that a step reads is compared with what it must hold. `expected` gives the answer of an undisturbed run.
The KV of one length class differs from that of another, as in a model whose frequencies follow from the prompt's
length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightllm_mp.messages import Sampling, StepDone
from lightllm_mp.plan import GUIDED, NO_STATE, POOL, SAMPLE, Plan, RowSetup, unpack

if TYPE_CHECKING:  # processes of other tests import this module without this folder on their path
    from tests.scheduler.mock_images import MockImages

U64 = np.uint64


class WrongSlot(AssertionError):
    """A step reads a slot that does not hold what it should."""


class MockSpace:
    """The KV of some layers: a slot table, and for each slot the digest of the prefix up to and including its token. A
    token sees `window` tokens."""

    def __init__(self, rows: int, width: int, slots: int, window: int) -> None:
        self.window = window
        self.slots = np.full((rows, width), -1, np.int32)
        self.digest = np.zeros(slots, U64)
        self.position = np.full(slots, -1, np.int64)


class MockWorker:
    """Tables for `rows` rows of `width` ids and `kv_tokens` slots. Without `checks` a step costs almost nothing. With
    `window_tokens`, layers with windows have that many slots of their own, and the other layers see all tokens."""

    def __init__(
        self,
        *,
        rows: int,
        width: int,
        kv_tokens: int,
        vocab_size: int,
        checks: bool = True,
        images: MockImages | None = None,
        numbers: int = 1,
        window: int = 0,
        window_tokens: int = 0,
    ) -> None:
        self._spaces = [MockSpace(rows, width, kv_tokens, width if window_tokens or not window else window)]
        if window_tokens:
            self._spaces.append(MockSpace(rows, width, window_tokens, window))
        self._numbers = numbers
        """Length of a pooled row; all its numbers are the prompt's score."""
        self._vocab, self._checks = vocab_size, checks
        self._images = images
        self._tokens = np.full((rows, width), -1, np.int32)
        self._setups: list[RowSetup | None] = [None] * rows
        self._seeds = np.zeros(rows, U64)
        self._classes = np.zeros(rows, U64)
        self._plain = np.ones(rows, np.bool_)
        """Rows without banned ids and without alternatives."""
        self._guided = np.zeros(rows, np.bool_)
        self._step = -1

    def waits(self, plan: bytes) -> int:
        """The number of masks that a plan needs."""
        if not self._guided.any() and not np.frombuffer(plan, "<i4", 5)[4]:  # no row is set up
            return 0
        work, guided = unpack(plan), self._guided.copy()
        for setup in work.setups:
            guided[setup.rules["row"]] = bool(setup.rules["flags"] & GUIDED)
        return int(guided[work.seqs[(work.seqs[:, 3] & SAMPLE) != 0, 0]].sum())

    def step(self, plan: bytes, masks: bytes = b"") -> StepDone:
        """Execute a packed plan with the masks that it needs."""
        work = unpack(plan)
        if self._checks:
            self._check_plan(work)
        self._step = work.step
        for setup in work.setups:
            self._set_up(setup)
        _write(self._tokens, work.ids.runs, work.ids.values)
        for space, values in zip(self._spaces, np.split(work.slots.values, len(self._spaces)), strict=True):
            _write(space.slots, work.slots.runs, values)
        if self._checks:
            self._check_images(work)
        digests = self._compute(work)
        return self._answer(work, digests, masks)

    def _set_up(self, setup: RowSetup) -> None:
        row, rules = int(setup.rules["row"]), setup.rules
        self._setups[row] = setup
        self._guided[row] = bool(rules["flags"] & GUIDED)
        self._classes[row] = class_part(int(rules["rope_class"]))
        self._seeds[row] = seed_part(int(rules["seed"]), float(rules["temperature"]))
        self._plain[row] = not (len(setup.masked_ids) or rules["top_logprobs"] > 0 or rules["prompt_logprobs"] >= 0)
        if self._checks:
            self._tokens[row] = -1
            for space in self._spaces:
                space.slots[row] = -1

    def _compute(self, work: Plan) -> np.ndarray:
        """Write the slots of all computed tokens. Returns uint64 [n] digests at the sequences' last positions, which
        are right only if they are right in all layers."""
        first, *others = [self._compute_in(space, work) for space in self._spaces]
        return first + sum((_scramble(other - first) for other in others), start=np.zeros(len(first), U64))

    def _compute_in(self, space: MockSpace, work: Plan) -> np.ndarray:
        seqs = work.seqs
        digests = np.zeros(len(seqs), U64)
        single, numbers = seqs[:, 2] == 1, line_numbers(seqs)
        for number in range(int(numbers.max(initial=0)) + 1):  # an entry comes after the entries of its row before it
            lines = np.flatnonzero(single & (numbers == number))
            rows, starts = seqs[lines, 0], seqs[lines, 1]
            slots = space.slots[rows, starts]
            first, last = self._classes[rows], space.digest[space.slots[rows, np.maximum(starts - 1, 0)]]
            before = np.where(starts > 0, last, first)
            digests[lines] = space.digest[slots] = before + part(self._tokens[rows, starts], starts)
            space.position[slots] = starts
        for index in np.flatnonzero(~single):
            row, start, count, _ = seqs[index].tolist()
            slots, positions = space.slots[row, start : start + count], np.arange(start, start + count)
            before = space.digest[space.slots[row, start - 1]] if start else self._classes[row]
            space.digest[slots] = before + np.cumsum(part(self._tokens[row, positions], positions), dtype=U64)
            space.position[slots] = positions
            digests[index] = space.digest[slots[-1]]
        if self._checks:
            for row, start, count, _ in seqs.tolist():
                self._check_history(space, row, max(0, start - space.window + 1), start + count)
        return digests

    def _answer(self, work: Plan, digests: np.ndarray, masks: bytes) -> StepDone:
        sampled = (work.seqs[:, 3] & SAMPLE) != 0
        rows, ends = work.seqs[sampled, 0], work.seqs[sampled, 1] + work.seqs[sampled, 2]
        ids = next_ids(digests[sampled] ^ self._seeds[rows], self._vocab)
        for index in np.flatnonzero(~self._plain[rows]):
            setup = self._setups[rows[index]]
            if setup is not None and ends[index] - setup.rules["prompt_tokens"] < setup.rules["min_new_tokens"]:
                ids[index] = unmask(int(ids[index]), setup.masked_ids.tolist(), self._vocab)
        logprobs = logprob(ids)
        guided = np.flatnonzero(self._guided[rows])
        for index, allowed in zip(guided, allowed_ids(masks, len(guided)), strict=True):
            setup = self._setups[rows[index]]
            assert setup is not None
            early = ends[index] - setup.rules["prompt_tokens"] < setup.rules["min_new_tokens"]
            found = allow(int(ids[index]), set(allowed) - set(setup.masked_ids.tolist() if early else ()), self._vocab)
            ids[index], logprobs[index] = (0, -np.inf) if found is None else (found, logprobs[index])
        self._tokens[rows, ends] = ids
        return StepDone(
            step=work.step,
            ids=ids.tobytes(),
            logprobs=logprobs.tobytes(),
            top=tuple(self._alternatives(rows, ids)),
            prompt=tuple(self._prompt_scores(work.seqs)),
            pooled=score(digests[(work.seqs[:, 3] & POOL) != 0]).repeat(self._numbers).tobytes(),
        )

    def _alternatives(self, rows: np.ndarray, ids: np.ndarray) -> Iterable[tuple[int, bytes, bytes]]:
        for index in np.flatnonzero(~self._plain[rows]):
            count = self._rule(rows[index], "top_logprobs")
            if count > 0:
                yield (int(index), *best(int(ids[index]), count, self._vocab))

    def _prompt_scores(self, seqs: np.ndarray) -> Iterable[tuple[int, bytes, bytes, bytes]]:
        for index in np.flatnonzero(~self._plain[seqs[:, 0]]):
            row, start, count, _ = seqs[index].tolist()
            wanted = self._rule(row, "prompt_logprobs")
            end = min(start + count, self._rule(row, "prompt_tokens") - 1)
            if wanted >= 0 and start < end:
                following = self._tokens[row, start + 1 : end + 1]
                pairs = [best(token, wanted, self._vocab) for token in following.tolist()]
                columns = (b"".join(pair[i] for pair in pairs) for i in (0, 1))
                yield (int(index), logprob(following).tobytes(), *columns)

    def _rule(self, row: int, name: str) -> int:
        setup = self._setups[row]
        assert setup is not None
        return int(setup.rules[name])

    def _check_images(self, work: Plan) -> None:
        """Check that every image slot that is computed, and nothing else, is named with the embeddings of its id."""
        ids = [self._tokens[row, start : start + count] for row, start, count, _ in work.seqs.tolist()]
        wanted = sum(int(np.count_nonzero(some >= self._vocab)) for some in ids)
        assert work.images[:, 2].sum() == wanted, "each image slot is named once"
        computed = {row: range(start, start + count) for row, start, count, _ in work.seqs.tolist()}
        for row, position, count, low, high, first, _ in work.images.tolist():
            assert self._images is not None
            assert position in computed[row]
            assert position + count - 1 in computed[row]
            rows = self._images.rows(low + (high << 32), first, count)
            if not np.array_equal(self._tokens[row, position : position + count], rows):
                raise WrongSlot(f"step {self._step} row {row}: not the image that belongs at {position}")

    def _check_plan(self, work: Plan) -> None:
        counts = work.seqs[:, 2]
        assert work.step > self._step, "steps go up"
        assert (counts > 0).all()
        assert (np.diff((counts > 1).astype(int)) >= 0).all(), "sequences of one token stand first"
        firsts = line_numbers(work.seqs) == 0
        assert len(set(work.seqs[firsts, 0].tolist())) == firsts.sum(), (
            "a row comes once, or its lines are side by side"
        )
        assert (work.seqs[1:, 1] == work.seqs[:-1, 1] + 1)[~firsts[1:]].all(), "its positions follow each other"
        assert (counts[~firsts] == 1).all()
        assert len({int(setup.rules["row"]) for setup in work.setups}) == len(work.setups)
        assert len(work.slots.values) == len(self._spaces) * work.slots.runs[:, 2].sum()
        for space, slots in zip(self._spaces, np.split(work.slots.values, len(self._spaces)), strict=True):
            assert ((slots >= 0) & (slots < len(space.digest))).all()

    def _check_history(self, space: MockSpace, row: int, first: int, length: int) -> None:
        """Check that the slots from `first` to `length` hold this row's ids at their positions after its prefix."""
        tokens, slots, positions = self._tokens[row, :length], space.slots[row, :length], np.arange(length)
        if tokens.min() < 0 or slots.min() < 0:
            raise WrongSlot(f"step {self._step} row {row}: an id or slot below {length} was never written")
        must = self._classes[row] + np.cumsum(part(tokens, positions), dtype=U64)
        wrong = (space.digest[slots] != must) | (space.position[slots] != positions)
        wrong[:first] = False  # the window hides them
        if wrong.any():
            raise WrongSlot(f"step {self._step} row {row}: wrong content at {np.flatnonzero(wrong)[:8].tolist()}")


class HybridMockWorker(MockWorker):
    """The worker of a model with recurrent layers. A state is the digest of all tokens so far and their number."""

    def __init__(self, *, checkpoints: int, rows: int, **others: Any) -> None:
        super().__init__(rows=rows, **others)
        self._state = np.zeros(rows + 1 + checkpoints, U64)
        self._tokens_seen = np.full(rows + 1 + checkpoints, -1)
        """By place; -1: the place has no usable state."""

    def _set_up(self, setup: RowSetup) -> None:
        super()._set_up(setup)
        self._tokens_seen[setup.rules["row"]] = -1

    def _compute(self, work: Plan) -> np.ndarray:
        """Load states, continue them, save states. A digest equals that of the keys only if the state is right."""
        digests = super()._compute(work)
        starts = {row: start for row, start, _, _ in work.seqs.tolist()}
        targets = [place for row, position, place in work.states.tolist() if position > starts[row]]
        assert len(set(targets)) == len(targets), "each copy has a place of its own"
        saves: dict[int, list[tuple[int, int]]] = {}
        for row, position, place in work.states.tolist():
            if position > starts[row]:
                saves.setdefault(row, []).append((position, place))
            elif place == NO_STATE:
                self._state[row], self._tokens_seen[row] = self._classes[row], 0
            else:
                self._state[row], self._tokens_seen[row] = self._state[place], self._tokens_seen[place]
        for index, (row, start, count, _) in enumerate(work.seqs.tolist()):
            if self._tokens_seen[row] != start:
                raise WrongSlot(f"step {self._step} row {row}: a state at {self._tokens_seen[row]}, not at {start}")
            positions = np.arange(start, start + count)
            states = self._state[row] + np.cumsum(part(self._tokens[row, positions], positions), dtype=U64)
            for position, place in [*saves.pop(row, ()), (start + count, row)]:
                self._state[place], self._tokens_seen[place] = states[position - start - 1], position
            if states[-1] != digests[index]:
                raise WrongSlot(f"step {self._step} row {row}: the state at {start} is that of another prefix")
        assert not saves
        return digests


def line_numbers(seqs: np.ndarray) -> np.ndarray:
    """For each sequence of a plan: the number of entries of its row before it."""
    first = np.append(True, seqs[1:, 0] != seqs[:-1, 0])[: len(seqs)]
    return np.arange(len(seqs)) - np.maximum.accumulate(np.where(first, np.arange(len(seqs)), 0))


def expected(
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    eos_ids: Sequence[int],
    vocab_size: int,
    longest: int,
    rope_class: int = 0,
    allowed: Callable[[Sequence[int]], set[int]] | None = None,
) -> list[int]:
    """The ids that a sequence produces in an undisturbed run. `longest`: most ids it can have. `allowed`: the ids that
    may follow the produced ids."""
    stop_ids = np.frombuffer(sampling.stop_ids, "<i4").tolist()
    ends = {*stop_ids, *(() if sampling.ignore_eos and allowed is None else eos_ids)}
    seeded = seed_part(sampling.seed, sampling.temperature)
    produced: list[int] = []
    digest = _digest(prompt, rope_class)
    while len(produced) < min(sampling.max_new_tokens, longest - len(prompt)):
        token = int(next_ids(digest ^ seeded, vocab_size)[0])
        if len(produced) < sampling.min_new_tokens:
            token = unmask(token, [*eos_ids, *stop_ids], vocab_size)
        if allowed is not None:
            early = len(produced) < sampling.min_new_tokens
            found = allow(token, allowed(produced) - set((*eos_ids, *stop_ids) if early else ()), vocab_size)
            if found is None:
                return produced
            token = found
        produced.append(token)
        if token in ends:
            break
        digest += part(np.array([token]), np.array([len(prompt) + len(produced) - 1]))
    return produced


def expected_score(prompt: Sequence[int], rope_class: int = 0) -> float:
    """The score of a prompt in an undisturbed run."""
    return float(score(_digest(prompt, rope_class))[0])


def _digest(prompt: Sequence[int], rope_class: int) -> np.ndarray:
    return class_part(rope_class) + part(np.array(prompt), np.arange(len(prompt))).sum(keepdims=True, dtype=U64)


def class_part(rope_class: int) -> np.uint64:
    """The digest of the empty prefix."""
    return U64(rope_class * 0x2545F4914F6CDD1D & 0xFFFF_FFFF_FFFF_FFFF)


def score(digests: np.ndarray) -> np.ndarray:
    """float32 [n]"""
    return (_scramble(digests) % U64(4001)).astype("<f4") / np.float32(100) - np.float32(20)


def part(ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """uint64: the contribution of one token to the digest of a prefix."""
    return _scramble((ids.astype(U64) + U64(1)) * U64(0x9E3779B97F4A7C15) + positions.astype(U64))


def next_ids(digests: np.ndarray, vocab_size: int) -> np.ndarray:
    return (_scramble(digests) % U64(vocab_size)).astype("<i4")


def seed_part(seed: int, temperature: float) -> np.uint64:
    """The seed's contribution; greedy sequences do not depend on the seed."""
    return U64(0) if temperature == 0 else _scramble(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], U64))[0]


def unmask(token: int, masked: Sequence[int], vocab_size: int) -> int:
    while token in masked:
        token = (token + 1) % vocab_size
    return token


def allowed_ids(masks: bytes, count: int) -> list[list[int]]:
    """The ids of each mask."""
    if not count:
        return []
    bits = np.unpackbits(np.frombuffer(masks, np.uint8).reshape(count, -1), axis=1, bitorder="little")
    return [np.flatnonzero(row).tolist() for row in bits]


def allow(token: int, allowed: set[int], vocab_size: int) -> int | None:
    """The next allowed id; None: no id is allowed."""
    return next((at for step in range(vocab_size) if (at := (token + step) % vocab_size) in allowed), None)


def logprob(ids: np.ndarray) -> np.ndarray:
    return -(ids % 97).astype("<f4") / np.float32(8)


def best(token: int, count: int, vocab_size: int) -> tuple[bytes, bytes]:
    """(ids, logprobs) columns of `count` alternatives."""
    ids = ((token + np.arange(count)) % vocab_size).astype("<i4")
    return ids.tobytes(), logprob(ids).tobytes()


def _scramble(values: np.ndarray) -> np.ndarray:
    """Mix the bits of the values. 0 stays 0."""
    values = (values ^ (values >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> U64(27))) * U64(0x94D049BB133111EB)
    return values ^ (values >> U64(31))


def _write(table: np.ndarray, runs: np.ndarray, values: np.ndarray) -> None:
    """Write (row, position, count) runs into a table, in order."""
    single = len(runs) == len(values)
    if single:
        table[runs[:, 0], runs[:, 1]] = values
        return
    at = 0
    for row, position, count in runs.tolist():
        table[row, position : position + count] = values[at : at + count]
        at += count
