"""POST /v1/chat/completions: the body, and the request to the engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from lightllm_mp.actors.front.chat.chat_ask import ChatAsk
from lightllm_mp.actors.front.chat.chat_fields import GivenChoice, ReasoningEffort, template_arguments, tool_choice
from lightllm_mp.actors.http.context import unix_time
from lightllm_mp.actors.http.dialects.chat_answer import ChatForm
from lightllm_mp.actors.http.dialects.chat_messages import ReadChat, read_messages, read_tools
from lightllm_mp.actors.http.dialects.openai_fields import (
    NULL,
    OpenAIBody,
    StreamOptions,
    check_stream,
    decode_body,
    refuse,
    request_terms,
)
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.facts import Facts
from lightllm_mp.messages import ChatPrompt, Terms
from lightllm_mp.sampling_parameters import Count

MAX_TEMPLATE = 1 << 16
LARGE = frozenset(("messages", "tools"))


class ChatBody(OpenAIBody, frozen=True):
    messages: Raw
    max_completion_tokens: Count | None = None
    """Default: as many as fit. max_tokens is its older name."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Raw = NULL
    tool_choice: GivenChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    """A template's argument; "none" also switches its thinking off."""
    verbosity: Literal["medium"] | None = None
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    audio: Raw = NULL
    prediction: Raw = NULL
    web_search_options: Raw = NULL
    functions: Raw = NULL
    function_call: Raw = NULL

    chat_template: Annotated[str, Meta(max_length=MAX_TEMPLATE)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    separate_reasoning: bool | None = None
    """False (SGLang's): the answer's reasoning stays in its text."""
    include_reasoning: bool | None = None
    """False (vLLM's): reasoning is left out of the answer."""


_bodies = msgspec.json.Decoder(ChatBody)


def chat_body(data: bytes) -> ChatBody:
    """Raises InvalidRequest."""
    body = decode_body(_bodies, data, LARGE)
    why = "this server answers with text"
    refuse(
        audio=(body.audio, why),
        web_search_options=(body.web_search_options, why),
        prediction=(body.prediction, ""),
        functions=(body.functions, "use tools"),
        function_call=(body.function_call, "use tool_choice"),
    )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.add_generation_prompt and body.continue_final_message:
        message = "continue_final_message and add_generation_prompt exclude each other"
        raise InvalidRequest(message, param="continue_final_message")
    if body.add_special_tokens:
        raise InvalidRequest("a chat template writes special tokens itself", param="add_special_tokens")
    check_stream(body)
    return body


class ChatRequest:
    """Turns a body into a request to the engine. `facts`: of the model; `open_templates`: the operator allows clients'
    templates."""

    def __init__(self, body: ChatBody, facts: Facts, *, open_templates: bool) -> None:
        self._body = body
        if body.chat_template and not open_templates:
            message = "this server does not take clients' templates (--allow-chat-template)"
            raise InvalidRequest(message, param="chat_template")
        self._ask = ChatAsk(
            facts,
            tuple(tool.function for tool in read_tools(body.tools)),
            tool_choice(body.tool_choice),
            body.parallel_tool_calls is not False,
            template_arguments=template_arguments(body.reasoning_effort, body.chat_template_kwargs),
            reasoning=body.separate_reasoning is not False,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final=bool(body.continue_final_message),
            template=body.chat_template or "",
            logprobs=bool(body.logprobs),
        )
        self._reply = self._ask.reply

    async def read(self) -> ReadChat:
        return await read_messages(self._body.messages)

    def prompt(self, chat: ReadChat) -> ChatPrompt:
        return self._ask.prompt(chat.messages)

    def terms(self, tenant: bytes) -> Terms:
        body = self._body
        most = body.max_completion_tokens or body.max_tokens
        if most == 0:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        top = body.top_logprobs or 0
        return self._ask.terms(
            request_terms(body, tenant, max_tokens=most or self._ask.longest_answer, top_logprobs=top)
        )

    def form(self, model: str, *, numbered: bool, ignored: tuple[str, ...] = ()) -> ChatForm:
        body = self._body
        options = body.stream_options or StreamOptions()
        return ChatForm(
            stream=bool(body.stream),
            created=unix_time(),
            model=model,
            numbered=numbered,
            usage=bool(options.include_usage),
            continuous_usage=bool(options.continuous_usage_stats),
            logprobs=bool(body.logprobs),
            reply=self._reply,
            show_reasoning=body.include_reasoning is not False,
            token_ids=bool(body.return_token_ids),
            timings=bool(body.return_timings),
            ignored=ignored,
        )
