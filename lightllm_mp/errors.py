"""Errors that reach a user. Each class has its HTTP status and a stable code.

A request error is data: the actor that finds it raises it, an `ErrorInfo` message carries it to the front, and the
front answers the client. Any other exception is a bug: it crashes its actor with a traceback, and the supervisor
starts that actor again.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base class of the errors that this package raises on purpose. `message` is safe to show to a client."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(EngineError):
    """The client's request is wrong. A retry does not help."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class PromptTooLong(InvalidRequest):
    """The prompt does not fit the context or the KV memory."""

    code = "prompt_too_long"


class InvalidGuide(InvalidRequest):
    """A constraint on the answer (JSON schema, regex, grammar) is wrong, unsupported, too complex, or at a dead end."""

    code = "invalid_guide"


class PreviousNotFound(InvalidRequest):
    """The stored response that a request goes on with is not here, as OpenAI's API says it."""

    code = "previous_response_not_found"


class Unauthorized(EngineError):
    status = 401
    type = "authentication_error"
    code = "unauthorized"


class Forbidden(EngineError):
    """The key is valid but does not permit this route."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class NotFound(EngineError):
    """The server does not know what the client names."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class PayloadTooLarge(InvalidRequest):
    status = 413
    code = "payload_too_large"


class UnsupportedMedia(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class Overloaded(EngineError):
    """The server holds as many live requests as it may. `retry_after`: seconds, from the measured drain rate."""

    status = 429
    type = "overloaded_error"
    code = "overloaded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueTimeout(Overloaded):
    """The request waited for --max-queue-seconds and its prefill did not begin."""

    status = 503
    code = "queue_timeout"


class DeadlineExceeded(EngineError):
    """The client's deadline for its request has passed."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class SlowReader(EngineError):
    """A streaming client reads too slowly."""

    status = 408
    type = "timeout_error"
    code = "slow_reader"


class Unavailable(EngineError):
    """The server is starting, draining or recovering from a crash."""

    status = 503
    type = "unavailable_error"
    code = "unavailable"


class InvalidLogits(EngineError):
    """The model computed logits, or a score, that are not finite numbers, so no token can be chosen."""

    code = "invalid_logits"


class ConfigError(EngineError):
    """A flag, a file or an environment variable has a wrong value. Reported before anything starts; exit code 2."""

    code = "config_error"


class ModelError(EngineError):
    """A checkpoint cannot be served: missing, corrupt or unsupported. Reported before the port opens."""

    code = "model_error"


class NoTokenizer(ModelError):
    """The checkpoint has no tokenizer that can be read. The server accepts token ids only."""

    code = "no_tokenizer"


class StartupError(EngineError):
    """A process did not start. Exit code 69."""

    code = "startup_error"
