"""`load_tokenizer`, and the `Tokenizer` that turns text into token ids and ids into text."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Encoding

from lightllm_mp.errors import ConfigError, InvalidRequest, ModelError, PromptTooLong
from lightllm_mp.model_files.gguf_header import is_gguf
from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.text.length_bounds import LengthBound, length_bound
from lightllm_mp.text.token_bytes import piece_rule
from lightllm_mp.text.tokenizer_source import TokenizerSource

__all__ = ["Tokenizer", "load_tokenizer"]

MODES = ("auto", "fast", "slow")


def load_tokenizer(path: Path, *, mode: str = "auto") -> Tokenizer:
    """The tokenizer of a Hugging Face folder or GGUF file, or of the language model that a folder names.

    `mode` "fast" reads tokenizer.json. "slow" reads the vocabulary file that the model was published with
    (tokenizer.model, tekken.json, *.tiktoken, vocab.json with merges.txt). "auto" reads tokenizer.json if there is
    one, else that file. A GGUF file has the same tokenizer in all modes. Code of a model folder is never imported.
    NoTokenizer if there are no tokenizer files, ConfigError if `mode` excludes those that there are, ModelError if
    they are corrupt or of an unsupported kind.
    """
    if mode not in MODES:
        raise ConfigError(f"tokenizer mode {mode[:32]!r} is not one of {', '.join(MODES)}", param="tokenizer_mode")
    source = ModelSource(path)
    path = source.language
    if is_gguf(path):
        from lightllm_mp.text.gguf_tokenizer import load_gguf

        return Tokenizer(load_gguf(path))
    if not path.is_dir():
        raise ModelError(f"{path.name} is neither a model folder nor a GGUF file")
    from lightllm_mp.text.hf_folder import load_folder

    return Tokenizer(load_folder(source, mode))


class Tokenizer:
    """A tokenizer, the ids that matter to generation, and the bytes of each token.

    `rule` is None if tokens do not stand for fixed bytes (see token_bytes.py).
    """

    def __init__(self, source: TokenizerSource) -> None:
        self.backend = source.backend
        self.backend.no_truncation()
        self.backend.no_padding()
        self.bos_id = source.bos_id
        self.eos_ids = source.eos_ids
        self.chat_templates = source.chat_templates
        self._spellings = source.spellings
        self.added = {id_: token.content for id_, token in self.backend.get_added_tokens_decoder().items()}
        self.special_ids = frozenset(
            id_ for id_, token in self.backend.get_added_tokens_decoder().items() if token.special
        )
        self.vocab_size = max(self.backend.get_vocab_size(), max(self.added, default=-1) + 1)
        self.rule = piece_rule(self.backend.decoder)
        self._pieces: list[bytes | None] = [None] * self.vocab_size

    @property
    def chat_template(self) -> str | None:
        """The default chat template; None if the model has none."""
        return self.chat_templates.get("default")

    @property
    def bos_token(self) -> str:
        return self._content(self.bos_id)

    @property
    def eos_token(self) -> str:
        return self._content(self.eos_ids[0] if self.eos_ids else None)

    def is_special(self, token_id: int) -> bool:
        return token_id in self.special_ids

    def token_to_id(self, token: str) -> int | None:
        """The id of the token with exactly this content, for example "<|im_end|>"."""
        return self.backend.token_to_id(token)

    @cached_property
    def added_texts(self) -> dict[str, int]:
        """The ids of the added tokens, by the text that shows them."""
        return {self._content(id_): id_ for id_ in self.added}

    def encode(self, text: str, add_special_tokens: bool = True, *, max_tokens: int | None = None) -> np.ndarray:
        """Token ids of `text`, int32 [n].

        InvalidRequest if the text is not valid Unicode (a lone surrogate). PromptTooLong if it has more than
        `max_tokens` tokens; if its length alone proves that, it is not tokenized.
        """
        return np.array(self._encoded(text, add_special_tokens, max_tokens).ids, dtype=np.int32)

    def encode_pair(self, first: str, second: str, *, max_tokens: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of two texts as the tokenizer joins them, special tokens included, and the segment (0 or 1) of
        each, int32 [n]. Raises like `encode`."""
        found = self._encoded((first, second), True, max_tokens)
        return np.array(found.ids, dtype=np.int32), np.array(found.type_ids, dtype=np.int32)

    def encode_cut(self, first: str, second: str | None, special: bool, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and segments of a text or of two, int32 [n], of which the last one loses its end where they are more than
        `most`; special tokens stay. PromptTooLong if that is not enough."""
        texts = [first] if second is None else [first, second]
        parts = [self._encoded(text, False, None) for text in texts]
        room = most - sum(len(part.ids) for part in parts[:-1])
        room -= self.backend.num_special_tokens_to_add(second is not None) if special else 0
        if room < 0:
            raise PromptTooLong(f"the text has more than {most} tokens, even if its end is cut")
        parts[-1].truncate(room)
        found = self.backend.post_process(parts[0], parts[1] if second is not None else None, special)
        return np.array(found.ids, dtype=np.int32), np.array(found.type_ids, dtype=np.int32)

    def _encoded(self, text: str | tuple[str, str], add_special_tokens: bool, max_tokens: int | None) -> Encoding:
        for part in (text,) if isinstance(text, str) else text:
            self._check_text(part, max_tokens)
        try:
            found = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        except MemoryError:
            raise
        except BaseException as error:
            # A panic of the library is not an Exception, but it concerns only this text.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise InvalidRequest("the tokenizer cannot encode this text") from error
        if max_tokens is not None and len(found.ids) > max_tokens:
            raise PromptTooLong(f"the text has {len(found.ids)} tokens, more than {max_tokens}")
        return found

    def _check_text(self, text: str, max_tokens: int | None) -> None:
        try:
            utf8 = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"the text has a lone surrogate at character {error.start}") from None
        if max_tokens is not None and len(utf8) > max_tokens and self._surely_exceeds(text, utf8, max_tokens):
            raise PromptTooLong(f"the text of {len(text)} characters has more than {max_tokens} tokens")

    def decode(
        self, ids: Iterable[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """The text of `ids`. Ids outside the vocabulary have no text. Incomplete characters become U+FFFD.

        `spaces_between_special_tokens` False: a decoder that puts spaces between tokens puts none around added tokens.
        It has no effect on byte-level and SentencePiece models, whose tokens contain their spaces.
        """
        shown = [int(id_) for id_ in ids if not skip_special_tokens or id_ not in self.special_ids]
        if self.rule is None:
            return self._decode_by_library(shown, spaces_between_special_tokens)
        known = [id_ for id_ in shown if 0 <= id_ < self.vocab_size]
        data = b"".join([self.token_bytes(id_, first=i == 0) for i, id_ in enumerate(known)])
        return strip_start(data.decode("utf-8", "replace"), self.rule.strip)[0]

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """The bytes of a token; b"" for an id outside the vocabulary. Requires a `rule`.

        `first`: this is the first token of a text, which loses its leading space in some tokenizers.
        """
        assert self.rule is not None
        if first:
            return self.rule.first_piece(self._content(token_id))
        if not 0 <= token_id < self.vocab_size:
            return b""
        piece = self._pieces[token_id]
        if piece is None:
            piece = self._pieces[token_id] = self.rule.piece(self._content(token_id))
        return piece

    def _content(self, token_id: int | None) -> str:
        if token_id is None or not 0 <= token_id < self.vocab_size:
            return ""
        return self._spellings.get(token_id) or self.backend.id_to_token(int(token_id)) or ""

    def _decode_by_library(self, ids: list[int], spaces: bool) -> str:
        ids = [id_ for id_ in ids if 0 <= id_ < self.vocab_size]
        if spaces:
            return self.backend.decode(ids, skip_special_tokens=False)
        parts: list[str] = []
        run: list[int] = []
        for id_ in ids:
            if id_ in self.added:
                parts += [self.backend.decode(run, skip_special_tokens=False), self.added[id_]]
                run = []
            else:
                run.append(id_)
        return "".join([*parts, self.backend.decode(run, skip_special_tokens=False)])

    def _surely_exceeds(self, text: str, utf8: bytes, max_tokens: int) -> bool:
        return self._bound is not None and self._bound.surely_exceeds(text, utf8, max_tokens)

    @cached_property
    def _bound(self) -> LengthBound | None:
        return length_bound(self.backend)


def strip_start(text: str, count: int) -> tuple[str, int]:
    """`text` without up to `count` leading spaces, and the number of spaces still to strip from the text after it."""
    while count and text.startswith(" "):
        text, count = text[1:], count - 1
    return text, 0 if text else count
