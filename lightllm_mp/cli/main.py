"""The command `lightllm-mp`. It imports a command only when it runs it, so help and errors appear at once."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from lightllm_mp import __version__
from lightllm_mp.cli.safe_text import printable
from lightllm_mp.config import SupervisorConfig
from lightllm_mp.errors import ConfigError, EngineError

WELCOME = """\
lightllm-mp serve                     a small model and a page to chat with it, on http://127.0.0.1:8000/
lightllm-mp serve --model-dir PATH    a model of yours: Hugging Face folder or .gguf file (lightllm-mp pull ORG/NAME)
lightllm-mp chat                      chat in the terminal, with images
lightllm-mp doctor                    whether this machine can serve, and what to do if not
lightllm-mp --help                    all commands
"""

USAGE = """\
usage: lightllm-mp COMMAND [flags]

Commands:
  serve       serve a model over HTTP (without flags: a small default model on 127.0.0.1:8000)
  chat        chat in the terminal with a running server, or with one of its own
  pull        download a model from a Hugging Face hub, or the default model
  inspect     describe a model folder or GGUF file without loading it
  doctor      check whether this machine can serve, and name the remedy if it cannot
  bench       send a workload to a running server and report throughput and latencies
  docker      print or run the command that serves a model in a container
  health      ask a server of this machine whether it is healthy (a container's health check)
  completion  print the completion script of a shell: bash, zsh or fish

`lightllm-mp COMMAND --help` lists the flags of a command; `lightllm-mp --version` prints the version.
"""

EXIT_FAILED, EXIT_CONFIG, EXIT_INTERRUPTED = 1, 2, 130


def serve(argv: Sequence[str]) -> int:
    """Run a server until a signal stops it. Returns its exit code."""
    from lightllm_mp.cli.flags import resolve

    config, notes = resolve(argv, os.environ)
    _tell(notes, config.supervisor)
    from lightllm_mp.cli.serve import main as run

    return run(config)


def _tell(notes: list[str], settings: SupervisorConfig) -> None:
    if settings.log_json and notes:
        from lightllm_mp.actors.runtime.logs import PACKAGE, set_up_logging

        set_up_logging(settings.log_level, json=True, actor="supervisor")
    for note in notes:
        if settings.log_json:
            logging.getLogger(PACKAGE).info("%s", note)
        else:
            print(f"note: {note}", file=sys.stderr)


def chat(argv: Sequence[str]) -> int:
    """Chat in the terminal. Returns 1 if a question of the command line is not answered."""
    from lightllm_mp.cli.chat.command import main as run

    return run(argv)


def pull(argv: Sequence[str]) -> int:
    """Download a model."""
    from lightllm_mp.cli.pull import main as run

    return run(argv)


def completion(argv: Sequence[str]) -> int:
    """Print a shell's completion script."""
    from lightllm_mp.cli.completion import main as run

    return run(argv)


def bench(argv: Sequence[str]) -> int:
    """Measure a running server. Returns 1 if a request failed."""
    from lightllm_mp.cli.bench.command import main as run

    return run(argv)


def inspect(argv: Sequence[str]) -> int:
    """Describe a model. Returns 1 if it cannot be served."""
    from lightllm_mp.cli.inspect.command import main as run

    return run(argv)


def doctor(argv: Sequence[str]) -> int:
    """Check this machine. Returns 1 if a check failed."""
    from lightllm_mp.cli.doctor.command import main as run

    return run(argv)


def docker(argv: Sequence[str]) -> int:
    """Print the command that serves in a container, or become it."""
    from lightllm_mp.cli.docker import main as run

    return run(argv)


def health(argv: Sequence[str]) -> int:
    """Ask a server of this machine. Returns 1 if it is not healthy."""
    from lightllm_mp.cli.health import main as run

    return run(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": serve,
    "chat": chat,
    "pull": pull,
    "inspect": inspect,
    "doctor": doctor,
    "bench": bench,
    "docker": docker,
    "health": health,
    "completion": completion,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0: done; 1: failed; 2: wrong flags or settings; 130: interrupted. `serve` has more."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except EngineError as error:
        print(f"lightllm-mp: error: {printable(error.message)}", file=sys.stderr)
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # `lightllm-mp serve --help | head` closes the pipe early. The flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _dispatch(words: list[str]) -> int:
    if not words:
        print(WELCOME, end="", file=sys.stderr)
        return EXIT_CONFIG
    command, *rest = words
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command in ("--version", "version"):
        print(f"lightllm-mp {__version__}")
        return 0
    if command not in COMMANDS:
        from lightllm_mp.cli.flags.parser import nearest

        kind = "flag" if command.startswith("-") else "command"
        raise ConfigError(f"unknown {kind} {command}{nearest(command, COMMANDS)}; see lightllm-mp --help")
    return COMMANDS[command](rest)
