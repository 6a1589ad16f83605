"""Reads the tokenizer of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from lightllm_mp.errors import ModelError, NoTokenizer
from lightllm_mp.model_files.gguf_header import read_header
from lightllm_mp.models.families import find_gguf_text_half
from lightllm_mp.models.families.common.text_half import ModelFolder, TextHalf
from lightllm_mp.text.bpe_builder import (
    SpacePrefix,
    TokenType,
    add_typed_tokens,
    byte_level_bpe,
    sentencepiece_bpe,
    set_bos_eos,
)
from lightllm_mp.text.tokenizer_source import TokenizerSource

_KEY = "tokenizer.ggml."
_ARCHITECTURE = "general.architecture"
_TEMPLATE = "tokenizer.chat_template"
_BOS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3", "falcon3", "tekken")
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_TEXTS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
"""Control tokens that end a turn of a chat. Most files have a key only for the token that ends a text."""
_HARMONY_ENDS, _HARMONY_MESSAGE_END = ("<|return|>", "<|call|>"), "<|end|>"
"""The same for gpt-oss, whose turns have several messages."""


def load_gguf(path: Path) -> TokenizerSource:
    """Reads the tokenizer.* keys of `path`. NoTokenizer if there are none, ModelError if the kind is not supported."""
    header = read_header(path, wanted=lambda key: key.startswith(("tokenizer.", _ARCHITECTURE)))
    keys = {key.removeprefix(_KEY): value for key, value in header.items() if key.startswith(_KEY)}
    tokens, architecture = keys.get("tokens"), header.get(_ARCHITECTURE)
    if not isinstance(tokens, list) or keys.get("model", "none") == "none":
        raise NoTokenizer(f"{path.name} contains no tokenizer")
    family = TextHalf()  # what families declare concerns their SentencePiece tokenizers
    if keys.get("model") == "llama":
        family = find_gguf_text_half(architecture) or family
    tokens = [family.gguf_names.get(token, token) for token in tokens]
    backend = _backend(keys, tokens, family)
    facts = ModelFolder(path, {}, {}, {})
    spellings, ends = family.complete(backend, facts), _ends(keys, backend)
    ends += tuple(id_ for name in family.ends if (id_ := backend.token_to_id(name)) is not None and id_ not in ends)
    templates = family.templates(_templates(header), backend, facts, renamed=bool(spellings))
    return TokenizerSource(backend, _id(keys, "bos_token_id"), ends, templates, spellings)


def _ends(keys: dict[str, Any], backend: Backend) -> tuple[int, ...]:
    added = {token.content: id_ for id_, token in backend.get_added_tokens_decoder().items()}
    harmony = all(text in added for text in _HARMONY_ENDS)
    texts = _HARMONY_ENDS if harmony else _END_TEXTS
    ids = [*(_id(keys, key) for key in _END_KEYS), *(added.get(text) for text in texts)]
    no_end = {None, added.get(_HARMONY_MESSAGE_END) if harmony else None}
    return tuple(dict.fromkeys(id_ for id_ in ids if id_ is not None and id_ not in no_end))


def _backend(keys: dict[str, Any], tokens: list[str], family: TextHalf) -> Backend:
    kind, pre = keys.get("model"), keys.get("pre", "default")
    types = [int(t) for t in keys.get("token_type", [TokenType.NORMAL] * len(tokens))]
    if len(types) != len(tokens):
        raise ModelError("the GGUF tokenizer's lists of tokens and of token types differ in length")
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
    add_typed_tokens(backend, tokens, types, but_space=family.gguf_no_rstrip)
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
    """A token id of the header; None if it is absent or outside the vocabulary."""
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
