"""Reads the vision half of a model's configuration. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isqrt
from pathlib import Path

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.gguf_header import is_gguf
from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.families import find_hf_family
from lightllm_mp.models.model_config import config_errors
from lightllm_mp.vision.mmproj import beside, read_mmproj
from lightllm_mp.vision.spec import VisionModel, VisionSpec
from lightllm_mp.vision.tower_rules import vision_family


def read_vision(model: ModelSource | Path | str) -> VisionModel | None:
    """The vision half of a Hugging Face folder, or in the mmproj file beside a GGUF file; None for a model of text.

    Raises ModelError for a configuration that cannot be served.
    """
    source = ModelSource.of(model)
    path = source.path
    if path.is_dir():
        config = source.config
        family = find_hf_family(config)
        if family is None or not family.has_tower(config) or (vision := vision_family(family)) is None:
            return None
        name = family.name  # families may share a tower
        return _checked(lambda: replace(vision.read_hf(config, path), family=name), path)
    file = beside(path) if is_gguf(path) else None
    return None if file is None else _checked(lambda: read_mmproj(file, path), file)


def _checked(read: Callable[[], VisionModel], where: Path) -> VisionModel:
    with config_errors(str(where), " of the vision tower"):
        model = read()
    _check(model.spec, str(where))
    return model


def _check(spec: VisionSpec, where: str) -> None:
    for name in ("width", "layers", "heads", "intermediate", "patch", "out", "merge", "temporal"):
        if getattr(spec, name) < 1:
            raise ModelError(f"{where}: {name} of the vision tower must be positive, it is {getattr(spec, name)}")
    if spec.width % spec.heads:
        raise ModelError(f"{where}: a vision tower {spec.width} wide cannot have {spec.heads} heads")
    fixed = spec.preprocess.mode != "dynamic"
    if fixed and (spec.preprocess.size < spec.patch or spec.preprocess.size % spec.patch):
        raise ModelError(f"{where}: images of {spec.preprocess.size} pixels cannot be cut into patches of {spec.patch}")
    if fixed and spec.grid % spec.merge:
        raise ModelError(f"{where}: {spec.grid} x {spec.grid} patches cannot be merged {spec.merge} by {spec.merge}")
    if spec.queries and (spec.query_heads < 1 or spec.out % spec.query_heads):
        raise ModelError(f"{where}: a resampler {spec.out} wide cannot have {spec.query_heads} heads")
    if not fixed and (spec.window < 0 or spec.head_dim % 4):
        raise ModelError(
            f"{where}: window {spec.window} or head size {spec.head_dim} of the vision tower does not fit its patches"
        )
    if not fixed and spec.kind != "gemma4" and isqrt(spec.positions) ** 2 != spec.positions:
        raise ModelError(f"{where}: the vision tower's {spec.positions} positions are no square")
    if any(not 0 <= layer < spec.layers for layer in spec.deepstack):
        raise ModelError(f"{where}: DeepStack layers {list(spec.deepstack)} lie outside a tower of {spec.layers}")
    if not all(0 <= token < spec.vocab for token in spec.row_ends):
        raise ModelError(f"{where}: the vocabulary of {spec.vocab} tokens lacks the tokens {spec.row_ends} of images")
