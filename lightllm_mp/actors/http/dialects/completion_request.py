"""POST /v1/completions: the body, and the request to the engine."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta, Raw
from msgspec.structs import replace

from lightllm_mp.actors.front.validation import Prompt
from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.context import unix_time
from lightllm_mp.actors.http.dialects.completion_answer import CompletionForm
from lightllm_mp.actors.http.dialects.openai_fields import (
    OpenAIBody,
    StreamOptions,
    check_stream,
    decode_body,
    request_terms,
)
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.facts import ChatFacts
from lightllm_mp.messages import Terms
from lightllm_mp.sampling_parameters import DEFAULT_MAX_NEW_TOKENS, Choices

MAX_PROMPTS = 256
LARGE = frozenset(("prompt", "suffix"))


class CompletionBody(OpenAIBody, frozen=True):
    prompt: Raw
    """A text, token ids, or a list of texts or of lists of ids."""
    suffix: str | None = None
    """What follows the answer, for models that can fill in."""
    echo: bool | None = None
    """The answer begins with the prompt; with max_tokens 0 it is only the prompt."""
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Choices | None = None
    """Number of answers that are made; the n most likely ones are shown."""


_bodies = msgspec.json.Decoder(CompletionBody)


def completion_body(data: bytes) -> CompletionBody:
    """Raises InvalidRequest."""
    body = decode_body(_bodies, data, LARGE)
    n, best_of = body.n or 1, body.best_of or body.n or 1
    if best_of < n:
        raise InvalidRequest("best_of must be at least n", param="best_of")
    if body.stream and best_of > n:
        raise InvalidRequest("a stream shows every answer: best_of must equal n", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequest("max_tokens must be at least 1 without echo", param="max_tokens")
    if body.echo and body.suffix is not None:
        raise InvalidRequest("echo and suffix exclude each other", param="suffix")
    check_stream(body)
    return body


async def prompts(body: CompletionBody, facts: ChatFacts, max_input: int) -> list[str | bytes]:
    """Texts, or int32 columns of ids. Raises InvalidRequest or PromptTooLong."""
    raws = await split_prompts(body.prompt, "prompt", MAX_PROMPTS)
    found = [await schema.prompt(raw, max_input, "prompt") for raw in raws]
    if len({type(prompt) for prompt in found}) != 1:
        raise InvalidRequest("prompt must be a text, token ids, or a list of one kind of them", param="prompt")
    if body.suffix is None:
        return found
    if not facts.fill_in_middle:
        raise InvalidRequest("this model cannot fill in between a prompt and a suffix", param="suffix")
    before, between, after = facts.fill_in_middle
    if not all(isinstance(prompt, str) for prompt in found):
        raise InvalidRequest("suffix needs prompts of text", param="suffix")
    return [f"{before}{prompt}{between}{body.suffix}{after}" for prompt in found if isinstance(prompt, str)]


async def split_prompts(raw: Raw, name: str, most: int) -> list[Raw]:
    """The prompts of a body: one for a text or token ids, one for each item of a list. Raises InvalidRequest."""
    start = bytes(memoryview(raw)[:64]).replace(b" ", b"").replace(b"\n", b"")[:2]
    if start not in (b'["', b"[["):
        return [raw]
    if memoryview(raw).nbytes > schema.PIECE:
        await asyncio.sleep(0)
    return schema.items(raw, name, most)


def completion_terms(body: CompletionBody, prompt: Prompt, tenant: bytes) -> Terms:
    most = DEFAULT_MAX_NEW_TOKENS if body.max_tokens is None else body.max_tokens
    top = body.logprobs or 0
    terms = request_terms(
        body, tenant, max_tokens=max(most, 1), top_logprobs=top, n=body.best_of or body.n, best_of=None
    )
    if terms.guide is not None:
        unseen = body.logprobs is None and terms.n == (body.n or 1)  # the best answers are found by their logprobs
        terms = replace(terms, guide=replace(terms.guide, jump=unseen))
    if body.echo and (body.logprobs is not None or not isinstance(prompt, str)):
        wanted = max(terms.sampling.prompt_logprobs, top)
        output = replace(terms.output, prompt_texts=True)
        return replace(terms, sampling=replace(terms.sampling, prompt_logprobs=wanted), output=output)
    return terms


def completion_form(body: CompletionBody, model: str, *, numbered: bool, prompts: int) -> CompletionForm:
    options = body.stream_options or StreamOptions()
    return CompletionForm(
        stream=bool(body.stream),
        created=unix_time(),
        model=model,
        numbered=numbered and prompts == 1,
        usage=bool(options.include_usage),
        continuous_usage=bool(options.continuous_usage_stats),
        logprobs=body.logprobs,
        token_ids=bool(body.return_token_ids),
        timings=bool(body.return_timings),
        prompt_logprobs=body.prompt_logprobs is not None,
        echo=bool(body.echo),
        silent=body.max_tokens == 0,
        n=body.n or 1,
    )
