"""The tokenizer inside a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from lightllm_mp.errors import ModelError, NoTokenizer
from lightllm_mp.gguf_header import read_header
from lightllm_mp.text.bpe_builder import (
    SpacePrefix,
    TokenType,
    add_typed_tokens,
    byte_level_bpe,
    sentencepiece_bpe,
    set_bos_eos,
)
from lightllm_mp.text.source import TokenizerSource

_KEY = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_BOS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3")
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def load_gguf(path: Path) -> TokenizerSource:
    """Reads the tokenizer.* keys of `path`. Raises ModelError where they are missing or of an unsupported kind."""
    header = read_header(path, wanted=lambda key: key.startswith("tokenizer."))
    keys = {key.removeprefix(_KEY): value for key, value in header.items() if key.startswith(_KEY)}
    tokens = keys.get("tokens")
    if not isinstance(tokens, list):
        raise NoTokenizer(f"{path.name} holds no tokenizer")
    backend = _backend(keys, tokens)
    ends = tuple(dict.fromkeys(id_ for key in _END_KEYS if (id_ := _id(keys, key)) is not None))
    return TokenizerSource(backend, _id(keys, "bos_token_id"), ends, chat_templates=_templates(header))


def _backend(keys: dict[str, Any], tokens: list[str]) -> Backend:
    kind, pre = keys.get("model"), keys.get("pre", "default")
    types = [int(t) for t in keys.get("token_type", [TokenType.NORMAL] * len(tokens))]
    if len(types) != len(tokens):
        raise ModelError("the GGUF tokenizer has a token type list of another length than its token list")
    if kind == "gpt2":
        backend = byte_level_bpe(tokens, _merges(keys), pre)
        add_bos = keys.get("add_bos_token", pre in _BOS_BY_DEFAULT)
    elif kind == "llama":
        scores = keys.get("scores", ())
        if len(scores) != len(tokens):
            raise ModelError("the GGUF tokenizer has no score for every token")
        prefix: SpacePrefix = "all" if keys.get("add_space_prefix", True) else "none"
        backend = sentencepiece_bpe(tokens, scores, types, space_prefix=prefix)
        add_bos = keys.get("add_bos_token", True)
    else:
        raise ModelError(f"GGUF tokenizer model {str(kind)[:64]!r} is not supported; supported are gpt2 and llama")
    add_typed_tokens(backend, tokens, types)
    bos = _id(keys, "bos_token_id") if add_bos else None
    set_bos_eos(backend, bos, _id(keys, "eos_token_id") if keys.get("add_eos_token") else None)
    return backend


def _merges(keys: dict[str, Any]) -> list[tuple[str, str]]:
    merges = keys.get("merges")
    if not isinstance(merges, list):
        raise ModelError("the GGUF tokenizer has no merges")
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1)
        if cut < 0:
            raise ModelError("the GGUF tokenizer has a merge that is not a pair")
        pairs.append((merge[:cut], merge[cut + 1 :]))
    return pairs


def _id(keys: dict[str, Any], key: str) -> int | None:
    """A token id of the header, None where it is absent or outside the vocabulary."""
    value = keys.get(key)
    return value if isinstance(value, int) and 0 <= value < len(keys["tokens"]) else None


def _templates(header: dict[str, Any]) -> dict[str, str]:
    named = {
        key.removeprefix(_TEMPLATE + "."): value
        for key, value in header.items()
        if key.startswith(_TEMPLATE + ".") and isinstance(value, str)
    }
    default = header.get(_TEMPLATE)
    return {"default": default, **named} if isinstance(default, str) else named
