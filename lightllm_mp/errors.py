"""Errors that reach a user, each with the HTTP status and the stable code it is reported with.

A request error is data: it is raised where it is found, carried to the front as an `ErrorInfo` message and answered.
Anything else is a bug: it crashes its actor with a traceback, and the supervisor handles it.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of everything this package raises on purpose. `message` is safe to show to a client."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(EngineError):
    """The client's request is wrong; sending it again does not help."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class PromptTooLong(InvalidRequest):
    """The prompt does not fit the context or the KV memory."""

    code = "prompt_too_long"


class Unauthorized(EngineError):
    status = 401
    type = "authentication_error"
    code = "unauthorized"


class Forbidden(EngineError):
    """The key is valid and does not reach this far."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class PayloadTooLarge(InvalidRequest):
    status = 413
    code = "payload_too_large"


class UnsupportedMedia(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class Overloaded(EngineError):
    """More live requests than the server holds. `retry_after` is in seconds, from the measured drain rate."""

    status = 429
    type = "overloaded_error"
    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueTimeout(Overloaded):
    """The request waited as long as it may and was not begun."""

    status = 503
    code = "queue_timeout"


class DeadlineExceeded(EngineError):
    """The time that the client gave its request is over."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class SlowReader(EngineError):
    """A streaming consumer fell too far behind."""

    status = 408
    type = "timeout_error"
    code = "slow_reader"


class Unavailable(EngineError):
    """The server is starting, draining or repairing itself."""

    status = 503
    type = "unavailable_error"
    code = "unavailable"


class ConfigError(EngineError):
    """A flag, file or environment value is wrong. Reported before anything is started; exit code 2."""

    code = "config_error"


class ModelError(EngineError):
    """A checkpoint cannot be served: missing, corrupt or unsupported. Reported before the port opens."""

    code = "model_error"


class NoTokenizer(ModelError):
    """The checkpoint has no tokenizer files that can be read; it can serve token ids only."""

    code = "no_tokenizer"


class StartupError(EngineError):
    """A process did not come up. Exit code 69."""

    code = "startup_error"
