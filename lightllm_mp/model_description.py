"""What a model is. Read once before the start, it travels to every process in its launch spec. Imports no torch."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.vision.spec import VisionModel


class ModelDescription(msgspec.Struct, frozen=True):
    path: str
    """Folder or GGUF file, as the operator named it."""
    spec: ModelSpec
    """Of the whole model, not of a rank's part."""
    vision: VisionModel | None = None
    """None: a model of text, or images are not served."""


def describe(model: ModelSource, *, weights: bool, images: bool) -> ModelDescription:
    """Raises ModelError for a model that cannot be served. `weights`: its weight files are checked too, by their
    headers. `images`: its vision half is read."""
    from lightllm_mp.models.checkpoint.preflight import check_weights
    from lightllm_mp.models.model_config import read_model_config
    from lightllm_mp.vision.vision_config import read_vision

    spec = check_weights(model) if weights else read_model_config(model)
    return ModelDescription(str(model.path), spec, read_vision(model) if images else None)


def to_plain(value: Any) -> str:
    """For msgspec's `enc_hook`: a path as text."""
    return str(value)


def from_plain(kind: type, value: Any) -> Any:
    """For msgspec's `dec_hook`: a path from text."""
    return kind(value)
