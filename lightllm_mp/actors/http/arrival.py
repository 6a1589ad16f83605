"""How a request arrives: it is admitted, its body is received, and in the end it is submitted.

A request counts as live of its tenant from its admission on. While it arrives, `frontend.arriving` holds its place; it
is submitted in the same turn of the loop in which it gives the place back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from lightllm_mp.actors.front.image_files import Upload
from lightllm_mp.actors.front.live_request import LiveRequest
from lightllm_mp.actors.front.validation import Prompt
from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.body import BodyReader
from lightllm_mp.actors.http.context import DEADLINE, LABEL, Context, payer, relay_of, tenant
from lightllm_mp.actors.http.deadline_header import deadline
from lightllm_mp.actors.http.delivery import deliver, send
from lightllm_mp.actors.http.dialects.forms import Form, GroupForm, encode_form
from lightllm_mp.actors.http.image_inputs import MediaItem
from lightllm_mp.actors.http.live_group import LiveGroup
from lightllm_mp.actors.http.pooled_batch import MOST_LIVE, PooledBatch
from lightllm_mp.errors import EngineError
from lightllm_mp.facts import Facts
from lightllm_mp.messages import ImageInfo, Terms


@dataclass(frozen=True, slots=True)
class Work:
    """What a route makes of a body: a request for the engine, and the form of its answer."""

    prompt: Prompt
    terms: Terms
    form: Form
    add_special_tokens: bool = True
    images: tuple[Upload, ...] = ()
    keep: float = 0.0
    """Seconds; see LiveRequest."""


class Arrivals:
    def __init__(self, context: Context) -> None:
        self._frontend, self._media = context.frontend, context.media
        config = context.config
        self._most_of_batch = max(1, min(MOST_LIVE, config.max_live_requests // 8))
        self._bodies = BodyReader(most=config.max_body_bytes, seconds=config.header_timeout)

    @property
    def max_input(self) -> int:
        """The longest prompt in tokens; 0 before the engine has begun."""
        facts = self._frontend.facts
        return facts.engine.longest_prompt if facts else 0

    @property
    def facts(self) -> Facts:
        """Of the model that an admitted request gets."""
        assert self._frontend.facts is not None, "a request that arrives was admitted"
        return self._frontend.facts

    @asynccontextmanager
    async def receive(self, request: web.Request) -> AsyncIterator[bytes]:
        """The body of an admitted request. A request that is not admitted is refused before its body is read."""
        with self._frontend.arriving(tenant(request)):
            request[DEADLINE] = deadline(request)
            async with self._bodies.receive(request, payer(request)) as data:
                await schema.check_nesting(data)
                yield data

    async def chat_images(self, request: web.Request, items: Sequence[MediaItem]) -> tuple[Upload, ...]:
        """The images of a chat's messages. Raises like `ImageInputs.uploads`."""
        with self._media.arriving(tenant(request)) as take:
            return await self._media.upload_all(items, tenant(request), take, payer(request))

    async def chat_image_infos(self, request: web.Request, items: Sequence[MediaItem]) -> tuple[ImageInfo, ...]:
        """The same for counting tokens."""
        return await self._media.info_all(items, tenant(request), payer(request))

    async def answer(self, request: web.Request, work: Awaitable[Work]) -> web.StreamResponse:
        """Answer with the work that arrives."""
        return await deliver(request, self.submit(request, await work))

    async def answer_all(self, request: web.Request, works: Awaitable[Sequence[Work]]) -> web.StreamResponse:
        """Answer with several works of one form as one."""
        many = await works
        if len(many) == 1:
            return await deliver(request, self.submit(request, many[0]))
        found = list[LiveRequest]()
        try:
            for work in many:
                found.append(self.submit(request, work, label=""))
        except EngineError:
            for live in found:
                live.close()
            raise
        group, form = LiveGroup(found, request[LABEL]), many[0].form
        assert isinstance(form, GroupForm)
        return await send(request, group, form, form.writer(group))

    async def answer_batch(self, request: web.Request, works: Sequence[Work]) -> web.StreamResponse:
        """Answer with many works of one form as one; some of them wait here until others are done. Call it in the turn
        of the loop in which they have arrived."""
        if len(works) == 1:
            return await deliver(request, self.submit(request, works[0]))
        form = works[0].form
        assert isinstance(form, GroupForm)
        with self._frontend.reserved(len(works)):
            batch = PooledBatch(
                works, lambda work: self.submit(request, work, label=""), most=self._most_of_batch, label=request[LABEL]
            )
            return await send(request, batch, form, form.writer(batch))

    def submit(self, request: web.Request, work: Work, *, label: str | None = None) -> LiveRequest:
        """`label`: the client can come back by it; empty: it cannot; default: the request's own."""
        return self._frontend.submit(
            work.prompt,
            work.terms,
            add_special_tokens=work.add_special_tokens,
            images=work.images,
            stream=work.form.streamed,
            deadline=request[DEADLINE],
            label=request[LABEL] if label is None else label,
            form=encode_form(work.form),
            keep=work.keep,
            relay=relay_of(request),
        )
