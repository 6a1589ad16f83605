"""The request table of the HTTP front: clients can come back, and ask the tokenizer.

What a client needs to come back is in the journal: after the front's own death the next front recovers every request,
and `resume` gives it to its client again. A request that was aborted because its consumer left goes on like one after a
repair: from the ids that it has.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import msgspec
from msgspec.structs import replace

from lightllm_mp import messages as say
from lightllm_mp.actors.front import validation
from lightllm_mp.actors.front.live_request import LiveRequest, Relay
from lightllm_mp.actors.front.request_journal import put_frame, read_record
from lightllm_mp.actors.front.request_table import RequestTable
from lightllm_mp.actors.front.validation import Prompt, check_prompt
from lightllm_mp.actors.topology import HTTP
from lightllm_mp.errors import InvalidRequest, Overloaded, Unavailable


class ResumableTable(RequestTable):
    @property
    def requests(self) -> Collection[LiveRequest]:
        """Those that were submitted, the oldest first."""
        return self._lives.values()

    @property
    def connected(self) -> bool:
        """The lanes are there: no repair is under way."""
        return self._connected

    @contextmanager
    def arriving(self, tenant: bytes) -> Iterator[None]:
        """A request of this tenant counts as live while its body and images arrive. It leaves at the end of the context
        and must be submitted in the same turn of the loop, so that its place is still free. Raises like `admit`."""
        self.admit(tenant)
        self.limits.enter(tenant)
        try:
            yield
        finally:
            self.limits.leave(tenant)
            self._check_drained()

    async def count(
        self,
        prompt: str | say.ChatPrompt,
        *,
        add_special_tokens: bool = True,
        images: Sequence[say.ImageInfo] = (),
        tenant: bytes = b"",
        deadline: float = math.inf,
    ) -> int:
        """Number of tokens of a prompt with these images in its placeholders. Raises like `ask`."""
        found = await self._counted(prompt, tenant, deadline, add_special_tokens, tuple(images), listed=False)
        return found.tokens

    async def ids(
        self, prompt: str | say.ChatPrompt, *, add_special_tokens: bool, tenant: bytes, deadline: float
    ) -> bytes:
        """The ids of a prompt without images, int32. Raises like `ask`."""
        return (await self._counted(prompt, tenant, deadline, add_special_tokens, (), listed=True)).ids

    async def text(self, ids: bytes, *, skip_special_tokens: bool, tenant: bytes, deadline: float) -> str:
        """The text of ids. Raises like `ask`."""
        self._check(ids)
        found = await self.ask(lambda rid: say.Detokenize(rid, ids, skip_special_tokens), tenant, deadline)
        assert isinstance(found, say.Detokenized)
        return found.text

    @contextmanager
    def reserved(self, rows: int) -> Iterator[None]:
        """Memory for so many rows of numbers that one client waits for. Raises Overloaded."""
        assert self.facts is not None
        pooled = self.facts.engine.pooled
        size = 4 * rows * pooled.width if pooled is not None else 0
        if self.answer_bytes + size > self._most_answer_bytes:
            message = "answers of live requests take all memory for them"
            raise Overloaded(message, retry_after=self.limits.retry_after())
        self.answer_bytes += size
        try:
            yield
        finally:
            self.answer_bytes -= size

    def resume(self, tenant: bytes, label: str, taken: int = 0, relay: Relay | None = None) -> LiveRequest:
        """A request of this tenant for a client that has its first `taken` events. Whoever read it before reads no
        more. Raises NotFound, InvalidRequest, Overloaded or Unavailable."""
        old = self.retained.find(tenant, label, taken)
        suspended = old in self.retained
        if suspended and old.open:
            self.admit(tenant)
        live = old.reopened(taken, relay)
        self.observer.resumed()
        self.retained.name(live)
        self._quarantine.replace(old, live)
        if suspended:
            self.retained.remove(old)
        if suspended and live.open:
            self.limits.enter(tenant)
            rid = self._rids(len(live.answers))
            terms = replace(live.request.terms, start_by=self._deadlines.start_by(live.deadline))
            live.rid, live.request = rid, replace(live.request, rid=rid, terms=terms)
            for answer in live.answers:
                answer.rid = rid + answer.index
        self.journal.relay_all(live, live.relay)
        if suspended and live.open:
            self.journal.suspended(live, False)
            self._enter(live)
            if self._connected:
                self._submit_again(live)
        elif live.rid in self._lives:
            self._lives[live.rid] = live
            self._deadlines.watch(live)
        return live

    def adopt(
        self, frames: Sequence[bytes], taken: int, *, tenant: bytes, deadline: float, relay: Relay
    ) -> LiveRequest:
        """A request that another engine began, for a client that has its first `taken` events. `frames`: its record, as
        `relay` was given it there. Raises InvalidRequest for a damaged record, and like `submit`."""
        self.admit(tenant)
        built = self._rebuilt(frames, tenant, deadline)
        if not 0 <= taken <= len(built.order):
            raise InvalidRequest(f"the record has {len(built.order)} events, not {taken}", param="Last-Event-ID")
        if (unavailable := validation.unavailable(built.request, self.state.away)) is not None:
            raise unavailable
        built.images = self._hold(built.images, tenant) if built.open or built.keep else ()
        live = built.reopened(taken, relay if built.open else None)  # nobody needs the record of a complete one
        self.answer_bytes += live.bytes
        self.limits.enter(tenant)
        self.retained.name(live)
        self.journal.add(live)
        self.journal.prompt(live)
        self.journal.events(live)
        self._enter(live)
        if self._connected:
            self._submit_again(live)
        self.observer.accepted(live)
        return live

    def keep(self, frames: Sequence[bytes], *, tenant: bytes) -> bool:
        """Keep a complete request of another engine, for its own time. False: it is here already. Raises InvalidRequest
        for another one or a damaged record, Overloaded or Unavailable."""
        if self.facts is None or self.state.draining:
            raise Unavailable("the server keeps nothing now")
        built = self._rebuilt(frames, tenant, math.inf)
        if built.open or not built.keep:
            raise InvalidRequest("only a complete answer that is stored can be kept")
        if self.retained.knows(built.key):
            return False
        built.images = self._hold(built.images, tenant)
        built.closed, built.attached = True, False
        self.answer_bytes += built.bytes
        self.retained.name(built)
        self.journal.add(built)
        self.journal.prompt(built)
        self.journal.events(built)
        self.retained.add(built)
        if self.answer_bytes > self._most_answer_bytes:
            self._shed()
        return True

    def look(self, tenant: bytes, label: str) -> LiveRequest:
        """A request of this tenant as it stands; its consumer goes on reading. Raises NotFound."""
        return self.retained.find(tenant, label)

    def recover(self, epoch: int) -> None:
        """Take over what a dead front has left, whose death led to this epoch. Call it once, in the running loop,
        before the first request."""
        found = self.journal.recover(self, epoch)
        self._quarantine.recall(HTTP, self.journal.deaths)
        for live, suspended in found:
            self.retained.name(live)
            images = live.images if live.open or live.keep else ()  # a complete answer needs none
            live.images = self.images.hold(images, live.request.terms.tenant, checked=False)
            self.answer_bytes += live.bytes
            if suspended or not live.open:
                live.closed = True
                self.retained.add(live)
            else:
                self.limits.enter(live.request.terms.tenant)
                self._enter(live)
                asyncio.get_running_loop().call_later(self.retained.seconds, self._expire, live)

    def discard(self, tenant: bytes, label: str) -> None:
        """Abort and forget a request of this tenant at once. Raises NotFound."""
        live = self.retained.find(tenant, label)
        self.retained.forget_name(live)
        if live in self.retained:
            self.retained.remove(live)
            self.retained.left(live)
        live.close()

    async def _counted(
        self,
        prompt: str | say.ChatPrompt,
        tenant: bytes,
        deadline: float,
        special: bool,
        images: tuple[say.ImageInfo, ...],
        *,
        listed: bool,
    ) -> say.Counted:
        text, chat = (prompt, None) if isinstance(prompt, str) else ("", prompt)
        self._check(prompt)
        found = await self.ask(lambda rid: say.Count(rid, text, special, images, chat, listed), tenant, deadline)
        assert isinstance(found, say.Counted)
        return found

    def _rebuilt(self, frames: Sequence[bytes], tenant: bytes, deadline: float) -> LiveRequest:
        """The request of a record, whose images are not held yet. Raises InvalidRequest."""
        try:
            head, files, rest = read_record(frames)
            images = tuple(files[image.key] for image in head.request.images)
            terms = replace(head.request.terms, tenant=tenant, start_by=self._deadlines.start_by(deadline))
            request = replace(head.request, rid=self._rids(head.request.terms.n), terms=terms)
            built = LiveRequest(request, self, head.stream, images, deadline, head.label, head.form, head.keep)
            for frame in rest:
                put_frame(built, frame)
        except (msgspec.DecodeError, KeyError, IndexError) as error:
            raise InvalidRequest(f"the record is damaged: {error}") from None
        if built.order:  # the times of its record are those of another clock
            built.scheduled = built.first = built.started
        return built

    def _check(self, prompt: Prompt) -> None:
        if self.facts is not None:  # else `ask` refuses
            check_prompt(prompt, self.facts.engine)

    def _expire(self, live: LiveRequest) -> None:
        """Its client has not come back since the front died. What is stored stays."""
        if not live.closed:
            if not live.keep:
                self.retained.forget_name(live)
            live.close()
