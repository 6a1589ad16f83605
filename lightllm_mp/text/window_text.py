"""Incremental detokenizer for tokens without fixed bytes: decodes a short window of tokens at each token.

The window begins with shown tokens, so the decoder has context for the new ones; the text of the shown tokens is cut
off. At the end the whole text is decoded once, so text that the windows held back is not lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightllm_mp.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# A character has at most four bytes. After so many tokens a replacement character at the end stays.
_MAX_WAIT = 4


class WindowText:
    """The state of one sequence: its ids, the start of the window, and the shown text."""

    def __init__(
        self, tokenizer: Tokenizer, prompt_tail: Sequence[int], skip_special_tokens: bool, spaces: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._spaces = spaces
        self._ids = [int(id_) for id_ in prompt_tail if id_ not in self._skip]
        self._begin, self._shown_to = 0, len(self._ids)
        self._shown = self._decode(0, len(self._ids)).rstrip(_REPLACEMENT)
        self._parts = [self._shown]

    def feed(self, token_id: int) -> str:
        """The text that this token completes, often empty."""
        if token_id in self._skip or not 0 <= token_id < self._tokenizer.vocab_size:
            return ""
        self._ids.append(token_id)
        window = self._decode(self._begin, len(self._ids))
        is_complete = window.startswith(self._shown) and not window.endswith(_REPLACEMENT)
        if not is_complete and len(self._ids) - self._shown_to < _MAX_WAIT:
            return ""
        text = window[len(self._shown) :]
        # The tokens just shown are the next context: they begin and end at a character boundary.
        self._begin, self._shown_to = self._shown_to, len(self._ids)
        self._shown = self._decode(self._begin, len(self._ids))
        self._parts.append(text)
        return text

    def flush(self) -> str:
        """The rest of the whole text that was not shown."""
        whole, shown = self._decode(0, len(self._ids)), "".join(self._parts)
        self._parts = [whole]
        return whole[len(shown) :] if whole.startswith(shown) else ""

    def _decode(self, begin: int, end: int) -> str:
        return self._tokenizer.decode(
            self._ids[begin:end], skip_special_tokens=False, spaces_between_special_tokens=self._spaces
        )
