"""Checks the files of a model before any actor starts. The check runs in a child process: it imports torch, and the
supervisor, which lives as long as the server, shall not keep that memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from lightllm_mp.errors import ConfigError, EngineError, ModelError, StartupError


def check_model(path: Path, *, ranks: int, dummy: bool) -> None:
    """ModelError if the files cannot be served, ConfigError if the model cannot be split into `ranks`. `dummy`: the
    folder has no weights, so only its configuration is checked."""
    from lightllm_mp.models.checkpoint.preflight import check_weights
    from lightllm_mp.models.model_config import read_model_config
    from lightllm_mp.models.parallel.sharding import check_ranks

    check_ranks(read_model_config(path) if dummy else check_weights(path), ranks)


def check_model_apart(path: Path, *, ranks: int, dummy: bool) -> None:
    """Runs `check_model` in a child process and raises its errors. StartupError if the child itself fails."""
    asked = msgspec.json.encode((str(path), ranks, dummy)).decode()
    done = subprocess.run([sys.executable, "-m", __name__, asked], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise StartupError(f"the process that checks the model's files ended with code {done.returncode}")
    if done.stdout:
        is_config, message, param = msgspec.msgpack.decode(done.stdout, type=tuple[bool, str, str | None])
        raise ConfigError(message, param=param) if is_config else ModelError(message)


def main() -> None:
    """The child process: writes the error to stdout, or nothing."""
    path, ranks, dummy = msgspec.json.decode(sys.argv[1], type=tuple[str, int, bool])
    try:
        check_model(Path(path), ranks=ranks, dummy=dummy)
    except EngineError as error:
        said = msgspec.msgpack.encode((isinstance(error, ConfigError), error.message, error.param))
        sys.stdout.buffer.write(said)


if __name__ == "__main__":
    main()
