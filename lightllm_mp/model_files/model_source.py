"""A model folder or GGUF file: its config.json, read once, and the path of its language model.

A folder may hold only the vision tower, a few megabytes, and name a language model that exists elsewhere.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.default_model import find_default_model

KEY = "language_model"
DEFAULT = "default"
MAX_CONFIG_BYTES = 16 << 20


class ModelSource:
    """What a path holds, read when it is first asked for."""

    def __init__(self, path: Path | str, task: str = "auto", score_tokens: tuple[str, ...] = ()) -> None:
        self.path = Path(path)
        self.task = task
        """`ModelConfig.task`."""
        self.score_tokens = score_tokens
        """`ModelConfig.score_tokens`."""

    @staticmethod
    def of(model: ModelSource | Path | str) -> ModelSource:
        return model if isinstance(model, ModelSource) else ModelSource(model)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the folder. Raises ModelError.

        Older exports of NVIDIA's Model Optimizer have its `quantization_config` in a file of its own.
        """
        config, apart = read_json(self.path / "config.json"), self.path / "hf_quant_config.json"
        if "quantization_config" not in config and apart.is_file():
            quantised = read_json(apart).get("quantization") or {}
            if isinstance(quantised, dict) and quantised.get("quant_algo"):
                config["quantization_config"] = {"quant_method": "modelopt", **quantised}
        return config

    @property
    def has_config(self) -> bool:
        return (self.path / "config.json").is_file()

    @cached_property
    def language(self) -> Path:
        """`path`, unless it is a folder whose config.json has the key `language_model`. Then the default model if the
        value is "default", else the file of that name in the folder.

        ModelError if that file does not exist. A config.json that cannot be read is ignored here; its users report it.
        """
        name = None
        if self.path.is_dir():
            with suppress(ModelError):
                name = self.config.get(KEY)
        if not isinstance(name, str):
            return self.path
        if name == DEFAULT:
            return find_default_model()
        file = self.path / name
        if Path(name).name != name or not file.is_file():
            raise ModelError(f"{self.path}: {KEY} {name[:64]!r} is neither {DEFAULT!r} nor a file in the folder")
        return file


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size, or ModelError."""
    value = _read(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path}: the file does not hold a JSON object")
    return value


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects from a file of bounded size, or ModelError."""
    value = _read(path)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ModelError(f"{path}: the file does not hold a list of JSON objects")
    return value


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: the file is larger than {MAX_CONFIG_BYTES} bytes")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the file is not valid JSON ({error})") from error
