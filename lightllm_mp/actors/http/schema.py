"""Request bodies, with the bounds in the types: a body that decodes is valid, apart from the vocabulary's bounds.

The fields are those of LightLLM in 2024 and today. A field given as `null` has its default. Unknown fields are ignored,
as in LightLLM; unknown parameters are named in a warning header.
"""

from __future__ import annotations

import asyncio
import re
from array import array
from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from lightllm_mp.actors.front.json_decoding import decode as decode
from lightllm_mp.actors.front.validation import CHARS_PER_TOKEN
from lightllm_mp.errors import InvalidRequest, PromptTooLong
from lightllm_mp.sampling_parameters import (
    MAX_ALLOWED,
    MAX_BIASES,
    MAX_ID,
    MAX_STOP_BYTES,
    MAX_STOPS,
    Id,
    RequestParameters,
)

MAX_INPUT_IDS = 1 << 22
MAX_ITEMS = 64
"""Images or sounds of a request."""
ESCAPED = 6
"""Bytes that JSON needs at most for a byte of UTF-8, as in \\u0061."""
NUMBER = 40
"""Bytes of any number, with the comma and white space around it."""
PARAMETERS_BYTES = (
    MAX_STOPS * (ESCAPED * MAX_STOP_BYTES + NUMBER)
    + MAX_BIASES * (ESCAPED * len(str(MAX_ID)) + 2 * NUMBER)
    + MAX_ALLOWED * NUMBER
    + (32 << 10)  # all other fields
)
"""Longest `parameters`, about 290 KiB: they are decoded while other clients wait. Guides are refused anyway."""
MAX_BRACKETS = 1 << 21
"""Most opening brackets in a body: what nests is skipped slowly, about 8 ns a bracket."""
PIECE = 1 << 16
"""Bytes of token ids that are decoded while other clients wait."""

InputId = Annotated[int, Meta(ge=-200, le=MAX_ID)]
"""-200 is an image placeholder; the front checks the vocabulary's bounds."""


class Multimodal(Struct, frozen=True):
    """Lists of at most MAX_ITEMS, see `items`; `null` is an empty one."""

    images: Raw = Raw(b"null")
    videos: Raw = Raw(b"null")
    audios: Raw = Raw(b"null")


class GenerateBody(Struct, frozen=True):
    """POST /generate, /generate_stream and /."""

    inputs: Raw
    """A text or token ids, see `prompt`."""
    parameters: Raw = Raw(b"{}")
    multimodal_params: Multimodal | None = None
    stream: bool | None = None
    """Read on / only."""


class TokensBody(Struct, frozen=True):
    """POST or GET /tokens."""

    text: Raw
    """See `text`."""
    parameters: Raw = Raw(b"{}")
    multimodal_params: Multimodal | None = None


class ScoreBody(Struct, frozen=True):
    """POST /get_score, with exactly one of `chat` (the conversation as text) and `ids`; see `conversation`."""

    chat: Raw = Raw(b"null")
    ids: Raw = Raw(b"null")
    parameters: Raw = Raw(b"{}")
    multimodal_params: Multimodal | None = None


_generate = msgspec.json.Decoder(GenerateBody)
_score = msgspec.json.Decoder(ScoreBody)
_tokens = msgspec.json.Decoder(TokensBody)
_text = msgspec.json.Decoder(str)
_input_ids = msgspec.json.Decoder(list[InputId])
_ids = msgspec.json.Decoder(list[Id])
_parameters = msgspec.json.Decoder(RequestParameters | None)
_keys = msgspec.json.Decoder(dict[str, Raw] | None)
_KNOWN = frozenset(RequestParameters.__struct_fields__)
_SPEAKABLE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def generate_body(data: bytes) -> GenerateBody:
    return decode(_generate, data)


def tokens_body(data: bytes) -> TokensBody:
    return decode(_tokens, data)


def score_body(data: bytes) -> ScoreBody:
    body = decode(_score, data)
    if _is_null(body.chat) == _is_null(body.ids):
        raise InvalidRequest("one of chat (text) and ids (token ids) is needed", param="chat")
    return body


async def check_nesting(data: bytes) -> None:
    """Raises InvalidRequest if decoding the body would take long: it has more than MAX_BRACKETS brackets."""
    found = 0
    for at in range(0, len(data), 1 << 20):
        found += data.count(b"[", at, at + (1 << 20)) + data.count(b"{", at, at + (1 << 20))
        if found > MAX_BRACKETS:
            raise InvalidRequest(f"the body has more than {MAX_BRACKETS} brackets")
        if at:
            await asyncio.sleep(0)


async def prompt(raw: Raw, max_input: int, name: str = "inputs") -> str | bytes:
    """The text, or the column (int32) of ids, of a field. `max_input`: the longest prompt in tokens; 0: any."""
    if _first(raw) == b"[":
        return await _column(raw, name, _input_ids, max_input)
    return text(raw, name, max_input)


async def ids(raw: Raw, name: str, max_input: int) -> bytes:
    """The column (int32) of a list of token ids. Raises like `prompt`."""
    return await _column(raw, name, _ids, max_input)


async def conversation(body: ScoreBody, max_input: int) -> str | bytes:
    """The text or the column of ids of a conversation. Raises like `prompt`."""
    if _is_null(body.ids):
        return text(body.chat, "chat", max_input)
    return await _column(body.ids, "ids", _ids, max_input)


def text(raw: Raw, name: str, max_input: int) -> str:
    """Raises InvalidRequest, or PromptTooLong, without decoding what is much too long."""
    data, most = memoryview(raw), CHARS_PER_TOKEN * max_input
    if max_input and data.nbytes > 4 * most + 2:
        per_character = 2 * ESCAPED if b"\\" in bytes(data) else 4
        if data.nbytes > per_character * most + 2:
            raise _too_long(name, max_input)
    found = decode(_text, raw, name)
    if max_input and len(found) > most:
        raise _too_long(name, max_input)
    return found


async def _column(raw: Raw, name: str, decoder: msgspec.json.Decoder[Any], max_input: int) -> bytes:
    """The int32 column of a list of ids. It is decoded in pieces, and other clients are served between them."""
    ids, start, most = array("i"), 1, max_input or MAX_INPUT_IDS
    if _first(raw) != b"[":
        decode(decoder, raw, name)  # raises
    if memoryview(raw).nbytes > PIECE:
        await asyncio.sleep(0)
    data = bytes(raw)
    while True:
        comma = data.find(b",", start + PIECE)
        piece = data[start:comma] + b"]" if comma >= 0 else data[start:]
        ids.extend(decode(decoder, b"[" + piece, name))
        if comma < 0:
            break
        if len(ids) > most:
            raise _too_long(name, most)
        start = comma + 1
        await asyncio.sleep(0)
    if not ids:
        raise InvalidRequest(f"{name}: Expected `array` of length >= 1", param=name)
    return ids.tobytes()


@cache
def _items(most: int) -> msgspec.json.Decoder[Any]:
    """Decodes a list, or null; it stops at the first item too many."""
    fields = [(f"item{number}", Raw | UnsetType, UNSET) for number in range(most)]
    kind = msgspec.defstruct("Items", fields, array_like=True, forbid_unknown_fields=True)
    return msgspec.json.Decoder(kind | None)


def items(raw: Raw, name: str, most: int = MAX_ITEMS) -> list[Raw]:
    """At most `most` items, none for null. Raises InvalidRequest."""
    found: Any = decode(_items(most), raw, name)
    if found is None:
        return []
    return [item for item in msgspec.structs.astuple(found) if item is not UNSET]


def _first(raw: Raw) -> bytes:
    return bytes(memoryview(raw)[:1])


def _is_null(raw: Raw) -> bool:
    return _first(raw) == b"n"


def _too_long(name: str, max_input: int) -> PromptTooLong:
    return PromptTooLong(f"the prompt is longer than the longest possible one, {max_input} tokens", param=name)


def parameters(raw: Raw) -> tuple[RequestParameters, tuple[str, ...]]:
    """The typed parameters, and the names (safe for a header, at most 16) of unknown parameters."""
    if memoryview(raw).nbytes > PARAMETERS_BYTES:
        raise InvalidRequest(f"parameters: longer than {PARAMETERS_BYTES} bytes", param="parameters")
    known = decode(_parameters, raw, "parameters") or RequestParameters()
    names = decode(_keys, raw, "parameters") or {}
    unknown = [name if _SPEAKABLE.fullmatch(name) else "?" for name in names if name not in _KNOWN]
    return known, tuple(unknown[:16])
