"""A SentencePiece model file (tokenizer.model), converted into a `tokenizers` pipeline.

The file is a small protocol buffer; the few fields that matter are read here, so no library is needed for it. Field
numbers are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers

from lightllm_mp.errors import ModelError
from lightllm_mp.text.bpe_builder import (
    SpacePrefix,
    TokenType,
    add_typed_tokens,
    finish_sentencepiece,
    sentencepiece_bpe,
    set_bos_eos,
)

_MAX_BYTES = 64 << 20
_UNIGRAM, _BPE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def from_sentencepiece(path: Path, config: dict[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    """The tokenizer of `path`, and its bos_token and eos_token; `config` is the content of tokenizer_config.json."""
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{path.name} is larger than {_MAX_BYTES >> 20} MiB")
    try:
        return _build(path.read_bytes(), config)
    except (ValueError, struct.error, IndexError) as error:
        raise ModelError(f"{path.name} is not a SentencePiece model: {str(error)[:200]}") from error


def _build(data: bytes, config: dict[str, Any]) -> tuple[Tokenizer, dict[str, str]]:
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(dict(_fields(value)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise ValueError("it has no pieces")
    tokens = [piece.get(1, b"").decode("utf-8", "replace") for piece in pieces]
    scores = [struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0 for piece in pieces]
    types = [piece.get(3, TokenType.NORMAL) for piece in pieces]
    backend = _backend(trainer, normalizer, tokens, scores, types, legacy=config.get("legacy") is not False)
    add_typed_tokens(backend, tokens, types)
    bos, eos = _control_id(trainer, 41, 1, types), _control_id(trainer, 42, 2, types)
    set_bos_eos(
        backend,
        bos if config.get("add_bos_token", True) else None,
        eos if config.get("add_eos_token", False) else None,
    )
    return backend, {name: tokens[id_] for name, id_ in (("bos_token", bos), ("eos_token", eos)) if id_ is not None}


def _backend(
    trainer: dict[int, Any],
    normalizer: dict[int, Any],
    tokens: list[str],
    scores: list[float],
    types: list[int],
    *,
    legacy: bool,
) -> Tokenizer:
    kind = trainer.get(3, _UNIGRAM)
    before = _normalizers(normalizer)
    prefix: SpacePrefix = ("all" if legacy else "first") if normalizer.get(3, 1) else "none"
    if kind == _BPE:
        return sentencepiece_bpe(tokens, scores, types, space_prefix=prefix, before=before)
    if kind != _UNIGRAM:
        raise ModelError("only the unigram and BPE kinds of SentencePiece models are supported")
    unknown = next((i for i, kind in enumerate(types) if kind == TokenType.UNKNOWN), None)
    pairs = list(zip(tokens, scores, strict=True))
    backend = Tokenizer(models.Unigram(pairs, unknown, byte_fallback=bool(trainer.get(35, 0))))
    finish_sentencepiece(backend, space_prefix=prefix, before=before)
    return backend


def _normalizers(spec: dict[int, Any]) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if spec.get(2):
        steps.append(normalizers.Precompiled(spec[2]))
    if spec.get(4, 1):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


def _control_id(trainer: dict[int, Any], number: int, default: int, types: list[int]) -> int | None:
    id_ = trainer.get(number, default)
    return id_ if id_ < len(types) and types[id_] == TokenType.CONTROL else None


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and raw values of a protocol buffer message: int for varints, bytes for the others."""
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
            raise ValueError("it is cut short")
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
