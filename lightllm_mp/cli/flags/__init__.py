"""Flags, environment and files: how a `Config` is made from what a user says."""

from lightllm_mp.cli.flags.resolve import resolve

__all__ = ["resolve"]
