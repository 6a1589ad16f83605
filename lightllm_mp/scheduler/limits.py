"""Fits a request into the engine's limits: prompt length, token ids, context and KV memory."""

from __future__ import annotations

import msgspec
import numpy as np

from lightllm_mp.errors import InvalidRequest, PromptTooLong
from lightllm_mp.facts import EngineLimits, PooledFacts
from lightllm_mp.messages import Sampling, Tokenized
from lightllm_mp.plan import Ints


def fit(request: Tokenized, limits: EngineLimits) -> tuple[Ints, int]:
    """The request's ids and its max_new_tokens, cut to what context and KV memory hold beside the prompt.

    InvalidRequest or PromptTooLong for a request that can never fit; ValueError when the sender breaks the protocol."""
    ids = np.frombuffer(request.ids, "<i4")
    emitted = len(ids) - request.prompt_tokens
    if emitted < 0 or request.terms.n < 1 or (emitted and request.terms.n > 1):
        raise ValueError(
            f"request {request.rid}: {request.prompt_tokens=}, {len(ids)=}, {request.terms.n=} do not go together"
        )
    _check_prompt(ids, request, limits)
    _check_allowed(request, limits)
    asked = request.terms.sampling.max_new_tokens
    if limits.pooled is not None:
        if asked:
            raise InvalidRequest("this model computes embeddings or scores of prompts and answers none")
        return ids, 0
    if asked < 1:
        raise InvalidRequest("max_new_tokens is at least 1", param="max_new_tokens")
    if emitted >= asked:
        raise ValueError(f"request {request.rid}: {emitted} of {asked} tokens are emitted, nothing is left to produce")
    max_new = min(asked, limits.width - request.prompt_tokens)
    if emitted >= max_new:
        raise PromptTooLong(f"prompt and answer so far have {len(ids)} tokens; they no longer fit {limits.width}")
    return ids, max_new


def with_end_token(request: Tokenized, pooled: PooledFacts) -> Tokenized:
    """The request with the end token of the model's prompts appended, if the model has one."""
    token = np.array([pooled.end_token], "<i4").tobytes()
    if pooled.end_token < 0 or not request.ids or request.ids.endswith(token):
        return request
    return msgspec.structs.replace(request, ids=request.ids + token, prompt_tokens=request.prompt_tokens + 1)


def _check_prompt(ids: Ints, request: Tokenized, limits: EngineLimits) -> None:
    prompt_tokens = request.prompt_tokens
    longest = min(limits.max_input, limits.width - 1)
    if prompt_tokens == 0:
        raise InvalidRequest("the prompt is empty", param="prompt")
    if prompt_tokens > longest:
        raise PromptTooLong(f"the prompt has {prompt_tokens} tokens, at most {longest} are possible", param="prompt")
    text = _without_images(ids, request, limits) if request.spans else ids
    if text.min(initial=0) < 0 or text.max(initial=0) >= limits.vocab_size:
        raise InvalidRequest(f"token ids lie in 0..{limits.vocab_size - 1}", param="prompt")


def _check_allowed(request: Tokenized, limits: EngineLimits) -> None:
    sampling = request.terms.sampling
    allowed = np.frombuffer(sampling.allowed_ids, "<i4")
    if allowed.min(initial=0) < 0 or allowed.max(initial=0) >= limits.vocab_size:
        raise InvalidRequest(f"token ids lie in 0..{limits.vocab_size - 1}", param="allowed_token_ids")
    if len(allowed) and np.isin(allowed, masked_ids(sampling, limits)).all():
        raise InvalidRequest(
            "every id of allowed_token_ids ends the answer, but none may before min_new_tokens "
            f"({sampling.min_new_tokens}) are produced; allow another id",
            param="allowed_token_ids",
        )


def masked_ids(sampling: Sampling, limits: EngineLimits) -> tuple[int, ...]:
    """Ids that may not be sampled before min_new_tokens are produced: the ids that end the sequence."""
    stop_ids = np.frombuffer(sampling.stop_ids, "<i4").tolist()
    return tuple(dict.fromkeys((*limits.eos_ids, *stop_ids))) if sampling.min_new_tokens > 0 else ()


def _without_images(ids: Ints, request: Tokenized, limits: EngineLimits) -> Ints:
    """The ids outside image spans. ValueError if spans overlap, lie outside the prompt or hold vocabulary ids."""
    parts, at = [], 0
    for span in request.spans:
        if span.start < at or span.image.tokens < 1 or span.end > request.prompt_tokens:
            raise ValueError(f"request {request.rid}: an image at [{span.start}, {span.end}) does not fit its prompt")
        if ids[span.start : span.end].min() < limits.vocab_size:
            raise ValueError(f"request {request.rid}: ids of the vocabulary where an image stands")
        parts.append(ids[at : span.start])
        at = span.end
    return np.concatenate([*parts, ids[at:]])
