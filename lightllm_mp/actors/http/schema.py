"""Request bodies, with the bounds in the types: a body that decodes is valid, apart from the vocabulary's bounds.

The fields are those of LightLLM in 2024 and today. A field given as `null` has its default. Unknown fields are ignored,
as in LightLLM; unknown parameters are named in a warning header.
"""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.sampling_parameters import MAX_ID, Id, RequestParameters

MAX_INPUT_IDS = 1 << 22
PARAMETERS_BYTES = 128 << 10
"""Longest `parameters`: they are decoded while other clients wait."""

InputId = Annotated[int, Meta(ge=-200, le=MAX_ID)]
"""-200 is an image placeholder; the front checks the vocabulary's bounds."""


class Multimodal(Struct, frozen=True):
    images: Annotated[list[Raw], Meta(max_length=64)] | None = None
    audios: Annotated[list[Raw], Meta(max_length=64)] | None = None


class GenerateBody(Struct, frozen=True):
    """POST /generate, /generate_stream and /."""

    inputs: str | Annotated[list[InputId], Meta(min_length=1, max_length=MAX_INPUT_IDS)]
    parameters: Raw = Raw(b"{}")
    multimodal_params: Multimodal | None = None
    stream: bool | None = None
    """Read on / only."""


class TokensBody(Struct, frozen=True):
    """POST or GET /tokens."""

    text: str
    parameters: Raw = Raw(b"{}")
    multimodal_params: Multimodal | None = None


class ScoreBody(Struct, frozen=True):
    """POST /get_score, with exactly one of `chat` (the conversation as text) and `ids`."""

    chat: str | None = None
    ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_INPUT_IDS)] | None = None
    parameters: Raw = Raw(b"{}")
    multimodal_params: Multimodal | None = None


_generate = msgspec.json.Decoder(GenerateBody)
_score = msgspec.json.Decoder(ScoreBody)
_tokens = msgspec.json.Decoder(TokensBody)
_parameters = msgspec.json.Decoder(RequestParameters | None)
_keys = msgspec.json.Decoder(dict[str, Raw] | None)
_KNOWN = frozenset(RequestParameters.__struct_fields__)
_SPEAKABLE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_GIVEN = re.compile(r"^(Invalid (?:enum )?value) .*", re.DOTALL)
_PATH = re.compile(r"^(?P<what>.*) - at `(?:key` in `)?\$\.?(?P<path>[^`]*)`$", re.DOTALL)

T = TypeVar("T")


def generate_body(data: bytes) -> GenerateBody:
    return decode(_generate, data)


def tokens_body(data: bytes) -> TokensBody:
    return decode(_tokens, data)


def score_body(data: bytes) -> ScoreBody:
    body = decode(_score, data)
    if (body.chat is None) == (body.ids is None):
        raise InvalidRequest("one of chat (text) and ids (token ids) is needed", param="chat")
    return body


def parameters(raw: Raw) -> tuple[RequestParameters, tuple[str, ...]]:
    """The typed parameters, and the names (safe for a header, at most 16) of unknown parameters."""
    if memoryview(raw).nbytes > PARAMETERS_BYTES:
        raise InvalidRequest(f"parameters: longer than {PARAMETERS_BYTES} bytes", param="parameters")
    known = decode(_parameters, raw, "parameters") or RequestParameters()
    names = decode(_keys, raw, "parameters") or {}
    unknown = [name if _SPEAKABLE.fullmatch(name) else "?" for name in names if name not in _KNOWN]
    return known, tuple(unknown[:16])


def decode(decoder: msgspec.json.Decoder[T], data: bytes | Raw, prefix: str = "") -> T:
    """Decode. Raises InvalidRequest that says what is wrong without repeating the client's data."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), prefix) from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def _invalid(text: str, prefix: str) -> InvalidRequest:
    found = _PATH.match(text)
    what, path = (found["what"], found["path"]) if found else (text, "")
    path = re.sub(r"\[[^]]*\]", "", path) if found else path
    where = ".".join(part for part in (prefix, path) if part) or "the body"
    what = _GIVEN.sub(r"\1", what)
    return InvalidRequest(f"{where}: {what}", param=(path or prefix).split(".")[0] or None)
