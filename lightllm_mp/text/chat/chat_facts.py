"""Facts about a model's chats that the front needs to read answers, detected once at the tokenizer's start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from lightllm_mp.errors import ConfigError, EngineError
from lightllm_mp.facts import ChatFacts
from lightllm_mp.parsers.formats import Formats, detect_formats, marker_tokens, opens_reasoning, reasoning_end
from lightllm_mp.parsers.reasoning import REASONING_FORMATS
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS
from lightllm_mp.text.chat.rendering import render_chat
from lightllm_mp.text.tokenizer import Tokenizer

FILL_IN_MIDDLE = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)
"""The tokens around a prompt and its suffix, for models that can fill in between them."""
NONE = "none"
"""The name for no parser."""


def chat_facts(
    tokenizer: Tokenizer, template: str | None, family: str, *, tool_calls: str | None, reasoning: str | None
) -> ChatFacts:
    """`tool_calls`, `reasoning`: the operator's names of formats; None: detect them; "none": no format. ConfigError for
    an unknown format."""
    formats = detect_formats(template or "", family)
    if tool_calls is not None:
        formats = msgspec.structs.replace(formats, tool_calls=_chosen(tool_calls, CALL_FORMATS, "tool_call_parser"))
    if reasoning is not None:
        formats = msgspec.structs.replace(formats, reasoning=_chosen(reasoning, REASONING_FORMATS, "reasoning_parser"))
    special = {}
    for marker in marker_tokens(formats):
        token = tokenizer.token_to_id(marker)
        if token is not None and tokenizer.is_special(token):
            special[marker] = token
    usual, on, off = (
        _prompt(tokenizer, template, kwargs)
        for kwargs in (
            {},
            {"enable_thinking": True, "thinking": True},
            {"enable_thinking": False, "thinking": False},
        )
    )
    return ChatFacts(
        template=template is not None,
        tool_calls=formats.tool_calls,
        reasoning=formats.reasoning,
        special_markers=special,
        fill_in_middle=next((form for form in FILL_IN_MIDDLE if _knows(tokenizer, form)), ()),
        thinking=(opens_reasoning(formats, usual), opens_reasoning(formats, on), opens_reasoning(formats, off)),
        thought=(_closed(formats, usual), _closed(formats, on), _closed(formats, off)),
    )


def _knows(tokenizer: Tokenizer, tokens: Sequence[str]) -> bool:
    return all(tokenizer.token_to_id(token) is not None for token in tokens)


def _chosen(name: str, known: Mapping[str, object], param: str) -> str | None:
    if name == NONE:
        return None
    if name not in known:
        flag = "--" + param.replace("_", "-")
        raise ConfigError(f"{flag} {name[:32]}: not one of {', '.join(sorted(known))}, {NONE}", param=param)
    return name


def _prompt(tokenizer: Tokenizer, template: str | None, kwargs: dict[str, bool]) -> str:
    """The prompt of a short chat; empty if the template refuses it."""
    if template is None:
        return ""
    try:
        return render_chat(
            template,
            [{"role": "user", "content": "Hello"}],
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            kwargs=kwargs,
        )
    except EngineError:
        return ""


def _closed(formats: Formats, prompt: str) -> bool:
    end = reasoning_end(formats)
    return end is not None and prompt.rstrip().endswith(end)
