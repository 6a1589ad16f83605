"""The report of `inspect` on a model folder or GGUF file: what a server would do with it on this machine."""

from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import Any

from msgspec import Struct

from lightllm_mp.cli.inspect.machine import Machine, this_machine
from lightllm_mp.config import RUN_AHEAD, STEP_TOKENS, EngineConfig
from lightllm_mp.engine.state_sizing import state_places
from lightllm_mp.engine.window_sizing import others, window_tokens, windowed_limits
from lightllm_mp.errors import EngineError, NoTokenizer
from lightllm_mp.model_files.model_source import ModelSource
from lightllm_mp.models.checkpoint.preflight import check_weights
from lightllm_mp.models.checkpoint.quant_config import quant_config_of
from lightllm_mp.models.checkpoint.weight_files import weight_files
from lightllm_mp.models.checkpoint.weight_rules import Param
from lightllm_mp.models.model_config import gguf_model, hf_model
from lightllm_mp.models.spec import ModelSpec
from lightllm_mp.vision.vision_config import read_vision

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
MEDIA = ("vision_config", "visual", "mm_vision_tower", "audio_config")


class ModelReport(Struct, kw_only=True):
    """Sizes are bytes. A model with `problems` cannot be served; `notes` are information."""

    path: str
    family: str
    architecture: str
    kind: str
    """"text", "embedding" or "reward"."""
    parameters: int
    file_bytes: int
    file_dtype: str
    data_type: str
    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    """Bytes of one sequence's state in layers of linear attention; 0 if the model has none."""
    sequences: int
    """The most sequences at once whose states fit into memory."""
    max_context: int
    device: str
    free_bytes: int
    kv_tokens: int
    """Estimated number of KV slots that fit beside the weights."""
    window_tokens: int
    """The same for layers with a sliding window, if these have their own slots; 0 if all layers share slots."""
    tokenizer: str
    chat_template: bool
    eos_ids: tuple[int, ...]
    notes: list[str]
    problems: list[str]


def inspect(path: Path, *, data_type: str = "auto", machine: Machine | None = None) -> ModelReport:
    """ModelError if the configuration cannot be read or is not supported."""
    machine = machine or this_machine()
    notes: list[str] = []
    problems: list[str] = []
    source = ModelSource(path)
    if (apart := source.language) != path:
        notes.append(f"the language model is {apart}")
        notes += _media(source, {}, problems)
    elif path.is_file():
        notes += _media(source, {}, notes)  # a broken projector file beside the model leaves text
    spec, params, architecture, files = _gguf(source) if apart.is_file() else _folder(source, notes, problems)
    data_type = machine.data_type(spec) if data_type == "auto" else data_type
    parameters = sum(math.prod(param.shape) for param in params)
    weights, kv = parameters * WIDTHS[data_type], spec.kv_elements * WIDTHS[data_type]
    space_bytes = (spec.space_elements[0] * WIDTHS[data_type], spec.space_elements[1] * WIDTHS[data_type])
    tokenizer, template, eos = _tokenizer(path, notes, problems)
    room = machine.kv_room(weights, EngineConfig().mem_fraction)
    state = sum(map(operator.mul, spec.state_elements, (WIDTHS["float32"], WIDTHS[data_type])))
    rows, copies = state_places(EngineConfig(), room, state)
    room = max(0, room - (rows + 1 + copies) * state)
    if room < 2 * kv:
        problems.append("the weights leave no memory for a request")
    windows = windowed_limits(spec, STEP_TOKENS[machine.kind], RUN_AHEAD[machine.kind])
    near = window_tokens(EngineConfig(), room, space_bytes, windows, rows, spec.max_context)
    return ModelReport(
        path=str(path),
        family=spec.family,
        architecture=architecture,
        kind=_kind(spec),
        parameters=parameters,
        file_bytes=sum(file.stat().st_size for file in files),
        file_dtype=spec.file_dtype,
        data_type=data_type,
        weight_bytes=weights,
        kv_bytes_per_token=kv,
        state_bytes=state,
        sequences=rows,
        max_context=spec.max_context,
        device=machine.device,
        free_bytes=machine.free,
        kv_tokens=max(0, others(room, space_bytes, near)),
        window_tokens=near,
        tokenizer=tokenizer,
        chat_template=template,
        eos_ids=spec.eos_ids or eos,
        notes=notes,
        problems=problems,
    )


def _kind(spec: ModelSpec) -> str:
    if spec.pooling is None:
        return "text"
    return "embedding" if spec.pooling.task == "embed" else "reward"


def _gguf(source: ModelSource) -> tuple[ModelSpec, list[Param], str, list[Path]]:
    """Spec, weights, architecture and files of a GGUF file, or of a folder whose language model is a GGUF file."""
    half = source.language
    family, spec, keys = gguf_model(half)
    assert family.gguf_weights is not None
    check_weights(source)
    return spec, family.gguf_weights(spec, keys), str(keys.file.metadata["general.architecture"]), [half]


def _folder(
    source: ModelSource, notes: list[str], problems: list[str]
) -> tuple[ModelSpec, list[Param], str, list[Path]]:
    path, config = source.path, source.config
    family, spec = hf_model(source)
    params, packing = family.folder_weights(spec), quant_config_of(config, str(path))
    files: list[Path] = []
    try:
        files = weight_files(path)
        check_weights(source)
    except EngineError as error:
        problems.append(error.message)
    if packing is not None:
        notes.append(f"weights are quantised to {packing.bits} bits ({packing.method}); the sizes here are unpacked")
    if config.get("auto_map"):
        notes.append("the Python code of the folder is not used")
    notes += _media(source, config, problems)
    architecture = ", ".join(map(str, config.get("architectures") or ())) or str(config.get("model_type"))
    return spec, params, architecture, files


def _media(source: ModelSource, config: dict[str, Any], problems: list[str]) -> list[str]:
    try:
        if (pictures := read_vision(source)) is not None:
            return [f"images with --enable-multimodal ({pictures.spec.kind})"]
    except EngineError as error:
        problems.append(error.message)
        return []
    return ["images and audio are not supported; text is"] * any(config.get(name) for name in MEDIA)


def _tokenizer(path: Path, notes: list[str], problems: list[str]) -> tuple[str, bool, tuple[int, ...]]:
    """The kind of tokenizer, whether there is a chat template, and the end-of-sequence ids."""
    from lightllm_mp.text.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(path)
    except NoTokenizer:
        notes.append("there are no tokenizer files: requests must be token ids")
        return "none", False, ()
    except EngineError as error:
        problems.append(error.message)
        return "unreadable", False, ()
    kind = f"{type(tokenizer.backend.model).__name__}, {tokenizer.vocab_size:,} tokens"
    return kind, tokenizer.chat_template is not None, tuple(tokenizer.eos_ids)
