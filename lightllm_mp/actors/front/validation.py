"""Checks a request before tokenization: refuses what this engine can never serve."""

from __future__ import annotations

from lightllm_mp.errors import InvalidRequest, PromptTooLong
from lightllm_mp.messages import ChatPrompt, EngineLimits, Terms
from lightllm_mp.vision.spec import IMAGE_ID

Prompt = str | bytes | ChatPrompt
"""Text, an int32 column of ids, or a chat."""

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
    check_prompt(prompt, limits, sees=sees)
    if limits.reward and sampling.max_new_tokens:
        raise InvalidRequest("this is a reward model: it answers /get_score and produces no text")
    if not limits.reward and not sampling.max_new_tokens:
        raise InvalidRequest("/get_score needs a reward model, this one produces text")
    _check_column(sampling.stop_ids, limits, "stop_sequences")
    _check_column(sampling.bias_ids, limits, "logit_bias")


def check_prompt(prompt: Prompt, limits: EngineLimits, *, sees: bool = False) -> None:
    """Raises InvalidRequest or PromptTooLong."""
    if isinstance(prompt, bytes):
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="inputs")
        size, most, unit = len(prompt) // 4, limits.longest_prompt, "tokens"
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
    elif isinstance(prompt, str) and not _is_unicode(prompt):
        raise InvalidRequest("the prompt holds half a surrogate pair", param="inputs")


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
