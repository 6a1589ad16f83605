"""Checks a request before tokenization: refuses what this engine can never serve."""

from __future__ import annotations

from collections.abc import Collection

from lightllm_mp.actors.topology import GUIDE, VISUAL
from lightllm_mp.errors import InvalidRequest, PromptTooLong, Unavailable
from lightllm_mp.facts import EngineLimits
from lightllm_mp.messages import ChatPrompt, Generate, Terms, TextPair
from lightllm_mp.vision.spec import IMAGE_ID

Prompt = str | bytes | ChatPrompt | TextPair
"""Text, an int32 column of ids, a chat, or a query and a document."""

MODELS = {"embed": "an embedding model", "score": "a reward model"}
DOES = {"generate": "produces text", "embed": "gives embeddings", "score": "gives scores"}
ROUTES = {"embed": "/v1/embeddings", "score": "/get_score"}
"""By task of a model: what it is, what it does, and where."""
IMAGES_AWAY = "the image encoder is not available: send the request again later, or without images"
GUIDES_AWAY = "constraints are not available: send the request again later, or without one"
MAX_N = 64
CHARS_PER_TOKEN = 16
"""A text with more characters than this times the longest prompt's tokens is refused before tokenization."""
CHAT_BYTES = 1 << 20
"""Bytes that a chat may have beside its text: names, tools, brackets. A character of its text takes up to 4."""


def check(prompt: Prompt, terms: Terms, limits: EngineLimits, *, sees: bool = False) -> None:
    """Raises InvalidRequest or PromptTooLong. `sees`: ids may contain image placeholders."""
    sampling = terms.sampling
    if not 1 <= terms.n <= MAX_N:
        raise InvalidRequest(f"n must be between 1 and {MAX_N}", param="n")
    _check_task(terms.task, limits.task, pair=isinstance(prompt, TextPair))
    check_prompt(prompt, limits, sees=sees)
    _check_column(sampling.stop_ids, limits, "stop_sequences")
    _check_column(sampling.bias_ids, limits, "logit_bias")


def _check_task(asked: str, does: str, *, pair: bool) -> None:
    if asked == does:
        return
    if pair:
        raise InvalidRequest(f"/v1/rerank and /v1/score need a reranking model, this one {DOES[does]}")
    if asked == "generate":
        raise InvalidRequest(f"this is {MODELS[does]}: it answers {ROUTES[does]} and produces no text")
    raise InvalidRequest(f"{ROUTES[asked]} needs {MODELS[asked]}, this one {DOES[does]}")


def embedding_length(limits: EngineLimits, dimensions: int | None) -> int | None:
    """The asked length of embeddings; None: as they are. Raises InvalidRequest, as vLLM does, for a model that was not
    trained to have its embeddings cut."""
    if dimensions is None or limits.pooled is None:
        return None
    shorter, width = limits.pooled.shorter, limits.pooled.width
    if shorter is None and dimensions != width:
        raise InvalidRequest(
            f"the embeddings of this model have {width} numbers and may not be cut: it is no Matryoshka model",
            param="dimensions",
        )
    if shorter and dimensions not in (*shorter, width):
        raise InvalidRequest(f"dimensions must be one of {', '.join(map(str, shorter))}", param="dimensions")
    if not 1 <= dimensions <= width:
        raise InvalidRequest(f"dimensions must be between 1 and {width}", param="dimensions")
    return dimensions


def check_prompt(prompt: Prompt, limits: EngineLimits, *, sees: bool = False) -> None:
    """Raises InvalidRequest or PromptTooLong."""
    if isinstance(prompt, bytes):
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="inputs")
        size, most, unit = len(prompt) // 4, limits.longest_prompt, "tokens"
    elif isinstance(prompt, TextPair):
        if limits.pooled is None or not limits.pooled.pairs:
            raise InvalidRequest("/v1/rerank and /v1/score need a reranking model, this one scores single texts")
        size, most, unit = prompt.size, CHARS_PER_TOKEN * limits.longest_prompt, "characters"
    elif isinstance(prompt, str):
        size, most, unit = len(prompt), CHARS_PER_TOKEN * limits.longest_prompt, "characters"
    else:
        size, most, unit = prompt.size, 4 * CHARS_PER_TOKEN * limits.longest_prompt + CHAT_BYTES, "bytes"
    if most and size > most:
        raise PromptTooLong(
            f"the prompt has {size} {unit}, the longest possible one {limits.longest_prompt} tokens", param="inputs"
        )
    if isinstance(prompt, bytes):
        _check_column(prompt, limits, "inputs", IMAGE_ID if sees else None)
    elif not all(map(_is_unicode, _texts(prompt))):
        raise InvalidRequest("the prompt holds half a surrogate pair", param="inputs")


def _texts(prompt: Prompt) -> tuple[str, ...]:
    """The texts of a prompt that are not checked yet: those of a chat have come through JSON."""
    if isinstance(prompt, TextPair):
        return prompt.query, prompt.document
    return (prompt,) if isinstance(prompt, str) else ()


def _is_unicode(text: str) -> bool:
    """Whether UTF-8, and so a message, can carry the text."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_column(column: bytes, limits: EngineLimits, param: str, marker: int | None = None) -> None:
    """Refuse ids outside the vocabulary, which a worker would read out of bounds. `marker`: an id that is allowed too,
    because the tokenizer replaces it."""
    ids = {*memoryview(column).cast("i")} - {marker}
    if ids and limits.vocab_size and not (min(ids) >= 0 and max(ids) < limits.vocab_size):
        raise InvalidRequest(f"token ids must lie between 0 and {limits.vocab_size - 1}", param=param)


def unavailable(request: Generate, away: Collection[str]) -> Unavailable | None:
    """Why a request cannot be served without the actors that are `away`."""
    if VISUAL in away and request.images:
        return Unavailable(IMAGES_AWAY)
    return Unavailable(GUIDES_AWAY) if GUIDE in away and request.terms.guide is not None else None
