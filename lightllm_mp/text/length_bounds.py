"""Proves from its length that a text has too many tokens, so that it is refused without tokenizing.

A fixed guess such as eight characters per token refuses valid prompts: one token may be 64 spaces. Here the bound is
the longest token of the vocabulary. It is used only if it holds for certain:

* The model is a BPE that never merges unknown text into one token: it spells every byte, or drops the bytes that it
  cannot spell, which then do not count. So a token stands for at most as many bytes (byte-level) or characters (byte
  fallback) as its own spelling has characters.
* The normalizer drops no characters. Composition (NFC, NFKC) shortens a text at most fourfold, which is Unicode's limit
  for the length of a full canonical decomposition.
* The pre-tokenizer drops no characters.
* No added token includes the white space around it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tokenizers import Tokenizer as Backend

from lightllm_mp.text.token_bytes import byte_level_alphabet

_COMPOSING = 4
_SHRINK = {"NFC": _COMPOSING, "NFKC": _COMPOSING, "NFD": 1, "NFKD": 1, "Lowercase": 1, "Prepend": 1}


@dataclass(frozen=True, slots=True)
class LengthBound:
    """A token stands for at most `longest` units of text. A unit is a byte that is not `dropped`, or a character."""

    longest: int
    by_bytes: bool
    dropped: bytes = b""

    def surely_exceeds(self, text: str, utf8: bytes, max_tokens: int) -> bool:
        """True if `text` (as UTF-8: `utf8`) certainly has more than `max_tokens` tokens."""
        most = max_tokens * self.longest
        if len(utf8) <= most:
            return False
        return (len(utf8.translate(None, self.dropped)) if self.by_bytes else len(text)) > most


def length_bound(backend: Backend) -> LengthBound | None:
    """The bound of a tokenizer; None if it has no certain bound."""
    shrink = _shrink(json.loads(backend.normalizer.__getstate__())) if backend.normalizer is not None else 1
    added = backend.get_added_tokens_decoder().values()
    if type(backend.model).__name__ != "BPE" or shrink is None or any(t.lstrip or t.rstrip for t in added):
        return None
    words = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer is not None else None
    if words is not None and not _keeps_text(words):
        return None
    vocab = backend.get_vocab()
    longest = max(max(map(len, vocab)), max((len(t.content.encode()) for t in added), default=0))
    if backend.model.byte_fallback:
        is_complete = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
        return LengthBound(shrink * longest, by_bytes=False) if is_complete else None
    if words is None or '"ByteLevel"' not in json.dumps(words):
        return None
    missing = bytes(byte for char, byte in byte_level_alphabet().items() if char not in vocab)
    if missing and (shrink > 1 or backend.model.unk_token is not None):
        return None
    # The bound on composition counts characters, and each has at least one byte.
    return LengthBound(shrink * longest, by_bytes=shrink == 1, dropped=missing)


def _keeps_text(words: dict) -> bool:
    kind = words["type"]
    if kind == "Sequence":
        return all(_keeps_text(step) for step in words["pretokenizers"])
    return kind in ("ByteLevel", "Digits", "Metaspace") or (kind == "Split" and words["behavior"] != "Removed")


def _shrink(normalizer: dict) -> int | None:
    """The factor by which a normalizer can shorten a text; None if unknown."""
    kind = normalizer["type"]
    if kind == "Sequence":
        total = 1
        for step in normalizer["normalizers"]:
            shrink = _shrink(step)
            if shrink is None:
                return None
            total *= shrink
        return total
    if kind == "Replace":
        old = normalizer["pattern"].get("String")
        return 1 if old and len(normalizer["content"]) >= len(old) else None
    return _SHRINK.get(kind)
