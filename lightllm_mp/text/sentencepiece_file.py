"""Converts a SentencePiece model file (tokenizer.model) into a `tokenizers` pipeline.

The file is a protocol buffer. This module parses the few fields that matter, so it needs no library. Field numbers are
those of sentencepiece_model.proto.

Control symbols become special tokens, which split the text: the text between two of them is encoded separately, as in
the slow tokenizers of transformers. User-defined symbols are part of the text, as in SentencePiece: each occurrence
becomes one token, and no space is inserted after it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from lightllm_mp.errors import ModelError
from lightllm_mp.machine import format_bytes
from lightllm_mp.text.bpe_builder import (
    SpacePrefix,
    TokenType,
    check_charsmap,
    finish_sentencepiece,
    sentencepiece_bpe,
    set_bos_eos,
)

_MAX_BYTES = 64 << 20
_MAX_PIECE = 1024
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_UNIGRAM, _BPE = 1, 2
# The score of bytes and unused tokens: keeps them out of the best path, even if a text spells them. In a text with
# characters that are not in the vocabulary, the other paths may cost as much.
_NEVER = -1e6
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def from_sentencepiece(
    path: Path, config: Mapping[str, Any], names: Mapping[int, str] | None = None
) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of `path`, and its bos_token and eos_token. `config` is the content of tokenizer_config.json.

    `names` are new names for tokens of the file: InternLM2 reserves unused tokens and names them later.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{path.name} is larger than {format_bytes(_MAX_BYTES)}")
    try:
        return _build(path.read_bytes(), config, names or {})
    except BaseException as error:
        # A panic of the library is not an Exception.
        if isinstance(error, ModelError) or not (isinstance(error, Exception) or _is_panic(error)):
            raise
        reason = str(error)[:200] if type(error) is ValueError else "it is damaged"
        raise ModelError(f"{path.name} is not a SentencePiece model: {reason}") from error


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def _build(data: bytes, config: Mapping[str, Any], names: Mapping[int, str]) -> tuple[Tokenizer, dict[str, str]]:
    parts: dict[int, dict[int, Any]] = {}
    vocabulary = Vocabulary([], [], [])
    for number, value in _fields(data):
        if number == _PIECE:
            vocabulary.add(dict(_fields(value)))
        elif number in (_TRAINER, _NORMALIZER):
            parts[number] = dict(_fields(value))
    if not vocabulary.tokens or len(parts) < 2:
        raise ValueError("it is truncated" if vocabulary.tokens else "it has no pieces")
    if TokenType.UNKNOWN not in vocabulary.types:  # else a text with an unknown character has no ids
        raise ValueError("it has no unknown piece")
    vocabulary.rename(names)
    tokens, types = vocabulary.tokens, vocabulary.types
    if len(set(tokens)) < len(tokens):
        raise ValueError("it has a duplicate piece")
    backend = _backend(parts[_TRAINER], parts[_NORMALIZER], vocabulary, legacy=config.get("legacy") is not False)
    _add_control_tokens(backend, tokens, types)
    bos, eos = _control_id(parts[_TRAINER], 41, 1, types), _control_id(parts[_TRAINER], 42, 2, types)
    set_bos_eos(
        backend,
        bos if config.get("add_bos_token", True) else None,
        eos if config.get("add_eos_token", False) else None,
    )
    return backend, {name: tokens[id_] for name, id_ in (("bos_token", bos), ("eos_token", eos)) if id_ is not None}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Pieces, scores and types (TokenType), by id."""

    tokens: list[str]
    scores: list[float]
    types: list[int]

    def add(self, piece: dict[int, Any]) -> None:
        token = bytes(piece[1]).decode()
        if not token or len(token) > _MAX_PIECE:
            raise ValueError("a piece is empty or too long")
        self.tokens.append(token)
        self.scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
        self.types.append(TokenType(piece.get(3, TokenType.NORMAL)))
        if not math.isfinite(self.scores[-1]):
            raise ValueError("the score of a piece is not a number")

    def rename(self, names: Mapping[int, str]) -> None:
        for id_, name in names.items():
            if 0 <= id_ < len(self.tokens) and self.tokens[id_] != name:
                self.tokens[id_], self.types[id_] = name, TokenType.UNUSED

    def of_type(self, kind: TokenType) -> list[str]:
        return [token for token, type_ in zip(self.tokens, self.types, strict=True) if type_ == kind]


def _backend(trainer: dict[int, Any], normalizer: dict[int, Any], vocabulary: Vocabulary, *, legacy: bool) -> Tokenizer:
    kind = trainer.get(3, _UNIGRAM)
    before = _normalizers(normalizer)
    prefix: SpacePrefix = ("all" if legacy else "first") if normalizer.get(3, 1) else "none"
    tokens, scores, types = vocabulary.tokens, vocabulary.scores, vocabulary.types
    if kind == _BPE:
        backend = sentencepiece_bpe(tokens, scores, types, space_prefix=prefix, before=before)
        _take_whole(backend, vocabulary.of_type(TokenType.USER_DEFINED))
        return backend
    if kind != _UNIGRAM:
        raise ModelError("only unigram and BPE SentencePiece models are supported")
    unknown = next((i for i, type_ in enumerate(types) if type_ == TokenType.UNKNOWN), None)
    pairs = list(zip(tokens, _unigram_scores(vocabulary), strict=True))
    backend = Tokenizer(models.Unigram(pairs, unknown, byte_fallback=bool(trainer.get(35, 0))))
    finish_sentencepiece(backend, space_prefix=prefix, before=before)
    return backend


def _unigram_scores(vocabulary: Vocabulary) -> list[float]:
    """Scores that give SentencePiece's best path. The rule for user-defined symbols is that of unigram_model.cc."""
    rows = list(zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True))
    # SentencePiece starts its search for the maximum at 0; log probabilities are never above it.
    best = max([0.0, *(score for _, score, type_ in rows if type_ == TokenType.NORMAL)])
    own = {TokenType.USER_DEFINED: lambda token: len(token.encode()) * best - 0.1}
    own |= dict.fromkeys((TokenType.BYTE, TokenType.UNUSED), lambda token: _NEVER)
    return [own[TokenType(type_)](token) if type_ in own else score for token, score, type_ in rows]


def _take_whole(backend: Tokenizer, symbols: list[str]) -> None:
    """Splits user-defined symbols from the normalized text. If several begin at one place, the longest wins."""
    if not symbols:
        return
    begins = "".join(sorted({re.escape(symbol[0]) for symbol in symbols}))
    longest_first = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
    # The look-ahead is for speed: there are many symbols, but few characters begin one.
    cut = pre_tokenizers.Split(Regex(f"(?=[{begins}])(?:{longest_first})"), behavior="isolated")
    before = backend.pre_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut] if before is None else [before, cut])
    # A word that is a token becomes that token, since no merge forms a user-defined symbol.
    model = cast(models.BPE, backend.model)
    model.ignore_merges = True
    backend.model = model


def _add_control_tokens(backend: Tokenizer, tokens: list[str], types: list[int]) -> None:
    marks = (TokenType.CONTROL, TokenType.UNKNOWN)
    names = [token for token, kind in zip(tokens, types, strict=True) if kind in marks]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def _normalizers(spec: dict[int, Any]) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if spec.get(2):
        check_charsmap(spec[2])
        steps.append(normalizers.Precompiled(spec[2]))
    if spec.get(4, 1):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


def _control_id(trainer: dict[int, Any], number: int, default: int, types: list[int]) -> int | None:
    id_ = trainer.get(number, default)
    return id_ if id_ < len(types) and types[id_] == TokenType.CONTROL else None


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and raw values of a protocol buffer message: int for varints, bytes for other types."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if size > len(data) - at:
            raise ValueError("it is truncated")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a varint has more than ten bytes")
