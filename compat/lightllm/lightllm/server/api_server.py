"""`python -m lightllm.server.api_server --model_dir MODEL ...`: LightLLM's command line, served by lightllm_mp.

A launcher of LightLLM (LazyLLM, for example) waits for a line with "Uvicorn running on" and takes a line that begins
with "ERROR:" for the end. So the former is printed when the server serves, the latter when it cannot.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from msgspec.structs import replace

from lightllm.server.end_ids import ordinary
from lightllm_mp.cli import serve
from lightllm_mp.cli.flags import resolve
from lightllm_mp.config import Config
from lightllm_mp.errors import EngineError

DEFAULTS = ("--clamp-max-total-token-num=true", "--no-skipping-special-tokens=true")
"""What LightLLM does and `lightllm-mp serve` does not; the command line may say otherwise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal stops the server. Returns the exit codes of `lightllm-mp serve`."""
    words = sys.argv[1:] if argv is None else argv
    try:
        config, notes = resolve([*DEFAULTS, *words], os.environ)
    except EngineError as error:
        _say(f"ERROR:    {error.message}")
        return serve.EXIT_CONFIG
    for note in notes:
        _say(f"WARNING:  {note}")
    config = _without_text_ends(config)
    code = serve.main(config, on_serving=lambda url: _say(f"INFO:     Uvicorn running on {url} (Press CTRL+C to quit)"))
    if code:
        _say(f"ERROR:    the server ended with exit code {code}; the lines before say why")
    return code


def _without_text_ends(config: Config) -> Config:
    """Without the values of --eos_id that are ordinary text of the model. LazyLLM sends 2 for every model, which is "#"
    for many of them."""
    model = config.model
    text = ordinary(model.model_dir, model.eos_id) if model.model_dir and model.eos_id else set()
    if not text:
        return config
    _say(f"WARNING:  --eos-id {' '.join(map(str, sorted(text)))} is ignored: it is ordinary text of this model")
    ends = tuple(id_ for id_ in model.eos_id if id_ not in text)
    return replace(config, model=replace(model, eos_id=ends))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
