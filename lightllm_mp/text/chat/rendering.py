"""Renders chat messages to a prompt with the chat template of the model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError

from lightllm_mp.errors import InvalidRequest, ModelError
from lightllm_mp.text.chat.harmony_messages import described, harmony_messages, is_harmony, known_effort
from lightllm_mp.text.chat.template_budget import MAX_CHARS, Budget
from lightllm_mp.text.chat.template_sandbox import ChatEnvironment
from lightllm_mp.text.chat.tools_as_text import with_tools

MAX_TEMPLATE_CHARS = 1 << 20
MAX_MESSAGES = 10_000
_MAX_KWARGS = 32
_RESERVED = frozenset(("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"))
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_TEXT_PARTS = ("text", "input_text")
MEDIA_PARTS = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("video", "video_url"), "video"),
}
"""Types of parts -> the type that templates expect."""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final: bool = False,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """The prompt for `messages`. Encode it with add_special_tokens=False: the template writes the special tokens.

    Content is a string or a list of parts ({"type": "text", "text": ...}, {"type": "image_url", ...}). A template that
    does not iterate over parts gets one string: each text, and of `tags` that of "image" or "video" for each one, on a
    line. A template that does not know the role "developer" gets "system"; one that does not know tools gets text; one
    of gpt-oss's kind gets messages in its form (harmony_messages.py).
    `continue_final`: the prompt ends with the last message's text, so that the answer goes on with it. `kwargs` are the
    client's template arguments. ModelError if the template does not compile. InvalidRequest if the
    template refuses the messages or exceeds the limits of a rendering (about a second, 8 Mi characters).
    """
    compiled = compile_template(template)
    if not compiled.knows_tools:
        messages, tools = with_tools(messages, tools or ()), None
    prepared, kwargs = _messages(messages, compiled, tags or {}), _kwargs(kwargs or {})
    if compiled.is_harmony:
        prepared, tools, kwargs = harmony_messages(prepared), described(tools or ()), known_effort(kwargs)
    variables = {
        **kwargs,
        "add_generation_prompt": add_generation_prompt and not continue_final,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "tools": [dict(tool) for tool in tools] if tools else None,
        "documents": None,
    }
    try:
        prompt = compiled.render(prepared, variables)
    except InvalidRequest:
        as_text = [_as_text(message) for message in prepared]
        if as_text == prepared:
            raise
        prompt = compiled.render(as_text, variables)  # some templates want the arguments of calls as text
    return _until_end_of(prepared[-1], prompt) if continue_final else prompt


@lru_cache(maxsize=8)
def compile_template(source: str) -> ChatTemplate:
    """The compiled template, cached. ModelError if `source` is too long or not a template."""
    return ChatTemplate(source)


class ChatTemplate:
    """A compiled template. `takes_parts`: it iterates over the parts of a message's content. `knows_developer`: it has
    that role. `knows_tools`: it shows tools, or their calls. `is_harmony`: it is gpt-oss's."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelError(f"the chat template is longer than {MAX_TEMPLATE_CHARS} characters")
        self._environment = ChatEnvironment()
        self._lock = Lock()
        try:
            self._template = self._environment.from_string(source)
            self.knows_developer, self.knows_tools = "developer" in source, "tool" in source
            self.is_harmony = is_harmony(source)
            self.takes_parts = _takes_parts(self._environment.parse(source))
        except TemplateError as error:
            raise ModelError(f"the chat template does not compile: {str(error)[:200]}") from error
        except (RecursionError, SyntaxError, MemoryError) as error:
            raise ModelError("the chat template is nested too deeply") from error

    def render(self, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        """InvalidRequest for every error: the template sees the messages, so either may be the cause."""
        with self._lock:
            self._environment.budget = Budget()
            try:
                return self._template.render(variables, messages=messages)
            except SecurityError as error:
                raise InvalidRequest(f"the chat template was stopped: {str(error)[:200]}", param="messages") from error
            except MemoryError:
                raise  # not the client's fault
            except Exception as error:
                reason = _ADDRESS.sub("", str(error)[:200])
                message = f"the chat template refuses these messages: {reason}"
                raise InvalidRequest(message, param="messages") from error


def _messages(
    messages: Sequence[Mapping[str, Any]], template: ChatTemplate, tags: Mapping[str, str]
) -> list[dict[str, Any]]:
    if not messages or len(messages) > MAX_MESSAGES:
        raise InvalidRequest(f"a chat must have from 1 to {MAX_MESSAGES} messages", param="messages")
    prepared = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequest("each message must be an object with a role", param="messages")
        content = _content(message.get("content"), takes_parts=template.takes_parts, tags=tags)
        if content is None and not message.get("tool_calls"):
            content = ""
        role = {"role": "system"} if message["role"] == "developer" and not template.knows_developer else {}
        prepared.append({**message, **role, "content": content, **_tool_calls(message)})
    if sum(_length(message["content"]) for message in prepared) > MAX_CHARS:
        raise InvalidRequest(f"the messages have more than {MAX_CHARS} characters", param="messages")
    return prepared


def _content(content: Any, *, takes_parts: bool, tags: Mapping[str, str]) -> str | list[dict[str, Any]] | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)) or not all(isinstance(part, Mapping) for part in content):
        raise InvalidRequest("the content of a message must be a string or a list of parts", param="messages")
    if takes_parts:
        return [_normal_part(part) for part in content]
    return "\n".join(_part_text(part, tags) for part in content)


def _normal_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part as templates expect it: type "text" with its text, or type "image" or "video" without its data."""
    kind = part.get("type")
    if kind in MEDIA_PARTS:
        return {"type": MEDIA_PARTS[kind]}
    return {"type": "text", "text": _part_text(part, {})}


def _part_text(part: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    kind = part.get("type")
    if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return part["text"]
    if kind in MEDIA_PARTS:
        if (tag := tags.get(MEDIA_PARTS[kind])) is None:
            raise InvalidRequest(f"this model takes no {MEDIA_PARTS[kind]}s in a chat", param="messages")
        return tag
    raise InvalidRequest(f"a content part of type {str(kind)[:32]!r} is not supported", param="messages")


def _until_end_of(message: Mapping[str, Any], prompt: str) -> str:
    """The prompt up to the end of this message's text; templates may strip white space around it."""
    content = message.get("content")
    text = content if isinstance(content, str) else (content or [{}])[-1].get("text", "")
    at = prompt.rfind(text.strip()) if text.strip() else -1
    if at < 0:
        raise InvalidRequest("the last message has no text that could be continued", param="continue_final_message")
    whole = text.lstrip()
    return prompt[: at + len(whole if prompt.startswith(whole, at) else text.strip())]


def _length(content: str | list[dict[str, Any]] | None) -> int:
    if isinstance(content, list):
        return sum(len(part.get("text", "")) for part in content)
    return len(content or "")


def _tool_calls(message: Mapping[str, Any]) -> dict[str, Any]:
    """Tool calls with their arguments as an object: clients send JSON text, but templates expect a mapping."""
    calls = message.get("tool_calls")
    if not isinstance(calls, (list, tuple)):
        return {}
    return {"tool_calls": [_tool_call(call) for call in calls]}


def _tool_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its tool calls as JSON text."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    return {**message, "tool_calls": [_call_as_text(call) for call in calls]}


def _call_as_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function.get("arguments"), ensure_ascii=False)}}


def _kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The client's template arguments. InvalidRequest for too many, and for names that are reserved."""
    if len(kwargs) > _MAX_KWARGS:
        raise InvalidRequest(f"at most {_MAX_KWARGS} template arguments are allowed", param="chat_template_kwargs")
    for name in kwargs:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or _is_taken(name):
            message = f"template argument {str(name)[:64]!r} is not allowed"
            raise InvalidRequest(message, param="chat_template_kwargs")
    return dict(kwargs)


def _is_taken(name: str) -> bool:
    return name in _RESERVED or name in ChatEnvironment.OWN_GLOBALS


def _takes_parts(template: nodes.Template) -> bool:
    """True if the template has a loop over the content of a message, directly or through a variable."""
    names = {
        assign.target.name
        for assign in template.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, frozenset())
    }
    return any(_is_content(loop.iter, frozenset(names)) for loop in template.find_all(nodes.For))


def _is_content(node: nodes.Node | None, names: frozenset[str]) -> bool:
    while isinstance(node, nodes.Filter):
        node = node.node
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in names
