"""Reads a checkpoint's configuration into a `ModelSpec`. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightllm_mp.errors import ModelError
from lightllm_mp.model_files.model_source import ModelSource, read_json
from lightllm_mp.models.checkpoint.mxfp4 import METHOD, is_mxfp4
from lightllm_mp.models.checkpoint.quant_config import quant_config_of
from lightllm_mp.models.families import Family, by_gguf_architecture, by_hf_config
from lightllm_mp.models.families.common.gguf_rules import GGUFKeys
from lightllm_mp.models.families.common.pooling import with_pooling
from lightllm_mp.models.spec import ModelSpec, MoeSpec


def read_model_config(model: ModelSource | Path | str) -> ModelSpec:
    """The spec of a Hugging Face folder, of a `.gguf` file, or of the language model that a folder names.

    Raises ModelError when the path, its configuration or its architecture cannot be served.
    """
    source = ModelSource.of(model)
    if source.language.is_dir():
        return hf_model(source)[1]
    if source.language.is_file():
        if source.task != "auto" or source.score_tokens:
            flag = "--score-tokens" if source.score_tokens else f"--task {source.task}"
            raise ModelError(f"{source.language}: {flag} needs a Hugging Face folder")
        return gguf_model(source.language)[1]
    raise ModelError(f"{source.language}: no such model folder or file")


def hf_model(model: ModelSource | Path) -> tuple[Family, ModelSpec]:
    """Family and spec of a folder with a `config.json`."""
    source = ModelSource.of(model)
    folder, config = source.path, dict(source.config)
    family = by_hf_config(config, where=str(folder))
    quant_config_of(config, str(folder))
    generation = folder / "generation_config.json"
    if generation.is_file():
        config["generation_config"] = read_json(generation)
    spec = _mapped(family.read_hf, config, str(folder / "config.json"))
    if is_mxfp4(config) and spec.file_dtype != METHOD:
        raise ModelError(f"{folder}: quant_method {METHOD!r} is not supported for the family {family.name}")
    with config_errors(str(folder)):
        return family, with_pooling(spec, config, folder, source.task, source.score_tokens)


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
    for kind in spec.kinds:
        if min(kind.kv_heads, kind.head_dim) < 1 or kind.heads % kind.kv_heads:
            raise ModelError(f"{where}: {kind.heads} heads are not a multiple of {kind.kv_heads} key-value heads")
    widest = max(kind.head_dim for kind in spec.kinds)
    if spec.rope is not None and (spec.rope.dim % 2 or not 0 < spec.rope.dim <= widest):
        raise ModelError(f"{where}: rotary dimension {spec.rope.dim} does not fit heads of {widest}")
    if spec.moe is not None:
        _check_routing(spec.moe, where)
    if not spec.causal and (spec.window is not None or spec.alibi or spec.pooling is None):
        raise ModelError(f"{where}: attention in both directions is served for encoders without windows and biases")
    if spec.window is not None and spec.window < 1:
        raise ModelError(f"{where}: sliding window {spec.window} must be positive")


def _check_routing(moe: MoeSpec, where: str) -> None:
    each = moe.experts // max(moe.groups, 1)
    if moe.groups < 1 or moe.experts % moe.groups or each < moe.group_best:
        raise ModelError(f"{where}: {moe.experts} experts cannot be divided into {moe.groups} groups")
    if not (0 < moe.top_groups <= moe.groups and 0 < moe.top_k <= moe.top_groups * each):
        groups = f"{moe.top_groups} of {moe.groups} groups of {each}"
        raise ModelError(f"{where}: {moe.top_k} experts cannot be chosen from {groups}")
