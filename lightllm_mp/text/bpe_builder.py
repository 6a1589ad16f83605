"""Builds a `tokenizers` BPE from raw tables: byte-level (tokens and merges) or SentencePiece (tokens and scores)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import IntEnum
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lightllm_mp.errors import ModelError

from . import pretokenizers

SPACE = "▁"

# Where the tokenizer inserts a space: before each stretch of text between added tokens, only the first, or none.
SpacePrefix = Literal["all", "first", "none"]


class TokenType(IntEnum):
    """Kinds of token; SentencePiece and GGUF have the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def byte_level_bpe(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], pre: str, *, whole_words: bool = False
) -> Tokenizer:
    """A byte-level BPE. `pre` is GGUF's name of the pre-tokenizer.

    `whole_words`: a word that is itself a token becomes that token, without merges.
    """
    backend = Tokenizer(_bpe(tokens, merges, ignore_merges=whole_words or pretokenizers.ignores_merges(pre)))
    backend.pre_tokenizer = pretokenizers.pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    normalizer = pretokenizers.normalizer(pre)
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


def sentencepiece_bpe(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    space_prefix: SpacePrefix,
    before: Sequence[normalizers.Normalizer] = (),
) -> Tokenizer:
    """A SentencePiece BPE model. Its merges are derived from the scores. `before`: normalizers that run first."""
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.UNKNOWN), None)
    has_bytes = "<0x00>" in tokens
    merges = merges_from_scores(tokens, scores, types)
    backend = Tokenizer(_bpe(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes))
    finish_sentencepiece(backend, space_prefix=space_prefix, before=before)
    return backend


def finish_sentencepiece(
    backend: Tokenizer, *, space_prefix: SpacePrefix, before: Sequence[normalizers.Normalizer] = ()
) -> None:
    """Adds SentencePiece's treatment of spaces to `backend`, for encoding and decoding."""
    if space_prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
        steps = [*before]
    else:
        prefix = [normalizers.Prepend(SPACE)] if space_prefix == "all" else []
        steps = [*before, *prefix, normalizers.Replace(" ", SPACE)]
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    strip = [] if space_prefix == "none" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def merges_from_scores(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """Merges in the order in which SentencePiece applies them: by score, descending."""
    mergeable = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.NORMAL, TokenType.USER_DEFINED)
    }
    found = []
    for token, i in mergeable.items():
        for cut in range(1, len(token)):
            left, right = mergeable.get(token[:cut]), mergeable.get(token[cut:])
            if left is not None and right is not None and types[i] == TokenType.NORMAL:
                found.append((-float(scores[i]), i, left, right))
    found.sort()
    return [(tokens[left], tokens[right]) for _, _, left, right in found]


def add_typed_tokens(
    backend: Tokenizer, tokens: Sequence[str], types: Sequence[int], *, but_space: Collection[str] | None = None
) -> None:
    """Registers control tokens (special) and user-defined tokens, which a text may contain verbatim.

    `but_space`: all tokens except these include the white space after them. None: no token does.
    """
    special, plain = [], []
    for token, kind in zip(tokens, types, strict=True):
        strip = but_space is not None and token not in but_space
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN) and token:
            special.append(AddedToken(token, special=True, normalized=False, rstrip=strip))
        elif kind == TokenType.USER_DEFINED and token:
            plain.append(AddedToken(token, special=False, normalized=False, rstrip=strip))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def set_bos_eos(backend: Tokenizer, bos_id: int | None, eos_id: int | None) -> None:
    """Makes encode(add_special_tokens=True) put exactly these ids around the text. None: no id."""
    marks = [(name, id_) for name, id_ in (("BOS", bos_id), ("EOS", eos_id)) if id_ is not None]
    if not marks:
        backend.post_processor = processors.Sequence([])
        return
    names = dict(marks)
    single = [*(["BOS:0"] if "BOS" in names else []), "$A:0", *(["EOS:0"] if "EOS" in names else [])]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=marks)


def _bpe(tokens: Sequence[str], merges: Sequence[tuple[str, str]], **options: object) -> models.BPE:
    vocab = {token: i for i, token in enumerate(tokens)}
    try:
        return models.BPE(vocab=vocab, merges=list(merges), **options)
    except Exception as error:
        raise ModelError(f"the vocabulary and the merges do not match: {str(error)[:200]}") from error


def check_charsmap(charsmap: bytes) -> None:
    """ValueError if the map of a `Precompiled` normalizer is shorter than its header says. The library allocates the
    length in the header, and aborts the process if it cannot."""
    if int.from_bytes(charsmap[:4], "little") > len(charsmap) - 4:
        raise ValueError("its character map is truncated")
