"""Prompts around a picture and a question, as clients send them: through the chat template, or as plain text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lightllm_mp.text.chat.rendering import render_chat
from lightllm_mp.text.tokenizer import Tokenizer

TAG = "<image>"
LLAVA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. "
)
"""How LightLLM's README asks a LLaVA."""
QUESTION = "{question}"


@dataclass(frozen=True, slots=True)
class Style:
    """A way to ask. `text` holds the tag and QUESTION; `space` stands before the answer."""

    text: str
    share: float
    space: str

    @property
    def head(self) -> str:
        """What stands before the picture."""
        return self.text.split(TAG)[0]

    def rest(self, question: str) -> str:
        """What stands after it."""
        return self.text.split(TAG)[1].replace(QUESTION, question)


def styles(template: str) -> tuple[Style, ...]:
    """The chat of the language model first."""
    chat = render_chat(template, [{"role": "user", "content": f"{TAG}\n{QUESTION}"}])
    return (
        Style(chat, 0.55, ""),
        Style(chat.replace(f"{TAG}\n", TAG), 0.05, ""),
        Style(f"{TAG}\n{QUESTION}", 0.2, " "),
        Style(f"USER: {TAG}\n{QUESTION} ASSISTANT:", 0.1, " "),
        Style(f"{LLAVA}USER: {TAG}\n{QUESTION} ASSISTANT:", 0.1, " "),
    )


class Ids:
    """Token ids as the server makes them: the texts around a picture are encoded apart."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.end = tokenizer.eos_ids[0]
        self.of = lru_cache(maxsize=1 << 16)(self._of)

    def _of(self, text: str, special: bool = False) -> list[int]:
        return self._tokenizer.encode(text, special).tolist()
