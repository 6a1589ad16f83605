"""Checks that hold for every error that a client sees."""

from __future__ import annotations

from lightllm_mp.errors import EngineError


def check_refusal(error: EngineError) -> None:
    """The error is the client's and short: it repeats nothing of a large request."""
    assert 400 <= error.status < 500, error
    assert len(error.message.encode()) < 400
    assert error.param is None or len(error.param) < 100
