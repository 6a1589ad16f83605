"""Makes a `Config` from the command line, environment variables and a file."""

from lightllm_mp.cli.flags.resolve import resolve

__all__ = ["resolve"]
