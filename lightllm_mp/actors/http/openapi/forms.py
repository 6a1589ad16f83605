"""What each route takes and answers."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from lightllm_mp.actors.http.dialects.anthropic.anthropic_request import AskedMessages, MessagesBody
from lightllm_mp.actors.http.dialects.chat_request import ChatBody
from lightllm_mp.actors.http.dialects.completion_request import CompletionBody
from lightllm_mp.actors.http.dialects.pooled_request import EmbeddingBody, RerankBody, ScorePairsBody
from lightllm_mp.actors.http.dialects.responses.response_request import ResponseBody
from lightllm_mp.actors.http.dialects.tokenize_request import DetokenizeBody, TokenizeBody
from lightllm_mp.actors.http.live.snapshot_schema import LiveSnapshot
from lightllm_mp.actors.http.openapi import answers
from lightllm_mp.actors.http.responses import ScoreAnswer, StreamEvent
from lightllm_mp.actors.http.schema import GenerateBody, ScoreBody, TokensBody


@dataclass(frozen=True, kw_only=True)
class Forms:
    body: type[Struct] | None = None
    answer: type[Struct] | None = None
    """A JSON object."""
    events: type[Struct] | None = None
    """The data of its server-sent events."""
    deleted: type[Struct] | None = None
    """The answer of DELETE."""
    text: bool = False
    """It answers with plain text."""
    resumes: bool = False
    """It continues an existing answer after the event of Last-Event-ID."""


RERANK = Forms(body=RerankBody, answer=answers.Ranking)
SCORE_PAIRS = Forms(body=ScorePairsBody, answer=answers.PairScores)
FORMS = {
    "/generate": Forms(body=GenerateBody, answer=answers.GenerateAnswer),
    "/generate_stream": Forms(body=GenerateBody, events=StreamEvent, resumes=True),
    "/": Forms(body=GenerateBody, answer=answers.GenerateAnswer, events=StreamEvent),
    "/get_score": Forms(body=ScoreBody, answer=ScoreAnswer),
    "/tokens": Forms(body=TokensBody, answer=answers.TokenCount),
    "/v1/chat/completions": Forms(body=ChatBody, answer=answers.ChatCompletionBody, events=answers.ChatCompletionChunk),
    "/v1/completions": Forms(body=CompletionBody, answer=answers.TextCompletion, events=answers.TextCompletion),
    "/v1/embeddings": Forms(body=EmbeddingBody, answer=answers.EmbeddingList),
    "/v1/rerank": RERANK,
    "/v2/rerank": RERANK,
    "/rerank": RERANK,
    "/v1/score": SCORE_PAIRS,
    "/score": SCORE_PAIRS,
    "/v1/responses": Forms(body=ResponseBody, answer=answers.ResponseAnswer, events=answers.ResponseEvent),
    "/v1/responses/{id}": Forms(answer=answers.ResponseAnswer, deleted=answers.DeletedResponse),
    "/v1/models": Forms(answer=answers.ModelList),
    "/v1/models/{id}": Forms(answer=answers.ModelCard),
    "/v1/messages": Forms(body=MessagesBody, answer=answers.AnthropicMessage, events=answers.AnthropicEvent),
    "/v1/messages/count_tokens": Forms(body=AskedMessages, answer=answers.InputTokens),
    "/tokenize": Forms(body=TokenizeBody, answer=answers.TokenIds),
    "/detokenize": Forms(body=DetokenizeBody, answer=answers.PromptText),
    "/requests/{id}": Forms(answer=answers.KeptAnswer, events=answers.KeptAnswer, resumes=True),
    "/health": Forms(answer=answers.HealthAnswer),
    "/healthz": Forms(answer=answers.HealthAnswer),
    "/liveness": Forms(answer=answers.Status),
    "/readiness": Forms(answer=answers.Status),
    "/metrics": Forms(text=True),
    "/live/events": Forms(events=LiveSnapshot),
    "/token_load": Forms(answer=answers.TokenLoad),
    "/get_server_info": Forms(answer=answers.ServerInfo),
    "/get_model_name": Forms(answer=answers.ModelName),
    "/openapi.json": Forms(answer=answers.OpenApiDocument),
}
"""By path. Without forms a route answers nothing."""
