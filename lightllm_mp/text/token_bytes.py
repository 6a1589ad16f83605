"""The bytes of each token, derived from a tokenizer's decoder.

If every token stands for fixed bytes, the text is the concatenation of these bytes, decoded as UTF-8. That holds for
byte-level BPE and SentencePiece models, and makes incremental detokenizing exact and linear. Other decoders have no
`PieceRule`; the library decodes their tokens.

One difference to the library is deliberate. If one byte in a run of byte tokens is wrong, the library replaces the
whole run, so no character of a run could be shown before its end. Here only the wrong byte is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tokenizers import decoders


@dataclass(frozen=True, slots=True)
class PieceRule:
    """`piece` maps a token to its bytes; `first_piece` does so for the first token of a text.

    Up to `strip` leading spaces of the text are dropped.
    """

    piece: Callable[[str], bytes]
    first_piece: Callable[[str], bytes]
    strip: int = 0


def piece_rule(decoder: decoders.Decoder | None) -> PieceRule | None:
    """The rule of `decoder`; None if its tokens do not stand for fixed bytes."""
    if decoder is None:
        return None
    steps = _steps(json.loads(decoder.__getstate__()))
    names = [step["type"] for step in steps]
    if names == ["ByteLevel"]:
        return PieceRule(byte_level_piece, byte_level_piece)
    if names in (["Metaspace"], ["ByteFallback", "Metaspace"]):
        return _metaspace_rule(steps[-1], byte_fallback=len(steps) == 2)
    if names[:3] == ["Replace", "ByteFallback", "Fuse"] and names[3:] in ([], ["Strip"]):
        return _sentencepiece_rule(steps[0], steps[3:])
    return None


def _steps(decoder: dict) -> list[dict]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _steps(part)]


def _sentencepiece_rule(replace: dict, strip: list[dict]) -> PieceRule | None:
    old, new = replace["pattern"].get("String"), replace["content"]
    if old is None or any(step["content"] != " " or step["stop"] for step in strip):
        return None

    def piece(token: str) -> bytes:
        return _fallback_byte(token) or token.replace(old, new).encode()

    return PieceRule(piece, piece, sum(step["start"] for step in strip))


def _metaspace_rule(step: dict, *, byte_fallback: bool) -> PieceRule:
    mark = step["replacement"]
    first_space = " " if step.get("prepend_scheme") == "never" else ""

    def piece(token: str, space: str = " ") -> bytes:
        raw = _fallback_byte(token) if byte_fallback else None
        return raw or token.replace(mark, space).encode()

    return PieceRule(piece, lambda token: piece(token, first_space))


def _fallback_byte(token: str) -> bytes | None:
    """The byte of a token such as <0x41>; None for other tokens."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return bytes((int(token[3:5], 16),))
    except ValueError:
        return None


def byte_level_piece(token: str) -> bytes:
    """The bytes of a token of a byte-level BPE. An added token outside that alphabet stands for its own text."""
    alphabet = byte_level_alphabet()
    try:
        return bytes([alphabet[char] for char in token])
    except KeyError:
        return token.encode()


@cache
def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable Latin-1 stands for itself, other bytes are U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
