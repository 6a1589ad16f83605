"""How much text a number of tokens can stand for: the ground on which a text is refused before it is tokenized.

A fixed guess such as eight characters a token refuses valid prompts (one token may be 64 spaces). Here the bound is the
longest token of the vocabulary, and it is used only where it is proven:

* The model is a BPE that never folds a stretch of unknown text into one token: it spells every byte, or drops the bytes
  that it cannot spell, which then are not counted. So a token stands for at most as many bytes (byte-level), or as
  many characters (byte fallback), as its own spelling has characters.
* Normalizing does not drop characters. Composing (NFC, NFKC) shortens text at most fourfold, which is Unicode's limit
  for the length of a full canonical decomposition.
* Cutting into words does not drop characters either.
* No added token swallows the white space around it.
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
    """`longest` units of text fit one token at most. A unit is a byte that is not `dropped`, or else a character."""

    longest: int
    by_bytes: bool
    dropped: bytes = b""

    def surely_exceeds(self, text: str, utf8: bytes, max_tokens: int) -> bool:
        """True where `text`, in UTF-8 `utf8`, has more than `max_tokens` tokens, whatever they are."""
        most = max_tokens * self.longest
        if len(utf8) <= most:
            return False
        return (len(utf8.translate(None, self.dropped)) if self.by_bytes else len(text)) > most


def length_bound(backend: Backend) -> LengthBound | None:
    """The bound of a tokenizer; None where none is proven."""
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
    # Composing is bounded in characters, and there is at least one byte for each.
    return LengthBound(shrink * longest, by_bytes=shrink == 1, dropped=missing)


def _keeps_text(words: dict) -> bool:
    kind = words["type"]
    if kind == "Sequence":
        return all(_keeps_text(step) for step in words["pretokenizers"])
    return kind in ("ByteLevel", "Digits", "Metaspace") or (kind == "Split" and words["behavior"] != "Removed")


def _shrink(normalizer: dict) -> int | None:
    """How many times shorter a text can become; None where it is not known."""
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
