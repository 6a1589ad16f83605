"""POST /tokenize and /detokenize: bodies in vLLM's form."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.chat.chat_ask import ChatAsk
from lightllm_mp.actors.http.dialects.chat_messages import read_messages, read_tools
from lightllm_mp.actors.http.dialects.openai_fields import NULL, Label, decode_body
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.facts import Facts
from lightllm_mp.messages import ChatPrompt

Arguments = Annotated[dict[str, Any], Meta(max_length=32)]


class TokenizeBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of `prompt` and `messages`."""

    model: Label | None = None
    prompt: Raw = NULL
    messages: Raw = NULL
    tools: Raw = NULL
    add_special_tokens: bool | None = None
    """Only with a prompt: a template writes them itself."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Arguments | None = None


class DetokenizeBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Label | None = None
    tokens: Raw
    skip_special_tokens: bool | None = None


_tokenize = msgspec.json.Decoder(TokenizeBody)
_detokenize = msgspec.json.Decoder(DetokenizeBody)


def tokenize_body(data: bytes) -> TokenizeBody:
    """Raises InvalidRequest."""
    body = decode_body(_tokenize, data, frozenset(("prompt", "messages", "tools")))
    if (body.prompt == NULL) == (body.messages == NULL):
        raise InvalidRequest("one of prompt and messages is needed", param="prompt")
    if body.messages == NULL and body.tools != NULL:
        raise InvalidRequest("tools need messages", param="tools")
    return body


def detokenize_body(data: bytes) -> DetokenizeBody:
    """Raises InvalidRequest."""
    return decode_body(_detokenize, data, frozenset(("tokens",)))


async def chat_prompt(body: TokenizeBody, facts: Facts) -> ChatPrompt:
    """Raises InvalidRequest; images are not counted here."""
    chat = await read_messages(body.messages)
    if chat.images:
        raise InvalidRequest("this route takes text only", param="messages")
    ask = ChatAsk(
        facts,
        tuple(tool.function for tool in read_tools(body.tools)),
        template_arguments=body.chat_template_kwargs or {},
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final=bool(body.continue_final_message),
    )
    return ask.prompt(chat.messages)
