"""The result of every loader of tokenizer files."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers import Tokenizer as Backend


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """A `tokenizers` pipeline, and what the files say about it.

    `eos_ids` end a sequence, the tokenizer's own id first. `chat_templates` maps names ("default", "tool_use") to Jinja
    templates. `spellings`: the text of tokens that have another name in the pipeline, so that no prompt can name them.
    """

    backend: Backend
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    chat_templates: dict[str, str] = field(default_factory=dict)
    spellings: dict[int, str] = field(default_factory=dict)
