"""POST /v1/embeddings, /v1/rerank and /v1/score: the bodies, and the prompts that they hold.

A field that this server does not know, or does not honour, is refused by its name; `null` is the same as absent.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.validation import CHARS_PER_TOKEN
from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.dialects.completion_request import split_prompts
from lightllm_mp.actors.http.dialects.openai_fields import Label, decode_body, refuse
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.messages import Terms, TextPair
from lightllm_mp.sampling_parameters import MAX_ID, POOLED

T = TypeVar("T", str, bytes, str | bytes)
One = TypeVar("One")

MAX_INPUTS = 2048
"""Inputs, documents or pairs of one body."""


class PooledBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Label | None = None
    """Any name: a server has one model."""
    user: Label | None = None
    """A label of the client; it means nothing here."""
    priority: Annotated[int, Meta(ge=-MAX_ID, le=MAX_ID)] | None = None
    """As vLLM's: a lower value is served first."""
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    request_id: Label | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=MAX_ID)] | None = None
    """A text or document is cut at this many tokens of the prompt; -1: at the longest prompt. Default: a prompt that is
    too long is refused."""


class EmbeddingBody(PooledBody, frozen=True):
    input: Raw
    """A text, token ids, or a list of texts or of lists of ids."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=MAX_ID)] | None = None
    add_special_tokens: bool | None = None


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    """Jina's and Cohere's other way to write a document."""

    text: str


class RerankBody(PooledBody, frozen=True):
    query: str
    documents: Raw
    """A list of texts or of `Document`s."""
    top_n: Annotated[int, Meta(ge=0, le=MAX_ID)] | None = None
    """Number of best documents to show; 0 or absent: all."""
    return_documents: bool | None = None
    """Default true."""
    max_tokens_per_doc: int | None = None
    """Refused."""


class ScorePairsBody(PooledBody, frozen=True):
    """One text_1 with one or many text_2, or as many of one as of the other."""

    text_1: Raw
    text_2: Raw


_embeddings = msgspec.json.Decoder(EmbeddingBody)
_reranks = msgspec.json.Decoder(RerankBody)
_scores = msgspec.json.Decoder(ScorePairsBody)
_document = msgspec.json.Decoder(str | Document)
_text = msgspec.json.Decoder(str)


def embedding_body(data: bytes) -> EmbeddingBody:
    """Raises InvalidRequest."""
    return decode_body(_embeddings, data, frozenset(("input",)))


def rerank_body(data: bytes) -> RerankBody:
    """Raises InvalidRequest."""
    body = decode_body(_reranks, data, frozenset(("query", "documents")))
    refuse(max_tokens_per_doc=(body.max_tokens_per_doc, "use truncate_prompt_tokens"))
    return body


def score_pairs_body(data: bytes) -> ScorePairsBody:
    """Raises InvalidRequest."""
    return decode_body(_scores, data, frozenset(("text_1", "text_2")))


async def embedding_inputs(body: EmbeddingBody, max_input: int) -> list[str | bytes]:
    """Texts, or int32 columns of ids. Raises InvalidRequest or PromptTooLong."""
    found: list[str | bytes] = []
    for raw in await split_prompts(body.input, "input", MAX_INPUTS):
        prompt = await schema.prompt(raw, 0 if body.truncate_prompt_tokens else max_input, "input")
        found.append(cut_text(prompt, body, max_input))
        if len(found) % 64 == 0:
            await asyncio.sleep(0)
    if len({type(prompt) for prompt in found}) != 1:
        raise InvalidRequest("input must be a text, token ids, or a list of one kind of them", param="input")
    return found


def cut_text(prompt: T, body: PooledBody, max_input: int) -> T:
    """Cuts text that would be cut anyway. No token of an ordinary text has as many characters."""
    if not body.truncate_prompt_tokens or not max_input:
        return prompt
    if isinstance(prompt, bytes):
        return prompt[: 4 * max_input]
    return prompt[: CHARS_PER_TOKEN * max_input]


async def rerank_documents(body: RerankBody, max_input: int) -> list[str]:
    """Raises InvalidRequest."""
    found = await _list_of(_document, body.documents, "documents")
    texts = (document if isinstance(document, str) else document.text for document in found)
    return [cut_text(text, body, max_input // 2) for text in texts]


async def score_pairs(body: ScorePairsBody, max_input: int) -> list[TextPair]:
    """Raises InvalidRequest."""
    first, second = await _one_or_many(body.text_1, "text_1"), await _one_or_many(body.text_2, "text_2")
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InvalidRequest("text_1 is one text, or as many as text_2 has", param="text_1")
    return [TextPair(one, cut_text(other, body, max_input // 2)) for one, other in zip(first, second, strict=True)]


async def _one_or_many(raw: Raw, name: str) -> list[str]:
    if bytes(memoryview(raw)[:1]) == b'"':
        return [schema.decode(_text, raw, name)]
    return await _list_of(_text, raw, name)


async def _list_of(decoder: msgspec.json.Decoder[One], raw: Raw, name: str) -> list[One]:
    """The items of a list; other clients are served between them."""
    found = []
    for number, item in enumerate(schema.items(raw, name, MAX_INPUTS)):
        if number % 64 == 0 or memoryview(item).nbytes > schema.PIECE:
            await asyncio.sleep(0)
        found.append(schema.decode(decoder, item, name))
    if not found:
        raise InvalidRequest(f"{name}: Expected `array` of length >= 1", param=name)
    return found


def pooled_terms(body: PooledBody, tenant: bytes, task: Literal["embed", "score"]) -> Terms:
    most = body.truncate_prompt_tokens
    if most == 0:
        raise InvalidRequest("truncate_prompt_tokens must be -1 or at least 1", param="truncate_prompt_tokens")
    salt = hashlib.blake2b(body.cache_salt.encode(), digest_size=16).digest() if body.cache_salt else b""
    return Terms(
        POOLED,
        tenant=tenant,
        priority=-(body.priority or 0),
        cache_salt=salt,
        task=task,
        most_tokens=MAX_ID if most == -1 else most or 0,
    )
