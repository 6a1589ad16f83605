"""Checks the files of a model before any actor starts. The check runs in a child process, so that the supervisor, which
lives as long as the server, does not keep the memory of the libraries that the check loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from lightllm_mp.actors.runtime.launch_spec import child_environment
from lightllm_mp.errors import ConfigError, EngineError, ModelError, StartupError
from lightllm_mp.model_description import ModelDescription, describe, from_plain, to_plain
from lightllm_mp.model_files.model_source import ModelSource


def check_model(
    path: Path,
    *,
    ranks: int,
    weights: bool,
    images: bool,
    task: str = "auto",
    score_tokens: tuple[str, ...] = (),
    ep: int = 1,
) -> ModelDescription:
    """Returns the model's description. ModelError if the files cannot be served, ConfigError if the model cannot be
    split into `ranks`, or its experts into `ep` parts. Without `weights` it checks only the configuration; with
    `images` it also reads the vision half."""
    from lightllm_mp.models.parallel.sharding import check_ranks

    found = describe(ModelSource(path, task, score_tokens), weights=weights, images=images)
    check_ranks(found.spec, ranks, ep)
    return found


def check_model_apart(
    path: Path,
    *,
    ranks: int,
    weights: bool,
    images: bool,
    task: str = "auto",
    score_tokens: tuple[str, ...] = (),
    ep: int = 1,
) -> ModelDescription:
    """Runs `check_model` in a child process and raises its errors. StartupError if the child itself fails."""
    asked = msgspec.json.encode(Question(str(path), ranks, weights, images, task, score_tokens, ep)).decode()
    command = [sys.executable, "-m", __name__, asked]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=child_environment(), check=False)
    if done.returncode:
        raise StartupError(f"the process that checks the model's files ended with code {done.returncode}")
    reply = msgspec.msgpack.decode(done.stdout, type=Reply, dec_hook=from_plain)
    if reply.description is None:
        raise ConfigError(reply.message, param=reply.param) if reply.is_config else ModelError(reply.message)
    return reply.description


class Question(msgspec.Struct):
    """The arguments of `check_model`."""

    path: str
    ranks: int
    weights: bool
    images: bool
    task: str
    score_tokens: tuple[str, ...]
    ep: int


class Reply(msgspec.Struct):
    """The result of the child process: a description or an error."""

    description: ModelDescription | None = None
    message: str = ""
    is_config: bool = False
    param: str | None = None


def main() -> None:
    asked = msgspec.json.decode(sys.argv[1], type=Question)
    try:
        found = check_model(Path(asked.path), **{name: getattr(asked, name) for name in Question.__struct_fields__[1:]})
        reply = Reply(found)
    except EngineError as error:
        reply = Reply(None, error.message, isinstance(error, ConfigError), error.param)
    sys.stdout.buffer.write(msgspec.msgpack.encode(reply, enc_hook=to_plain))


if __name__ == "__main__":
    main()
