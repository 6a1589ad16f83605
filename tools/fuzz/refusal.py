"""What every error that a client sees has in common."""

from __future__ import annotations

from lightllm_mp.errors import EngineError


def check_refusal(error: EngineError) -> None:
    """It is the client's, and short: nothing of a large request is repeated."""
    assert 400 <= error.status < 500, error
    assert len(error.message.encode()) < 400
    assert error.param is None or len(error.param) < 100
