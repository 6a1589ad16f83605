"""Looks at a model's files before anything starts, in a process of its own: the libraries and the memory that this
takes are gone with it, while the supervisor lives as long as the server."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import msgspec

from lightllm_mp.errors import ConfigError, EngineError, ModelError, StartupError


def check_model(path: Path, *, ranks: int, dummy: bool) -> None:
    """Raises ModelError for files that cannot be served, ConfigError for `ranks` that the model cannot be cut into.
    `dummy`: there are no weights to look at."""
    from lightllm_mp.models.config import read_model_config
    from lightllm_mp.models.headers import check_weights
    from lightllm_mp.models.sharding import check_ranks

    check_ranks(read_model_config(path) if dummy else check_weights(path), ranks)


def check_model_apart(path: Path, *, ranks: int, dummy: bool) -> None:
    """As `check_model`. Call it while this process has one thread. StartupError when the other process fails."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(_tell(here, path, ranks, dummy))
    os.close(here)
    with os.fdopen(there, "rb") as answer:
        said = answer.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise StartupError(f"the process that looks at the model's files ended with {status}")
    if said:
        is_config, message, param = msgspec.msgpack.decode(said, type=tuple[bool, str, str | None])
        raise ConfigError(message, param=param) if is_config else ModelError(message)


def _tell(pipe: int, path: Path, ranks: int, dummy: bool) -> int:
    """The other process: writes what is wrong, or nothing. Returns its exit code."""
    try:
        check_model(path, ranks=ranks, dummy=dummy)
    except EngineError as error:
        os.write(pipe, msgspec.msgpack.encode((isinstance(error, ConfigError), error.message, error.param)))
    except KeyboardInterrupt:
        return 1
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0
