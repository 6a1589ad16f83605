"""What every loader of a tokenizer file hands over."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers import Tokenizer as Backend


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """A built `tokenizers` pipeline and what the files say beside it.

    `eos_ids` end a sequence, the tokenizer's own first. `chat_templates` maps a name ("default", "tool_use") to Jinja.
    `spellings` are the names of tokens that the pipeline knows by another one, so that text cannot name them.
    """

    backend: Backend
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    chat_templates: dict[str, str] = field(default_factory=dict)
    spellings: dict[int, str] = field(default_factory=dict)
