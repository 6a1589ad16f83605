"""Fields that OpenAI's chat and text completions share, and those that users of vLLM and SGLang add to them.

A field that this server does not know, or does not honour, is refused by its name; `null` is the same as absent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.chat.guides import NULL, GuideFields
from lightllm_mp.actors.http import schema
from lightllm_mp.errors import InvalidRequest, PromptTooLong
from lightllm_mp.messages import Terms
from lightllm_mp.sampling_parameters import (
    MAX_ALLOWED,
    MAX_BIASES,
    MAX_ID,
    MAX_STOPS,
    Choices,
    Id,
    Penalty,
    RequestParameters,
    Stop,
    terms,
)

Body = TypeVar("Body", bound=Struct)
Label = Annotated[str, Meta(max_length=1024)]
Labels = Annotated[dict[Label, Label], Meta(max_length=16)]
FIELDS_BYTES = schema.PARAMETERS_BYTES
"""Longest body without its messages, prompt and tools: other clients wait while it is decoded."""
TOO_LONG = "prompt is too long"
"""Clients such as litellm and Claude Code recognise a prompt that does not fit by these words of Anthropic's API."""
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    """Send a last event with the usage."""
    continuous_usage_stats: bool | None = None
    """Send the usage so far with every event."""
    include_obfuscation: Literal[False] | None = None


class OpenAIBody(GuideFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling and output."""

    model: Label | None = None
    """Any name: a server has one model."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_ID)] | None = None
    n: Choices | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=1000.0)] | None = None
    """Default 1, as OpenAI's. 0: greedy."""
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[Id, Penalty], Meta(max_length=MAX_BIASES)] | None = None
    user: Label | None = None
    """A label of the client; it means nothing here. So are the next ones."""
    metadata: Labels | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    service_tier: Literal["auto", "default"] | None = None

    # What users of vLLM and SGLang add.
    top_k: Annotated[int, Meta(ge=-1, le=MAX_ID)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=100.0)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_ID)] | None = None
    stop_token_ids: Annotated[list[Id], Meta(max_length=64)] | None = None
    allowed_token_ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_ALLOWED)] | None = None
    include_stop_str_in_output: bool | None = None
    do_sample: bool | None = None
    """False (LightLLM's): greedy. Absent: as OpenAI's, the answer is sampled."""
    no_stop_trim: bool | None = None
    """SGLang's name of it."""
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    return_token_ids: bool | None = None
    return_timings: bool | None = None
    """How long the stages of the answer took, beside its usage."""
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    priority: Annotated[int, Meta(ge=-MAX_ID, le=MAX_ID)] | None = None
    """As vLLM's: a lower value is served first."""
    speculate: bool | None = None
    """False: no tokens are drafted for this request."""
    request_id: Label | None = None


@contextmanager
def openai_errors(prompt: str) -> Iterator[None]:
    """Errors about a prompt or its images name the field that OpenAI's clients send, and have OpenAI's code."""
    try:
        yield
    except InvalidRequest as error:
        if error.param in ("inputs", "multimodal_params"):
            error.param = prompt
        if isinstance(error, PromptTooLong):
            error.code, error.param = "context_length_exceeded", prompt
            error.message = f"{TOO_LONG}: {error.message}"
        raise


class Usage(Struct, frozen=True, omit_defaults=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None
    completion_tokens_details: dict[str, int] | None = None


def decode_body(decoder: msgspec.json.Decoder[Body], data: bytes, large: frozenset[str]) -> Body:
    """`large`: fields that are read later, piece by piece. Raises InvalidRequest that names the field."""
    if len(data) > FIELDS_BYTES:
        found = schema.decode(_large_fields(large), data)
        rest = len(data) - sum(memoryview(raw).nbytes for raw in msgspec.structs.astuple(found))
        if rest > FIELDS_BYTES:
            raise InvalidRequest(f"the fields beside {', '.join(sorted(large))} have more than {FIELDS_BYTES} bytes")
    try:
        return schema.decode(decoder, data)
    except InvalidRequest as error:
        if found := _UNKNOWN.search(error.message):
            name = found[1][:64]
            message = f"{name!r} is not a field that this server knows"
            raise InvalidRequest(message, param=error.param or name) from None
        raise


@cache
def _large_fields(names: frozenset[str]) -> msgspec.json.Decoder[Any]:
    """Skips all other fields."""
    return msgspec.json.Decoder(msgspec.defstruct("_LargeFields", [(name, Raw, NULL) for name in sorted(names)]))


def check_stream(body: OpenAIBody) -> None:
    """Raises InvalidRequest for fields that only a stream has or cannot have."""
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    if body.prompt_logprobs is not None and body.stream:
        raise InvalidRequest("the events of a stream have no prompt_logprobs", param="prompt_logprobs")


def refuse(**fields: Any) -> None:
    """Raises InvalidRequest for a field that is given: `name=(value, why)`."""
    for name, (value, why) in fields.items():
        if value is not None and value != NULL:
            raise InvalidRequest(f"{name} is not supported{': ' if why else ''}{why}", param=name)


def request_terms(body: OpenAIBody, tenant: bytes, *, max_tokens: int, top_logprobs: int, **more: Any) -> Terms:
    """The terms of a request. `more`: parameters that only one of the APIs has. Raises InvalidRequest."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    parameters = RequestParameters(
        do_sample=body.do_sample is not False,
        temperature=body.temperature,
        top_p=body.top_p or None,
        top_k=1 if body.top_p == 0.0 else body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        ignore_eos=body.ignore_eos,
        max_new_tokens=max_tokens,
        min_new_tokens=body.min_tokens,
        stop_sequences=[*stops, *([token] for token in body.stop_token_ids or [])],
        include_stop_str_in_output=body.include_stop_str_in_output or body.no_stop_trim,
        seed=None if body.seed is None else body.seed % (1 << 63),
        logprobs=top_logprobs,
        prompt_logprobs=-1 if body.prompt_logprobs is None else body.prompt_logprobs,
        logit_bias=body.logit_bias,
        allowed_token_ids=body.allowed_token_ids,
        skip_special_tokens=body.skip_special_tokens is not False,
        add_spaces_between_special_tokens=body.spaces_between_special_tokens,
        priority=-(body.priority or 0),
        speculate=body.speculate,
        **({"n": body.n} | more),
    )
    try:
        found = terms(parameters, tenant)
    except InvalidRequest as error:
        error.param = _NAMES.get(error.param or "", error.param)
        raise
    salt = hashlib.blake2b(body.cache_salt.encode(), digest_size=16).digest() if body.cache_salt else b""
    return msgspec.structs.replace(found, cache_salt=salt, guide=body.guide)


_NAMES = {"min_new_tokens": "min_tokens", "stop_sequences": "stop", "max_new_tokens": "max_tokens"}
"""The engine's names of parameters -> OpenAI's."""
