"""aiohttp's connection plus three timers that it lacks: for half-sent headers, for clients that do not read, and for an
end that loses no request."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from lightllm_mp.actors.http.error_responses import error_response
from lightllm_mp.errors import EngineError, InvalidRequest

QUIET = 1.0
"""Seconds for which a connection must be idle before a server that ends closes it."""


class HeadersTooLarge(InvalidRequest):
    """A request's head has a line that is too long or too many lines."""

    status = 431
    code = "headers_too_large"


class Connection(web.RequestHandler):
    """One client connection.

    A request's headers must arrive within `header_timeout` seconds of its first byte (first request: of the start of
    the connection). A connection whose full write buffer does not shrink for `write_timeout` seconds is aborted.
    """

    def __init__(self, server: web.Server, *, header_timeout: float, write_timeout: float, **options: Any) -> None:
        super().__init__(server, **options)
        self._header_seconds, self._write_seconds = header_timeout, write_timeout
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unread = 0
        """Bytes in the write buffer when the write timer started."""
        self._busy = False
        self._pipelined = False
        """Bytes of the next request came while this one was served."""
        self._arriving = False
        """Bytes of a request have come, its headers are not complete."""
        self._ending = False
        self._quiet_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """It is open and waits for a request, of which nothing has come."""
        return self.transport is not None and not (self._busy or self._arriving)

    def close_when_quiet(self) -> None:
        """Close once it was idle for QUIET seconds. A client may be sending a request just now: it is still served."""
        self._ending = True
        if not self._busy:
            self._start_quiet_timer()

    def headers_complete(self) -> None:
        """The middleware calls this: the headers are complete, the request is being served."""
        self._busy, self._pipelined, self._arriving = True, False, False
        self._stop_header_timer()
        self._stop_quiet_timer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        if self._busy:
            self._pipelined = True
        else:
            self._arriving = True
            self._start_header_timer()
        super().data_received(data)

    async def finish_response(
        self, request: Any, response: web.StreamResponse, *rest: Any
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(response, web.HTTPException):  # an unknown Expect, which no middleware sees
            response = error_response(_judged(response.status, None))
        try:
            return await super().finish_response(request, response, *rest)
        finally:
            self._busy = False
            if self._ending:
                self._start_quiet_timer()
            if self._pipelined:
                self._arriving = True
                self._start_header_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_header_timer()
        self._stop_write_timer()
        self._stop_quiet_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The error response to what the parser or aiohttp refuses; it does not repeat the client's bytes."""
        if isinstance(exc, UnicodeEncodeError) and isinstance(request, web.Request) and "Expect" in request.headers:
            status = 417  # aiohttp cannot encode the header to repeat it
        if isinstance(exc, MemoryError):
            raise exc  # no response; aiohttp passes it to log_exception
        if status >= 500:
            self.logger.error("unhandled error", exc_info=exc)
        response = error_response(_judged(status, exc))
        response.force_close()
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Log an unhandled error; aiohttp then closes the connection. A MemoryError goes to the loop's handler, which
        decides whether this process can go on."""
        error = options.get("exc_info")
        if isinstance(error, MemoryError):
            self._loop.call_exception_handler({"message": "no memory for a request", "exception": error})
        else:
            super().log_exception(*args, **options)

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            loop = asyncio.get_running_loop()
            self._header_timer = loop.call_later(self._header_seconds, self.force_close)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _start_quiet_timer(self) -> None:
        self._stop_quiet_timer()
        self._quiet_timer = asyncio.get_running_loop().call_later(QUIET, self._close_if_quiet)

    def _stop_quiet_timer(self) -> None:
        if self._quiet_timer is not None:
            self._quiet_timer.cancel()
            self._quiet_timer = None

    def _close_if_quiet(self) -> None:
        if self._arriving or self._more_arrived():
            self._start_quiet_timer()
        else:
            self.force_close()  # `close` would leave an idle transport open

    def _more_arrived(self) -> bool:
        """Bytes wait in the kernel. To close then is to reset the connection."""
        if self.transport is None or self.transport.is_closing():
            return False
        sock = self.transport.get_extra_info("socket")
        (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))
        return bool(count)

    def _start_write_timer(self) -> None:
        if self.transport is not None:
            self._unread = self.transport.get_write_buffer_size()
            self._write_timer = asyncio.get_running_loop().call_later(self._write_seconds, self._check_reader)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _check_reader(self) -> None:
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() < self._unread:
            self._start_write_timer()
        else:
            self.transport.abort()


def _judged(status: int, error: BaseException | None) -> EngineError:
    if isinstance(error, LineTooLong):
        return HeadersTooLarge("a line of the request's head is too long")
    judged: EngineError = InvalidRequest("malformed HTTP request") if status < 500 else EngineError("internal error")
    judged.status = status
    return judged
