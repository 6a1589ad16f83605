"""Looks at a model's files before anything starts, in a process of its own: the libraries and the memory that this
takes are gone with it, while the supervisor lives as long as the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from lightllm_mp.errors import ConfigError, EngineError, ModelError, StartupError


def check_model(path: Path, *, ranks: int, dummy: bool) -> None:
    """Raises ModelError for files that cannot be served, ConfigError for `ranks` that the model cannot be cut into.
    `dummy`: there are no weights to look at."""
    from lightllm_mp.models.checkpoint.preflight import check_weights
    from lightllm_mp.models.model_config import read_model_config
    from lightllm_mp.models.parallel.sharding import check_ranks

    check_ranks(read_model_config(path) if dummy else check_weights(path), ranks)


def check_model_apart(path: Path, *, ranks: int, dummy: bool) -> None:
    """As `check_model`. StartupError when the other process fails."""
    asked = msgspec.json.encode((str(path), ranks, dummy)).decode()
    done = subprocess.run([sys.executable, "-m", __name__, asked], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise StartupError(f"the process that looks at the model's files ended with {done.returncode}")
    if done.stdout:
        is_config, message, param = msgspec.msgpack.decode(done.stdout, type=tuple[bool, str, str | None])
        raise ConfigError(message, param=param) if is_config else ModelError(message)


def main() -> None:
    """The other process: writes what is wrong, or nothing."""
    path, ranks, dummy = msgspec.json.decode(sys.argv[1], type=tuple[str, int, bool])
    try:
        check_model(Path(path), ranks=ranks, dummy=dummy)
    except EngineError as error:
        said = msgspec.msgpack.encode((isinstance(error, ConfigError), error.message, error.param))
        sys.stdout.buffer.write(said)


if __name__ == "__main__":
    main()
