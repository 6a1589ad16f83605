"""Request errors on their way from the actor that finds them to the front that answers."""

from __future__ import annotations

from lightllm_mp.errors import EngineError, InvalidRequest, PromptTooLong, Unavailable
from lightllm_mp.messages import ErrorInfo


def error_info(error: EngineError) -> ErrorInfo:
    """The wire form of a request error."""
    return ErrorInfo(error.status, error.message, error.type, error.code, error.param)


def rebuild(info: ErrorInfo) -> EngineError:
    """The error that `info` was made from, as near as this process knows it."""
    kind = next((k for k in (PromptTooLong, InvalidRequest, Unavailable) if k.code == info.code), EngineError)
    error = kind(info.message, param=info.param)
    error.status, error.type, error.code = info.status, info.type, info.code
    return error
