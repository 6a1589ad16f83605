"""Incremental detokenizer of one sequence: holds back incomplete characters and possible stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightllm_mp.text.byte_text import ByteText
from lightllm_mp.text.stop_strings import StopStrings
from lightllm_mp.text.tokenizer import Tokenizer
from lightllm_mp.text.window_text import WindowText


class IncrementalText:
    """The text of one answer while it is generated.

    Without stop strings, the joined results of `push` and `finish` are `tokenizer.decode` of all ids with the same
    options. With `prompt_tail` (the last few ids of the prompt; 8 are enough) they are the whole text without that of
    the prompt. A character that the end of the prompt splits belongs to the answer if the answer completes it.

    With `stop`, the text ends before the first match, or after it with `keep_stop`. Characters that may become a stop
    string are held back. A stop string that is a special token stops although special tokens are skipped. The cost per
    token does not depend on the length of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt_tail: Sequence[int] = (),
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        stop: Sequence[str] = (),
        keep_stop: bool = False,
    ) -> None:
        self._source: ByteText | WindowText
        if tokenizer.rule is not None:
            self._source = ByteText(tokenizer, prompt_tail, skip_special_tokens)
        else:
            self._source = WindowText(tokenizer, prompt_tail, skip_special_tokens, spaces_between_special_tokens)
        self._stops = StopStrings(stop) if any(stop) else None
        self._stop_tokens = {id_: text for text in stop if (id_ := tokenizer.added_texts.get(text)) is not None}
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._keep_stop = keep_stop
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """True if a stop string was found. Later tokens add no text."""
        return self._stopped

    def push(self, token_id: int) -> str:
        """The text that may be shown now. Empty while a character or a possible stop string is incomplete."""
        if self._stopped:
            return ""
        if token_id in self._skipped and self.stops_at(token_id):
            return self._stop_unseen(self._stop_tokens[token_id])
        text = self._source.feed(token_id)
        return self._until_stop(text) if self._stops is not None and text else text

    def stops_at(self, token_id: int) -> bool:
        """True if this added token is a stop string."""
        return token_id in self._stop_tokens

    def finish(self) -> str:
        """The text that was held back, at the end of the sequence. It may complete a stop string."""
        if self._stopped:
            return ""
        text = self._source.flush()
        if self._stops is not None:
            text = self._until_stop(text)
        rest, self._held = ("", "") if self._stopped else (self._held, "")
        return text + rest

    def replay(self, ids: Iterable[int]) -> None:
        """Restores the state after `ids`, whose text was delivered before."""
        for token_id in ids:
            self.push(token_id)

    def _stop_unseen(self, stop: str) -> str:
        """The last text, before a stop string that skipping would hide."""
        text = self.finish()
        if self._stopped:  # the held text completed another one
            return text
        self._stopped = True
        return text + stop if self._keep_stop else text

    def _until_stop(self, text: str) -> str:
        stops = self._stops
        assert stops is not None
        found = stops.find(text)
        text_from = len(self._held)
        whole = self._held + text
        if found is not None:
            end, length = found
            self._stopped, self._held = True, ""
            return whole[: text_from + end - (0 if self._keep_stop else length)]
        show = len(whole) if self._keep_stop else len(whole) - stops.held
        self._held = whole[show:]
        return whole[:show]
