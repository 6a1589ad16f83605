"""Reads tekken.json, Mistral's own tokenizer file: a byte-level table of ranks behind numbered special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from lightllm_mp.errors import ModelError
from lightllm_mp.machine import format_bytes
from lightllm_mp.text.bpe_builder import byte_level_bpe, set_bos_eos
from lightllm_mp.text.pretokenizers import TEKKEN
from lightllm_mp.text.tiktoken_file import merges_from_ranks, spellings

_MAX_BYTES = 64 << 20
_OLD_SPECIALS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""Special tokens of files that do not list them, in the order of their ids."""


class Sizes(msgspec.Struct):
    pattern: str
    default_vocab_size: int
    default_num_special_tokens: int


class Ranked(msgspec.Struct):
    rank: int
    token_bytes: bytes
    """base64 in the file."""


class Special(msgspec.Struct):
    rank: int
    token_str: str


class TekkenFile(msgspec.Struct):
    config: Sizes
    vocab: list[Ranked]
    special_tokens: list[Special] | None = None


def from_tekken(path: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and the names of its special tokens. A rank's id is the rank plus the number of special ids.

    ModelError for a damaged file, and for one whose words are cut by another pattern than the released ones.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ModelError(f"{path.name} is larger than {format_bytes(_MAX_BYTES)}")
    try:
        file = msgspec.json.decode(path.read_bytes(), type=TekkenFile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"{path.name} cannot be read: {str(error)[:200]}") from None
    if file.config.pattern != TEKKEN:
        raise ModelError(f"{path.name}: its pattern of words is not supported (supported: that of Mistral's models)")
    specials, tokens = _specials(file, path.name), _tokens(file, path.name)
    spelled = spellings(tokens)
    if clash := set(specials) & set(spelled):
        raise ModelError(f"{path.name}: {min(clash)[:64]!r} is a special token and a word")
    backend = byte_level_bpe([*specials, *spelled], merges_from_ranks(spelled), "tekken")
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    set_bos_eos(backend, specials.index("<s>") if "<s>" in specials else None, None)
    return backend, {"bos_token": "<s>", "eos_token": "</s>"}


def _specials(file: TekkenFile, name: str) -> list[str]:
    """The special tokens by id; ids without a name get one that mistral-common gives them."""
    count = file.config.default_num_special_tokens
    said = file.special_tokens
    named = {s.rank: s.token_str for s in said} if said is not None else dict(enumerate(_OLD_SPECIALS))
    names = [named.get(i, f"<SPECIAL_{i}>") for i in range(count)]
    if len(named) > count or len(set(names)) != count:
        raise ModelError(f"{name}: {count} special tokens cannot have the names that the file gives them")
    return names


def _tokens(file: TekkenFile, name: str) -> list[bytes]:
    """The words by rank, as many as the vocabulary has room for: files hold more."""
    count = file.config.default_vocab_size - file.config.default_num_special_tokens
    tokens = {entry.rank: entry.token_bytes for entry in file.vocab if entry.rank < count}
    if count < 256 or sorted(tokens) != list(range(count)) or len(set(tokens.values())) != count:
        raise ModelError(f"{name}: its ranks are not {count} different words 0, 1, 2, ...")
    return [tokens[rank] for rank in range(count)]
