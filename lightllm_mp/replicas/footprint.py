"""Estimates from a request's body, without a tokenizer, what the request leaves in the caches of its replica."""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import pairwise

import msgspec
from msgspec import Raw, Struct

BLOCK = 256
"""Bytes of the prompt's text per digest."""
MOST_BLOCKS = 512
"""The most digests of a prompt; the rest of a longer prompt has none."""
BYTES_PER_TOKEN = 4
MOST_IMAGES = 64
IMAGE_TOKENS = 576
"""The work of an image that is not cached, in prompt tokens."""
ANSWER = 256
"""Expected tokens of an answer if the request sets no lower limit."""
_FILE = re.compile(rb'"(?:data:[^",]{0,64},)?([A-Za-z0-9+/\\]{512,}={0,2})"')
"""A file in base64: an image. JSON may escape its slashes."""
_ADDRESS = re.compile(rb'"url" ?: ?"(https?:[^"]{1,4096})"')


class Footprint(Struct, frozen=True, array_like=True):
    """`blocks`, `images`: 64-bit digests. Prompts with the same prefix have the same first block digests."""

    blocks: tuple[int, ...] = ()
    images: tuple[int, ...] = ()
    prompt_tokens: int = 0
    """An estimate that includes images."""
    answer_tokens: int = 0
    """An estimate."""


class _Parameters(Struct):
    max_new_tokens: int | None = None


class _Asked(Struct):
    """The fields of all APIs that form the prompt, in the order in which a model sees them, and the token limits."""

    tools: Raw = Raw(b"")
    system: Raw = Raw(b"")
    instructions: Raw = Raw(b"")
    messages: Raw = Raw(b"")
    prompt: Raw = Raw(b"")
    inputs: Raw = Raw(b"")
    input: Raw = Raw(b"")
    multimodal_params: Raw = Raw(b"")
    chat_template_kwargs: Raw = Raw(b"")
    cache_salt: Raw = Raw(b"")
    parameters: Raw = Raw(b"")
    max_tokens: Raw = Raw(b"")
    max_completion_tokens: Raw = Raw(b"")
    max_output_tokens: Raw = Raw(b"")


_asked = msgspec.json.Decoder(_Asked)
_parameters = msgspec.json.Decoder(_Parameters)


def footprint(body: bytes, tenant: bytes = b"") -> Footprint:
    """The footprint of a request's body in any of the APIs; empty if the body is not of these APIs. Tenants share no
    cache, so their digests differ."""
    try:
        asked = _asked.decode(body)
    except msgspec.DecodeError:
        return Footprint()
    files = list[bytes]()

    def name(found: re.Match[bytes]) -> bytes:
        files.append(digest := _digest(found[1].replace(b"\\", b"")))
        return digest.hex().encode()

    said = (asked.tools, asked.system, asked.instructions, asked.messages, asked.prompt, asked.inputs, asked.input)
    text = _FILE.sub(name, b"".join(bytes(part) for part in said if part))
    _FILE.sub(name, bytes(asked.multimodal_params))
    files += (_digest(found[1]) for found in _ADDRESS.finditer(text + bytes(asked.multimodal_params)))
    images = tuple(dict.fromkeys(_number(digest) for digest in files[:MOST_IMAGES]))
    seed = _digest(tenant + bytes(asked.cache_salt) + bytes(asked.chat_template_kwargs))
    return Footprint(
        _chain(text, seed), images, len(text) // BYTES_PER_TOKEN + IMAGE_TOKENS * len(images), _answer_tokens(asked)
    )


def _chain(text: bytes, seed: bytes) -> tuple[int, ...]:
    """For each whole block the digest of all text up to its end."""
    found, last = [], seed
    for start, end in pairwise(range(0, min(len(text), MOST_BLOCKS * BLOCK) + 1, BLOCK)):
        last = _digest(last + text[start:end])
        found.append(_number(last))
    return tuple(found)


def _answer_tokens(asked: _Asked) -> int:
    limits = [asked.max_tokens, asked.max_completion_tokens, asked.max_output_tokens]
    try:
        found = [int(bytes(limit)) for limit in limits if limit and bytes(limit) != b"null"]
        if asked.parameters and (most := _parameters.decode(asked.parameters).max_new_tokens) is not None:
            found.append(most)
    except (ValueError, msgspec.DecodeError):
        return ANSWER
    return max(1, min([*found, ANSWER]))


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little")
