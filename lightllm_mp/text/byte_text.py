"""Incremental detokenizer for tokens that stand for fixed bytes: a UTF-8 decoder that holds back up to three bytes."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence

from lightllm_mp.text.tokenizer import Tokenizer, strip_start

_REPLACEMENT = "\ufffd"


class ByteText:
    """Returns each character as soon as its last byte arrives.

    If the prompt ends inside a character and the first tokens complete it, the character belongs to the output. If they
    do not complete it, its bytes belong to the prompt and are not shown.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_tail: Sequence[int], skip_special_tokens: bool) -> None:
        assert tokenizer.rule is not None
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special_tokens else frozenset()
        context = [id_ for id_ in prompt_tail if id_ not in self._skip]
        data = b"".join(tokenizer.token_bytes(int(id_)) for id_ in context)
        self._pending = data[utf_8_decode(data, "replace", False)[1] :]
        # The number of replacement characters for the pending bytes in the text of the prompt.
        self._remains = len(self._pending.decode("utf-8", "replace"))
        self._is_first = not context
        self._strip = tokenizer.rule.strip if self._is_first else 0

    def feed(self, token_id: int) -> str:
        """The text that this token completes, often empty."""
        if token_id in self._skip:
            return ""
        data = self._tokenizer.token_bytes(token_id, first=self._is_first)
        if self._is_first:
            self._is_first = not 0 <= token_id < self._tokenizer.vocab_size
        if self._pending:
            data = self._pending + data
        text, used = utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        if self._remains and used:
            text = self._without_remains_of_prompt(data, text)
        if self._strip and text:
            text, self._strip = strip_start(text, self._strip)
        return text

    def flush(self) -> str:
        """The rest at the end of the text: an incomplete character becomes U+FFFD, as in the decoded whole text."""
        text = self._pending.decode("utf-8", "replace")[self._remains :]
        self._pending, self._remains = b"", 0
        return text

    def _without_remains_of_prompt(self, data: bytes, text: str) -> str:
        remains, self._remains = self._remains, 0
        is_broken = text.startswith(_REPLACEMENT) and not data.startswith(_REPLACEMENT.encode())
        return text[remains:] if is_broken else text
