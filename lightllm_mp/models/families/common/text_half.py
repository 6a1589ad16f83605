"""A family's declaration of its tokenizer and chat format, for what a folder's files leave out.

The folders' Python files (tokenization_*.py, the chat functions in modeling_*.py) are never run; the declarations were
derived from them. If two generations of a family share all names, these files are read as text to distinguish the
generations. Imports neither torch nor `tokenizers`: every process reads the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
else:
    Backend = Any

_MAX_CODE_BYTES = 1 << 20

EACH = "{% for message in messages %}{% set role, content = message['role'], message['content'] or '' %}"
SYSTEM_FIRST = (
    "{% elif role == 'system' %}"
    "{% if not loop.first %}{{ raise_exception('the system message is not the first one') }}{% endif %}"
)
END_EACH = "{% endfor %}"
NO_OTHER = "{% else %}{{ raise_exception('this model has no role ' ~ role) }}{% endif %}" + END_EACH
"""Parts of the families' chat templates, in Jinja for the sandbox of text/chat/.

The templates render what the families' own chat functions build, with two wanted differences: a special token that a
message spells out is read as that token, and a system message is placed first where upstream has none.
"""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model folder and the content of three of its files, {} for an absent one."""

    path: Path
    model: Mapping[str, Any]
    """config.json"""
    tokenizer: Mapping[str, Any]
    """tokenizer_config.json"""
    generation: Mapping[str, Any]
    """generation_config.json"""

    def mentions(self, name: str, words: str) -> bool:
        """Whether the file `name` exists and contains `words`. The file is read, never run."""
        try:
            with (self.path / name).open("rb") as file:
                return words.encode() in file.read(_MAX_CODE_BYTES)
        except OSError:
            return False


def _no_template(backend: Backend, folder: ModelFolder) -> str | None:
    return None


def _no_tokens(backend: Backend, folder: ModelFolder) -> dict[int, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextHalf:
    """Tokenizer and chat format of a family whose files leave a part to its own code."""

    tokenizer_classes: tuple[str, ...] = ()
    """Values of `tokenizer_class` that claim a folder before its `model_type` does."""
    template: Callable[[Backend, ModelFolder], str | None] = _no_template
    """The chat template for a folder without one; None: no chat format."""
    complete: Callable[[Backend, ModelFolder], dict[int, str]] = _no_tokens
    """Adds tokens to the tokenizer; returns the spelling (by id) of those that text cannot name."""
    ends: tuple[str, ...] = ()
    """Tokens that end a chat turn: they end generation beside the end-of-sequence tokens of the files."""
    rewrite: Mapping[str, str] = field(default_factory=dict)
    """Replacements in the folder's own chat templates: tokens that text cannot name -> our names for them."""
    gguf_names: Mapping[str, str] = field(default_factory=dict)
    """The same renaming for the token list of a GGUF file with a SentencePiece tokenizer."""
    gguf_no_rstrip: tuple[str, ...] | None = None
    """GGUF: special tokens take the white space behind them along, except these; None: no token does."""

    def templates(
        self, given: Mapping[str, str], backend: Backend, folder: ModelFolder, *, renamed: bool
    ) -> dict[str, str]:
        """Chat templates by name: those `given` by the files, and the family's own as "default" if none is given.

        `renamed`: `complete` has found tokens that text cannot name.
        """
        found = dict(given)
        for old, new in self.rewrite.items() if renamed else ():
            found = {name: template.replace(old, new) for name, template in found.items()}
        if "default" not in found and (own := self.template(backend, folder)) is not None:
            found["default"] = own
        return found
