"""Finds the language model of a folder: the folder itself, or a GGUF file that its config.json names.

So a vision tower of a few megabytes can be a model folder that uses a language model from another place.
"""

from __future__ import annotations

import json
from pathlib import Path

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.default_model import find_default_model

KEY = "language_model"
DEFAULT = "default"
_MAX_CONFIG_BYTES = 16 << 20


def language_half(path: Path) -> Path:
    """`path`, unless it is a folder whose config.json has the key `language_model`. Then the default model if the value
    is "default", else the file of that name in the folder.

    ModelError if that file does not exist. A config.json that cannot be read is ignored here; its users report it.
    """
    name = _named(path / "config.json")
    if name is None:
        return path
    if name == DEFAULT:
        return find_default_model()
    file = path / name
    if Path(name).name != name or not file.is_file():
        raise ModelError(f"{path}: {KEY} {name[:64]!r} is neither {DEFAULT!r} nor a file in the folder")
    return file


def _named(config: Path) -> str | None:
    try:
        if config.stat().st_size > _MAX_CONFIG_BYTES:
            return None
        name = json.loads(config.read_bytes()).get(KEY)
    except (OSError, ValueError, RecursionError, AttributeError):
        return None
    return name if isinstance(name, str) else None
