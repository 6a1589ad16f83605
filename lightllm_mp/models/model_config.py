"""Reads a checkpoint's configuration into a `ModelSpec`. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.language_model_path import language_half
from lightllm_mp.models.checkpoint.quant_config import packing_of
from lightllm_mp.models.families import Family, by_gguf_architecture, by_hf_config
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys
from lightllm_mp.models.spec import ModelSpec

MAX_CONFIG_BYTES = 16 << 20


def read_model_config(path: Path | str) -> ModelSpec:
    """The spec of a Hugging Face folder, of a `.gguf` file, or of the language model that a folder names.

    Raises ModelError when the path, its configuration or its architecture cannot be served.
    """
    path = language_half(Path(path))
    if path.is_dir():
        return hf_model(path)[1]
    if path.is_file():
        return gguf_model(path)[1]
    raise ModelError(f"{path}: no such model folder or file")


def hf_model(folder: Path) -> tuple[Family, ModelSpec]:
    """Family and spec of a folder with a `config.json`."""
    config = read_json(folder / "config.json")
    family = by_hf_config(config, where=str(folder))
    packing_of(config, str(folder))
    generation = folder / "generation_config.json"
    if generation.is_file():
        config["generation_config"] = read_json(generation)
    return family, _mapped(family.read_hf, config, str(folder / "config.json"))


def gguf_model(path: Path) -> tuple[Family, ModelSpec, GGUFKeys]:
    """Family, spec and keys of a GGUF file."""
    from lightllm_mp.models.checkpoint.gguf import read_gguf  # loads the gguf library, which folders do not need

    keys = GGUFKeys(read_gguf(path))
    metadata = keys.file.metadata
    if (parts := metadata.get("split.count", 1)) != 1:
        raise ModelError(f"{path}: it is one of {parts} parts of a model; join them with llama-gguf-split --merge")
    family = by_gguf_architecture(metadata.get("general.architecture"), where=str(path))
    assert family.read_gguf is not None
    return family, _mapped(family.read_gguf, keys, str(path)), keys


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size, or ModelError."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelError(f"{path}: the file is larger than {MAX_CONFIG_BYTES} bytes")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the file is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: the file does not hold a JSON object")
    return value


@contextmanager
def config_errors(where: str, of: str = "") -> Iterator[None]:
    """Turns absent keys and values of a wrong type (`of`: of what) into a ModelError of one line that names `where`."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{where}: {error.message}") from error
    except KeyError as error:
        raise ModelError(f"{where}: key {error}{of} is missing") from error
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError) as error:
        raise ModelError(f"{where}: a value{of} cannot be used ({error})") from error


def _mapped(mapping: Callable[[Any], ModelSpec], source: Any, where: str) -> ModelSpec:
    with config_errors(where):
        spec = mapping(source)
    _check(spec, where)
    return spec


def _check(spec: ModelSpec, where: str) -> None:
    for name in ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "max_context"):
        if getattr(spec, name) < 1:
            raise ModelError(f"{where}: {name} must be positive, it is {getattr(spec, name)}")
    if spec.heads % spec.kv_heads:
        raise ModelError(f"{where}: {spec.heads} heads are not a multiple of {spec.kv_heads} key-value heads")
    if spec.rope is not None and (spec.rope.dim % 2 or not 0 < spec.rope.dim <= spec.head_dim):
        raise ModelError(f"{where}: rotary dimension {spec.rope.dim} does not fit heads of {spec.head_dim}")
    if spec.window is not None and spec.window < 1:
        raise ModelError(f"{where}: sliding window {spec.window} must be positive")
