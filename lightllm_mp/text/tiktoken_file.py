"""Reads a tiktoken table (qwen.tiktoken, tiktoken.model of Kimi). Each line has a base64 token and its rank."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from lightllm_mp.errors import ModelError
from lightllm_mp.machine import format_bytes
from lightllm_mp.text.bpe_builder import byte_level_bpe
from lightllm_mp.text.token_bytes import byte_level_alphabet

_MAX_BYTES = 64 << 20
_MAX_TOKEN_BYTES = 1024
# In the order of Qwen's tokenization code. Their ids follow the last rank.
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_PICTURE = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")


def from_tiktoken(path: Path, *, has_pictures: bool) -> tuple[Tokenizer, dict[str, str]]:
    """Qwen's tokenizer from its table, and its eos_token. `has_pictures` adds the image tags of Qwen-VL."""
    backend = table_bpe(path, "qwen2")
    names = _CONTROL + (_PICTURE if has_pictures else ())
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return backend, {"eos_token": "<|endoftext|>"}


def table_bpe(path: Path, pre: str) -> Tokenizer:
    """The byte-level BPE of a table, without special tokens. `pre` is GGUF's name of the pre-tokenizer."""
    spelled = spellings(_tokens(path))
    return byte_level_bpe(spelled, merges_from_ranks(spelled), pre, whole_words=True)


def _tokens(path: Path) -> list[bytes]:
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{path.name} is larger than {format_bytes(_MAX_BYTES)}")
    of_rank: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line:
            rank, token = _row(path, number, line)
            if rank in of_rank:
                raise ModelError(f"{path.name}, line {number}: duplicate rank {rank}")
            of_rank[rank] = token
    tokens = [of_rank[rank] for rank in sorted(of_rank)]
    if sorted(of_rank) != list(range(len(tokens))):
        raise ModelError(f"the ranks in {path.name} are not 0, 1, 2, ...")
    known = set(tokens)
    if len(known) != len(tokens):
        raise ModelError(f"{path.name} has a duplicate token")
    missing = next((byte for byte in range(256) if bytes([byte]) not in known), None)
    if missing is not None:
        raise ModelError(f"{path.name} has no token for the byte 0x{missing:02X}")
    return tokens


def _row(path: Path, number: int, line: bytes) -> tuple[int, bytes]:
    try:
        encoded, rank = line.split()
        token = base64.b64decode(encoded, validate=True)
        if not 0 < len(token) <= _MAX_TOKEN_BYTES or not rank.isdigit():
            raise ValueError
        return int(rank), token
    except (ValueError, binascii.Error):
        raise ModelError(f"{path.name}, line {number}: not a base64 token and its rank") from None


def spellings(tokens: list[bytes]) -> list[str]:
    """Tokens in the alphabet of byte-level models."""
    char_of = {byte: char for char, byte in byte_level_alphabet().items()}
    return ["".join(map(char_of.__getitem__, token)) for token in tokens]


def merges_from_ranks(tokens: list[str]) -> list[tuple[str, str]]:
    """All pairs that form a token, ordered by the rank of the token, then by the ranks of the parts."""
    rank = {token: i for i, token in enumerate(tokens)}
    found = []
    for i, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = rank.get(token[:cut]), rank.get(token[cut:])
            if left is not None and right is not None:
                found.append((i, left, right))
    found.sort()
    return [(tokens[left], tokens[right]) for _, left, right in found]
