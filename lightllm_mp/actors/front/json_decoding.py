"""Decodes a client's JSON: errors name the field, and never repeat what the client sent."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from msgspec import Raw

from lightllm_mp.errors import InvalidRequest

T = TypeVar("T")

_GIVEN = re.compile(r"^(Invalid (?:enum )?value) .*", re.DOTALL)
_MISSING = re.compile(r"missing required field `([^`]*)`")
_PATH = re.compile(r"^(?P<what>.*) - at `(?:key` in `)?\$\.?(?P<path>[^`]*)`$", re.DOTALL)


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
    if path.startswith("."):  # an item of a list
        prefix, path = prefix + path, ""
    where = ".".join(part for part in (prefix, path) if part) or "the body"
    what = _GIVEN.sub(r"\1", what)
    if not (prefix or path) and (missing := _MISSING.search(what)):
        path = missing[1]
    return InvalidRequest(f"{where}: {what}", param=(path or prefix).split(".")[0] or None)
