"""The forms of answers for the document: dialects write them in pieces, and a test compares them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from lightllm_mp.actors.http.dialects.openai_fields import Usage

Finish = Literal["stop", "length", "tool_calls"]


class GenerateAnswer(Struct):
    """Lists of n where n > 1."""

    generated_text: list[str]
    count_output_tokens: int | list[int]
    finish_reason: str | list[str]
    prompt_tokens: int
    cached_tokens: int | UnsetType = UNSET
    tokens: list[Any] | UnsetType = UNSET
    """Of TokenDetail, or n lists of them."""
    logprobs: list[Any] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, Any] | None] | UnsetType = UNSET


class TokenCount(Struct):
    ntokens: int


class CalledFunction(Struct):
    name: str
    arguments: str


class AnswerToolCall(Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Struct):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[AnswerToolCall] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Finish
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionBody(Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    service_tier: str
    system_fingerprint: str | None


class ChunkChoice(Struct):
    index: int
    delta: dict[str, Any]
    logprobs: dict[str, Any] | None
    finish_reason: Finish | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(Struct):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class TextChoice(Struct):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Finish | None
    token_ids: list[int] | UnsetType = UNSET


class TextCompletion(Struct):
    """Its chunks have no tier and fingerprint."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str | UnsetType | None = UNSET


class ModelCard(Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None


class ModelList(Struct):
    object: Literal["list"]
    data: list[ModelCard]


class AnthropicUsage(Struct):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int | UnsetType | None = UNSET
    cache_creation_input_tokens: int | UnsetType | None = UNSET


class AnthropicMessage(Struct):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    usage: AnthropicUsage


class AnthropicEvent(Struct):
    type: str


class InputTokens(Struct):
    input_tokens: int


class AnthropicErrorBody(Struct):
    type: str
    message: str


class AnthropicError(Struct):
    type: Literal["error"]
    error: AnthropicErrorBody
    request_id: str


class EmbeddingEntry(Struct):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of float32."""


class EmbeddingList(Struct):
    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: dict[str, Any]


class RankedDocument(Struct):
    index: int
    relevance_score: float
    document: dict[str, str] | UnsetType = UNSET


class Ranking(Struct):
    id: str
    model: str
    usage: dict[str, Any]
    results: list[RankedDocument]


class PairScore(Struct):
    index: int
    object: Literal["score"]
    score: float


class PairScores(Struct):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PairScore]
    usage: dict[str, Any]


class ResponseAnswer(Struct):
    """It also repeats the fields of its request."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class ResponseEvent(Struct):
    type: str
    sequence_number: int


class DeletedResponse(Struct):
    id: str
    object: Literal["response"]
    deleted: bool


class TokenIds(Struct):
    count: int
    max_model_len: int
    tokens: list[int]


class PromptText(Struct):
    prompt: str


class ModelName(Struct):
    model_name: str


class HealthAnswer(Struct):
    """`reason` if the server is unhealthy; `unavailable`: missing actors without which the others go on."""

    message: Literal["Ok", "Error"]
    reason: str | UnsetType = UNSET
    unavailable: list[str] | UnsetType = UNSET


class Status(Struct):
    status: Literal["ok", "error"]
    reason: str | UnsetType = UNSET


class TokenLoad(Struct):
    """Shares of the KV slots."""

    current_load: float
    logical_max_load: float
    dynamic_max_load: float


class KeptAnswer(Struct):
    """In the form of the route that the request was sent to."""


class ServerInfo(Struct):
    version: str
    model_name: str
    authentication: bool
    trust_remote_code: bool
    max_live_requests: int
    max_body_bytes: int
    live_requests: int
    takes_images: bool
    facts: dict[str, Any] | None


class OpenApiDocument(Struct):
    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
