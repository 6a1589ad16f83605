"""The scheduler (continuous batching): it chooses the sequences, tokens and KV slots of each step.

The router calls `plan` for the next step's bytes and `done` with its answer; with run-ahead it calls `plan` again
before `done`. The scheduler has one thread and reads no clock: the same calls give the same plans.

A plan gives every decoding sequence one token, perhaps with draft tokens behind it (speculation/), and shares the rest
of its tokens between prompts. admission.py decides which sequence may start and how prompts share a step. When slots
run out, the scheduler evicts cached prefixes. If that is not enough, it preempts the youngest sequence of the lowest
priority, of the tenant that has been served most; its tokens stay in the prefix tree until their slots are needed.
After a preemption no sequence starts until another one ends.
The queue serves the tenant that has been served least (wait_queue.py), and each tenant's sequences by priority, then
earliest deadline, then arrival. A sequence past its deadline does not begin; the front tells its client and aborts it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import numpy as np

from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import (
    ABORT,
    STOP,
    Close,
    CloseGuide,
    Embedded,
    Pooled,
    Release,
    Scheduled,
    SchedulerState,
    StepDone,
    Tokenized,
    Wire,
)
from lightllm_mp.scheduler.admission import Admission
from lightllm_mp.scheduler.counters import Counters
from lightllm_mp.scheduler.finish_reasons import taken_tokens
from lightllm_mp.scheduler.inspection import scheduler_state
from lightllm_mp.scheduler.integrity import check, check_leases, check_queues
from lightllm_mp.scheduler.invalid_logits import NOT_FINITE, check_columns, failed_sequences, failure
from lightllm_mp.scheduler.jumps import Jumps
from lightllm_mp.scheduler.kv_memory import KvMemory
from lightllm_mp.scheduler.prompt_chunks import PromptChunks
from lightllm_mp.scheduler.prompt_images import Leases
from lightllm_mp.scheduler.rows import Rows
from lightllm_mp.scheduler.sequence import Sequence, sequences_of
from lightllm_mp.scheduler.speculation.drafts import Drafts
from lightllm_mp.scheduler.step_writer import InFlightStep, write_step
from lightllm_mp.scheduler.wait_queue import Shares, WaitQueue

BURST = 32
"""Number of sequences that one step admits even if fewer would fill it."""


class Scheduler:
    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self._width = limits.pooled.width if limits.pooled is not None else 0
        """Numbers in the row that a pooled sequence gets; 0 for a model that generates."""
        self._rows = Rows(limits)
        self._counters = Counters()
        self._kv = KvMemory(limits, self._rows, self._counters)
        self._admission = Admission(self._rows, self._kv)
        self._live: dict[int, Sequence] = {}
        self._shares = Shares()
        self._waiting, self._prefilling = WaitQueue(self._shares), WaitQueue(self._shares)
        self._flights: deque[InFlightStep] = deque()
        self._events: list[Wire] = []
        self._moved: list[tuple[int, int, int, int]] = []
        """(row, life, start, end): positions whose slots the worker does not know yet."""
        self._chunks = PromptChunks(limits, self._rows, self._kv, self._moved)
        self._drafts = Drafts(limits, self._rows, self._kv, self._counters)
        self._held = False
        """A sequence was preempted, and none has ended since."""
        self._arrivals = 0
        self._leases = Leases()
        self.jumps = Jumps(limits, self._rows, self._live, self._counters)
        self._random = np.random.Generator(np.random.PCG64(0))

    # --- requests come and go -----------------------------------------------------------------------------------------

    def add(self, request: Tokenized, embedded: Embedded | None = None) -> None:
        """Queue the n sequences of a request. `embedded` says where its images are; if the request is queued, a later
        Release event gives them back. PromptTooLong or InvalidRequest when the request can never be served, ValueError
        when one of its rids is live."""
        sequences = sequences_of(request, self.limits, self._arrivals, self._random, embedded)
        if known := [sequence.rid for sequence in sequences if sequence.rid in self._live]:
            raise ValueError(f"sequences {known} are already here")
        self._arrivals += len(sequences)
        tenant = self._shares.enter(request.terms.tenant, len(sequences))
        self._leases.hold(sequences[0].images, len(sequences))
        for sequence in sequences:
            self._live[sequence.rid], sequence.tenant = sequence, tenant
            self._waiting.add(sequence)

    def abort(self, rid: int) -> None:
        """End a sequence whose client has gone."""
        if (sequence := self._live.get(rid)) is not None:
            self._end(sequence, ABORT)
            if sequence.opened and not sequence.pooled:
                self._events.append(Close(rid))

    def stop_matched(self, rid: int) -> None:
        """End a sequence whose text has reached a stop string."""
        if (sequence := self._live.get(rid)) is not None:
            self._end(sequence, STOP)

    def reset(self, keep_cache: bool) -> None:
        """Drop all requests and steps. The prefix tree holds only positions of answered steps, so the caller may keep
        it if the worker kept its memory."""
        for sequence in self._live.values():
            if sequence.row >= 0:
                self._leave(sequence)
        if not keep_cache:
            self._kv.clear()
        state = (self._live, self._waiting, self._shares, self._prefilling, self._flights, self._events, self._moved)
        for part in (*state, self._leases, self.jumps):
            part.clear()
        self._held = False

    # --- steps --------------------------------------------------------------------------------------------------------

    def plan(self, now: float = 0.0) -> bytes | None:
        """The next step, packed (see plan.py), or None when nothing can be computed before the next `done` or `add`.
        `now`: monotonic time in seconds. Sequences whose deadline is before it do not begin.

        A plan needs no answer of an earlier step, because it names only rows and positions. If slots run out with a
        step in flight, the result is None, because that step's answer may free some."""
        for sequence, events in self.jumps.take():
            self._events += events
            self._prefilling.add(sequence)
        decoding = self._decode()
        if decoding is None:
            return None
        self._admit(now)
        drafted = int(self._rows.drafted[decoding].sum())
        chunks = self._chunks.take(self._prefilling, self.limits.step_tokens - len(decoding) - drafted)
        while not (chunks or len(decoding) or self._flights) and len(self._prefilling):
            self._preempt(self._youngest())
            chunks = self._chunks.take(self._prefilling, self.limits.step_tokens)
        if not (chunks or len(decoding)):
            return None
        return self._write(decoding, chunks)

    def done(self, answer: StepDone) -> None:
        """Take the answer to the oldest step in flight. RuntimeError when it does not match that step."""
        flight = self._flights.popleft() if self._flights else None
        if flight is None or flight.step != answer.step:
            raise RuntimeError(f"answer to step {answer.step}, expected {flight and flight.step}")
        self._give_back(self._leases.answered(answer.step))
        rows = self._rows
        check_columns(flight, answer, self._width)
        kept = self._drafts.verify(flight, answer)
        self._fail(flight, kept, answer)
        alive = kept & (rows.life[flight.rows] == flight.lives)
        taken, ends = flight.rows[alive], flight.ends[alive]
        rows.confirmed[taken] = np.maximum(rows.confirmed[taken], ends)
        for index, logprobs, top_ids, top_logprobs in answer.prompt:
            sequence = rows.sequences[flight.rows[index]] if alive[index] else None
            if sequence is not None and sequence.owed_logprobs is not None:
                sequence.owed_logprobs.add(logprobs, top_ids, top_logprobs)
        self._finish_prefills(flight, alive)
        self._moved.extend(self._kv.leave_behind())
        self._take_tokens(flight, alive, answer)
        self._take_pooled(flight, alive, answer)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def has_work(self) -> bool:
        """True while a sequence waits or runs."""
        return bool(self._live)

    def take_events(self) -> list[Wire]:
        """Messages since the last call, in order: Scheduled, Pooled and Rejected for the front, Release for the visual
        actor, Advance, NeedMasks and CloseGuide for the guide actor, others for the detokenizer."""
        events, self._events = self._events, []
        return events

    # --- composing a step ---------------------------------------------------------------------------------------------

    def _decode(self) -> np.ndarray | None:
        """Give every decoding row slots for its next token and its draft. Returns the rows, or None to wait for a step
        in flight."""
        rows = self._rows
        decoding = self._drafts.ready(rows.decoding(), beside_prompts=len(self._prefilling) > 0)
        while (slots := self._kv.take(len(decoding))) is None:
            if self._flights:
                return None
            self._preempt(self._youngest())
            decoding = rows.decoding()
        rows.slots[:, decoding, rows.planned[decoding]] = slots
        rows.planned[decoding] += 1
        self._drafts.place(decoding)
        self._shares.produces(rows.tenant[decoding])
        return decoding

    def _admit(self, now: float) -> None:
        """Seat waiting sequences in order, as long as admission accepts them. A burst is spread over several steps, so
        that decode does not wait for all admission tests: each step seats as many sequences as fill it."""
        if not len(self._waiting) or (self._held and self._rows.free < self._rows.total):
            return
        admitted: list[Sequence] = []
        tokens = 0
        for sequence in self._waiting:
            if sequence.waits_for_leader or sequence.expired(now):
                continue
            if len(admitted) >= BURST and tokens >= self.limits.step_tokens:
                break
            if not self._rows.free or not self._seat(sequence):
                break
            admitted.append(sequence)
            left = int(self._rows.target[sequence.row] - self._rows.planned[sequence.row])
            self._shares.computes(sequence.tenant, left)
            tokens += left
        for sequence in admitted:
            self._waiting.remove(sequence)
            self._prefilling.add(sequence)
        self._counters.admitted += len(admitted)

    def _seat(self, sequence: Sequence) -> bool:
        slots = self._kv.borrow(sequence)
        alone = self._rows.free == self._rows.total
        if not alone and not self._admission.admits(sequence, len(slots[0])):
            self._kv.let_go(sequence)
            return False
        self._rows.seat(sequence, slots)
        sequence.due.begun = True
        if sequence.group is not None and not sequence.group.ready:
            sequence.group.leader = sequence
        return True

    def _announce(self, sequence: Sequence, cached: int) -> None:
        """Tell the detokenizer (for a pooled sequence the front), once, that a sequence's first chunk is planned."""
        sequence.opened = True
        self._events.append(Scheduled(sequence.rid) if sequence.pooled else sequence.open(cached))
        self._counters.prompt_tokens += sequence.prompt_tokens
        if sequence.reads_cache:
            self._counters.prefix_queries_tokens += len(sequence.ids)
            self._counters.prefix_hit_tokens += cached

    def _write(self, decoding: np.ndarray, chunks: dict[Sequence, int]) -> bytes:
        rows = self._rows
        moved = [(row, start, end) for row, life, start, end in self._moved if rows.life[row] == life]
        self._moved.clear()
        plan, flight = write_step(self._counters.steps, rows, self._kv.states, moved, decoding, chunks)
        self._counters.steps += 1
        self._flights.append(flight)
        if (masks := flight.masks(rows)) is not None:
            self._events.append(masks)
        for sequence, start in chunks.items():
            if not sequence.opened:
                self._announce(sequence, start)
            planned = int(rows.planned[sequence.row])
            self._counters.prefill_tokens += planned - start
            if planned == rows.target[sequence.row]:
                self._prefilling.remove(sequence)
        self._counters.decode_tokens += flight.decodes
        self._counters.step_rows += len(flight.rows) - flight.drafts
        return plan

    # --- retiring a step ----------------------------------------------------------------------------------------------

    def _fail(self, flight: InFlightStep, kept: np.ndarray, answer: StepDone) -> None:
        """End the sequences that got no id. If their logits are not finite, their KV may be wrong too, so the tree gets
        none of it."""
        for sequence, error in failed_sequences(self._rows, flight, kept, answer, self._width):
            if error is NOT_FINITE:
                sequence.cached = False
                if self.limits.window:  # the tree already has some of its positions
                    self._kv.forget(sequence.namespace)
                self._counters.invalid_logits += 1
            self._end(sequence, ABORT)
            self._events += failure(sequence, error)

    def _finish_prefills(self, flight: InFlightStep, alive: np.ndarray) -> None:
        """Put prompts that are fully computed into the tree. Sequences that waited for them may start."""
        for index in range(flight.decodes, len(flight.rows)):
            whole = alive[index] and (flight.sampled[index] or flight.pooled[index])
            sequence = self._rows.sequences[flight.rows[index]] if whole else None
            if sequence is None:
                continue
            if sequence.owed_logprobs is not None:
                self._events += sequence.owed_logprobs.messages(sequence.rid, sequence.ids, sequence.spans)
                sequence.logprobs_sent()
            if sequence.cached:
                start, end = self._kv.publish(sequence)
                if start < end:
                    self._moved.append((sequence.row, int(flight.lives[index]), start, end))
            if sequence.group is not None:
                sequence.group.ready = True

    def _take_tokens(self, flight: InFlightStep, alive: np.ndarray, answer: StepDone) -> None:
        produced = taken_tokens(self._rows, self.limits.eos_ids, flight, alive, answer)
        if produced is None:
            return
        self._events += produced.events
        self._counters.generation_tokens += len(produced.rows)
        if flight.drafts:  # tokens beyond those charged by the plan
            self._shares.produces(self._rows.tenant[produced.rows[1:][produced.rows[1:] == produced.rows[:-1]]])
        for index in np.flatnonzero(produced.finish):
            sequence = self._rows.sequences[produced.rows[index]]
            assert sequence is not None
            self._end(sequence, int(produced.finish[index]))

    def _take_pooled(self, flight: InFlightStep, alive: np.ndarray, answer: StepDone) -> None:
        row_bytes = 4 * self._width
        for number, index in enumerate(np.flatnonzero(flight.pooled).tolist()):
            sequence = self._rows.sequences[flight.rows[index]] if alive[index] else None
            if sequence is not None:
                row = answer.pooled[number * row_bytes : (number + 1) * row_bytes]
                self._events.append(Pooled(sequence.rid, row, sequence.prompt_tokens))
                self._end(sequence, STOP)

    # --- leaving ------------------------------------------------------------------------------------------------------

    def _end(self, sequence: Sequence, reason: int) -> None:
        """End a sequence. Its slots are free at once, because the worker executes plans in order."""
        produced = len(sequence.ids)
        if sequence.row >= 0:
            produced = self._rows.known(sequence.row)
            self._leave(sequence)
            self._held = False
        else:
            self._waiting.remove(sequence)
        del self._live[sequence.rid]
        self._shares.leave(sequence.tenant)
        if sequence.guided:
            self._events.append(CloseGuide(sequence.rid))
        self._give_back(self._leases.let_go(sequence.images, self._flights[-1].step if self._flights else None))
        if reason != ABORT:
            self._admission.lengths.record(produced - sequence.prompt_tokens)
        self._counters.ended(reason)

    def _give_back(self, rids: list[int]) -> None:
        self._events += [Release(rid) for rid in rids]

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back into the queue, at its place by arrival. No step may be in flight. When it
        resumes, the ids that it has produced are prefilled like its prompt."""
        row = sequence.row
        sequence.ids = self._rows.ids[row, : self._rows.known(row)].copy()
        self._leave(sequence)
        if sequence.owed_logprobs is not None:
            sequence.owed_logprobs.clear()
        self._waiting.add(sequence)
        self._counters.preemptions += 1
        self._held = True

    def _leave(self, sequence: Sequence) -> None:
        """Take the slots and the row from a running sequence."""
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)
        if sequence.group is not None and sequence.group.leader is sequence:
            sequence.group.leader = None
        self._kv.release(sequence)
        self._rows.vacate(sequence)
        sequence.uploaded = 0

    def _youngest(self) -> Sequence:
        """The running sequence that is last in service order, of the tenant that has been served most."""
        running = [sequence for sequence in self._rows.sequences if sequence is not None]
        tenant = self._shares.most({sequence.tenant for sequence in running})
        return max((s for s in running if s.tenant == tenant), key=lambda s: s.order)

    # --- looking at it ------------------------------------------------------------------------------------------------

    def gauges(self) -> dict[str, float]:
        """Gauges of the present state, and the counters."""
        return {
            "running": self._rows.total - self._rows.free,
            "waiting": len(self._waiting),
            "kv_used": self._kv.used,
            "kv_cached": self._kv.tree.evictable,
            "kv_total": self.limits.kv_tokens,
            **self._kv.gauges(),
            **self._kv.states.gauges(),
            **self._counters.by_name(),
        }

    def expected_tokens(self) -> float:
        """Tokens left to compute for all sequences, running and waiting."""
        return self._admission.expected_tokens(list(self._waiting))

    def state(self, rids: bytes, *, lacking_images: Collection[int], compiling: Collection[int]) -> SchedulerState:
        """The state of these sequences and of KV memory (see `scheduler_state`)."""
        return scheduler_state(
            self._rows, self._kv, self._live, rids, lacking_images=lacking_images, compiling=compiling
        )

    def check_integrity(self) -> None:
        """IntegrityError unless each slot, lock, sequence and lease is accounted for exactly once."""
        check(self._rows, self._kv)
        check_queues(self._rows, self._live, self._waiting, self._prefilling)
        check_leases(self._live, self._leases, bool(self._flights))
