"""POST /v1/embeddings, /v1/rerank and /v1/score: the bodies, and the prompts that they hold.

A field that this server does not know, or does not honour, is refused by its name; `null` is the same as absent.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.validation import Prompt
from lightllm_mp.actors.http import schema
from lightllm_mp.actors.http.dialects.completion_request import split_prompts
from lightllm_mp.actors.http.dialects.openai_fields import Label, decode_body, refuse
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.messages import Terms, TextPair
from lightllm_mp.sampling_parameters import MAX_ID, POOLED

MAX_INPUTS = 2048
"""Inputs, documents or pairs of one body."""
TOO_LONG = "a prompt that is too long is refused, not cut"


class PooledBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Label | None = None
    """Any name: a server has one model."""
    user: Label | None = None
    """A label of the client; it means nothing here."""
    priority: Annotated[int, Meta(ge=-MAX_ID, le=MAX_ID)] | None = None
    """As vLLM's: a lower value is served first."""
    cache_salt: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    request_id: Label | None = None
    truncate_prompt_tokens: int | None = None
    """Refused."""


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
    """So many of the best are shown; 0 or absent: all."""
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
_documents = msgspec.json.Decoder(Annotated[list[str | Document], Meta(min_length=1, max_length=MAX_INPUTS)])
_texts = msgspec.json.Decoder(str | Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)])


def embedding_body(data: bytes) -> EmbeddingBody:
    """Raises InvalidRequest."""
    body = decode_body(_embeddings, data, frozenset(("input",)))
    refuse(truncate_prompt_tokens=(body.truncate_prompt_tokens, TOO_LONG))
    return body


def rerank_body(data: bytes) -> RerankBody:
    """Raises InvalidRequest."""
    body = decode_body(_reranks, data, frozenset(("query", "documents")))
    refuse(
        truncate_prompt_tokens=(body.truncate_prompt_tokens, TOO_LONG),
        max_tokens_per_doc=(body.max_tokens_per_doc, TOO_LONG),
    )
    return body


def score_pairs_body(data: bytes) -> ScorePairsBody:
    """Raises InvalidRequest."""
    body = decode_body(_scores, data, frozenset(("text_1", "text_2")))
    refuse(truncate_prompt_tokens=(body.truncate_prompt_tokens, TOO_LONG))
    return body


async def embedding_inputs(body: EmbeddingBody, max_input: int) -> list[Prompt]:
    """Texts, or int32 columns of ids. Raises InvalidRequest or PromptTooLong."""
    found: list[Prompt] = []
    for raw in await split_prompts(body.input, "input", MAX_INPUTS):
        found.append(await schema.prompt(raw, max_input, "input"))
        if len(found) % 64 == 0:
            await asyncio.sleep(0)
    if len({type(prompt) for prompt in found}) != 1:
        raise InvalidRequest("input must be a text, token ids, or a list of one kind of them", param="input")
    return found


async def rerank_documents(body: RerankBody) -> list[str]:
    """Raises InvalidRequest."""
    if memoryview(body.documents).nbytes > schema.PIECE:
        await asyncio.sleep(0)
    found = schema.decode(_documents, body.documents, "documents")
    return [document if isinstance(document, str) else document.text for document in found]


async def score_pairs(body: ScorePairsBody) -> list[TextPair]:
    """Raises InvalidRequest."""
    if memoryview(body.text_1).nbytes + memoryview(body.text_2).nbytes > schema.PIECE:
        await asyncio.sleep(0)
    texts = schema.decode(_texts, body.text_1, "text_1"), schema.decode(_texts, body.text_2, "text_2")
    first, second = ([text] if isinstance(text, str) else text for text in texts)
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InvalidRequest("text_1 is one text, or as many as text_2 has", param="text_1")
    return [TextPair(*pair) for pair in zip(first, second, strict=True)]


def pooled_terms(body: PooledBody, tenant: bytes, task: Literal["embed", "score"]) -> Terms:
    salt = hashlib.blake2b(body.cache_salt.encode(), digest_size=16).digest() if body.cache_salt else b""
    return Terms(POOLED, tenant=tenant, priority=-(body.priority or 0), cache_salt=salt, task=task)
