"""Converts the parameters of the Python API to requests of the engine."""

from __future__ import annotations

import base64
import binascii
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from lightllm_mp.actors.front.chat.chat_ask import ChatAsk
from lightllm_mp.actors.front.chat.chat_fields import GivenChoice, ReasoningEffort, template_arguments, tool_choice
from lightllm_mp.actors.front.chat.functions import FunctionTool
from lightllm_mp.actors.front.chat.guides import GuideFields
from lightllm_mp.actors.front.chat.reply import ReplyForm
from lightllm_mp.actors.front.json_decoding import decode
from lightllm_mp.actors.front.validation import Prompt
from lightllm_mp.errors import ConfigError, InvalidRequest
from lightllm_mp.facts import Facts
from lightllm_mp.messages import Terms
from lightllm_mp.sampling_parameters import RequestParameters, terms
from lightllm_mp.vision.video.video_files import pack_frames

T = TypeVar("T", bound=Struct)
Prompts = str | Sequence[str | Sequence[int]]
"""A text, or several texts or lists of token ids."""
Chat = Sequence[Mapping[str, Any]]
"""Messages in OpenAI's form, such as {"role": "user", "content": "Hello"}. Content may be a list of parts: texts, and
images as {"type": "image", "image": BYTES}, or as image_url with a `data:` address. A video is {"type": "video",
"video": BYTES} or video_url, a list of frames {"type": "video", "video": [BYTES, ...], "fps": 2.0}."""


class ChatFields(GuideFields, frozen=True, kw_only=True):
    """The parameters of a chat beside those of `/generate`. They mean the same as in /v1/chat/completions."""

    tools: list[FunctionTool] | None = None
    tool_choice: GivenChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class ChatCall:
    """A chat as a request of the engine. Raises InvalidRequest, or ConfigError for an unknown parameter."""

    def __init__(self, messages: Chat, parameters: Mapping[str, Any], facts: Facts) -> None:
        plain, fields = _split(parameters, ChatFields)
        if fields.add_generation_prompt and fields.continue_final_message:
            message = "continue_final_message and add_generation_prompt exclude each other"
            raise InvalidRequest(message, param="continue_final_message")
        ask = ChatAsk(
            facts,
            tuple(tool.function for tool in fields.tools or ()),
            tool_choice(fields.tool_choice),
            fields.parallel_tool_calls is not False,
            template_arguments=template_arguments(fields.reasoning_effort, fields.chat_template_kwargs),
            add_generation_prompt=fields.add_generation_prompt is not False,
            continue_final=bool(fields.continue_final_message),
            template=fields.chat_template or "",
            logprobs=True,
        )
        self.images: list[bytes] = []
        shown = [{**message, **_content(message, self.images)} for message in messages]
        try:
            self.prompt = ask.prompt(shown)
        except UnicodeEncodeError:
            raise InvalidRequest("a message holds half a surrogate pair", param="messages") from None
        except TypeError as error:
            raise InvalidRequest(f"messages: {error}", param="messages") from None
        if plain.max_new_tokens is None:
            plain = msgspec.structs.replace(plain, max_new_tokens=ask.longest_answer)
        self.terms = ask.terms(_terms(plain, fields))
        if self.terms.n != 1:
            raise InvalidRequest("a chat has one answer; ask several times for more", param="n")
        self.form: ReplyForm = ask.reply


def completion_terms(parameters: Mapping[str, Any]) -> Terms:
    """The terms of a completion. Raises as ChatCall does."""
    return _terms(*_split(parameters, GuideFields))


def as_prompts(prompts: Prompts) -> list[Prompt]:
    return [as_prompt(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]


def as_prompt(prompt: str | Sequence[int]) -> Prompt:
    return prompt if isinstance(prompt, str) else array("i", prompt).tobytes()


def _split(parameters: Mapping[str, Any], more: type[T]) -> tuple[RequestParameters, T]:
    """The parameters of `/generate`, and those of `more`."""
    own = set(RequestParameters.__struct_fields__)
    if unknown := parameters.keys() - own - set(more.__struct_fields__):
        raise ConfigError(f"unknown parameters: {', '.join(sorted(unknown))}")
    given: list[dict[str, Any]] = [{}, {}]
    for name, value in parameters.items():
        given[name not in own][name] = value
    return _decoded(RequestParameters, given[0]), _decoded(more, given[1])


def _decoded(kind: type[T], fields: dict[str, Any]) -> T:
    """The fields as a `kind`, with the same checks as a client's JSON."""
    try:
        data = msgspec.json.encode(fields)
    except UnicodeEncodeError:
        raise InvalidRequest("a parameter holds half a surrogate pair") from None
    except TypeError as error:
        raise InvalidRequest(f"a parameter cannot be written as JSON: {error}") from None
    return decode(msgspec.json.Decoder(kind), data)


def _terms(plain: RequestParameters, fields: GuideFields) -> Terms:
    found, guide = terms(plain), fields.guide
    if guide is None:
        return found
    if found.guide is not None:
        raise InvalidRequest("an answer has one constraint")
    return msgspec.structs.replace(found, guide=guide)


def _content(message: Mapping[str, Any], images: list[bytes]) -> dict[str, Any]:
    """The content of a message of parts, in the form of chat templates. Appends its images to `images`."""
    parts = message.get("content")
    if not isinstance(parts, list | tuple):
        return {}
    shown = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "image_url", "input_image"):
            images.append(_image(part))
            part = {"type": "image"}
        elif kind in ("video", "video_url"):
            images.append(_video(part))
            part = {"type": "video"}
        elif kind not in ("text", "input_text"):
            raise InvalidRequest("messages: a part is text or an image or a video", param="messages")
        shown.append(part)
    return {"content": shown}


def _video(part: Mapping[str, Any]) -> bytes:
    frames = part.get("video")
    if not isinstance(frames, list | tuple):
        return _image(part, "video")
    if not all(isinstance(frame, bytes | bytearray | memoryview) for frame in frames):
        raise InvalidRequest("the frames of a video are a list of BYTES", param="messages")
    fps = part.get("fps")
    if not isinstance(fps, float | int | None):
        raise InvalidRequest("fps of a video is a number", param="messages")
    return pack_frames([bytes(frame) for frame in frames], fps)


def _image(part: Mapping[str, Any], kind: str = "image") -> bytes:
    """The file in a part of this kind."""
    if isinstance(data := part.get(kind), bytes | bytearray | memoryview):
        return bytes(data)
    url = part.get(kind + "_url")
    url = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(url, str) or not url.startswith("data:") or ";base64," not in url[:256]:
        message = f'{{"type": "{kind}"}} needs its "{kind}" as BYTES, or a data: address; the engine fetches none'
        raise InvalidRequest(message, param="messages")
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except binascii.Error:
        raise InvalidRequest("an image's data is not base64", param="messages") from None
