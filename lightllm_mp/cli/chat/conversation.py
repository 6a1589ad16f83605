"""The turns of a conversation, in the form of OpenAI's API."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from lightllm_mp.errors import ConfigError

MAX_IMAGE_BYTES = 32 << 20
KINDS = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"RIFF", "webp"),
    (b"BM", "bmp"),
)
"""The first bytes of image files -> their type."""

Message = dict[str, Any]


class Conversation:
    """A system prompt, the turns so far, and the images that go with the next question."""

    def __init__(self, system: str = "") -> None:
        self.system = system
        self.turns: list[Message] = []
        self.pending: list[str] = []
        """Images of the next question, as data: URLs."""

    @property
    def messages(self) -> list[Message]:
        """The messages of the next request."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def attach(self, file: Path) -> None:
        """Add an image to the next question. ConfigError if the file is not an image."""
        self.pending.append(data_url(file))

    def ask(self, text: str) -> None:
        """Add a question with the attached images."""
        content: Any = text
        if self.pending:
            content = [{"type": "image_url", "image_url": {"url": url}} for url in self.pending]
            content += [{"type": "text", "text": text}] if text else []
        self.turns.append({"role": "user", "content": content})
        self.pending = []

    def answer(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def reset(self) -> None:
        """Remove the turns and keep the system prompt."""
        self.turns, self.pending = [], []

    def undo(self) -> bool:
        """Remove the last question with its answer. False if there is none."""
        if not self.forget_answer():
            return False
        self.turns.pop()
        return True

    def forget_answer(self) -> bool:
        """Remove the last answer, so that its question can be asked again. False if there is no question."""
        while self.turns and self.turns[-1]["role"] != "user":
            self.turns.pop()
        return bool(self.turns)

    def save(self, file: Path) -> None:
        """Write {"messages": [...]}, the body of a request, to a file that only the user can read. ConfigError if that
        fails."""
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1)
        try:
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as out:
                out.write(text + "\n")
            os.replace(out.name, file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: {error}") from None

    def load(self, file: Path) -> None:
        """Take the messages from a file of `save` or any body of a request. ConfigError if it has none."""
        try:
            messages = json.loads(file.read_text(encoding="utf-8"))["messages"]
            roles = [message["role"] for message in messages if message["content"] is not None]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{file}: no conversation can be read from this file ({error})") from None
        has_system = roles[:1] == ["system"] and isinstance(messages[0]["content"], str)
        self.reset()
        self.system = messages[0]["content"] if has_system else ""
        self.turns = messages[1:] if has_system else messages


def data_url(file: Path) -> str:
    """The data: URL of an image file. ConfigError if the file is not an image."""
    try:
        size = file.stat().st_size
        data = file.read_bytes() if size <= MAX_IMAGE_BYTES else b""
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from None
    if size > MAX_IMAGE_BYTES:
        raise ConfigError(f"{file}: {size} bytes, but an image may have {MAX_IMAGE_BYTES}")
    kind = next((kind for start, kind in KINDS if data.startswith(start)), None)
    if kind is None:
        raise ConfigError(f"{file}: not an image (png, jpeg, webp, gif, bmp)")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def text_of(message: Message) -> str:
    """The text of a turn, with a mark for each image."""
    content = message["content"]
    if isinstance(content, str):
        return content
    parts = [part.get("text") or f"[{str(part.get('type', '')).removesuffix('_url')}]" for part in content]
    return " ".join(parts)
