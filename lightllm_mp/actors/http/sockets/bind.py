"""The listening socket and its URL. Imports no HTTP library, so that a taken port is found before anything starts."""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache

from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import StartupError

BACKLOG = 1024
"""Most connections that wait to be accepted."""


def bind(config: HttpConfig) -> socket.socket:
    """The bound socket. Raises StartupError for a taken port before any model is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listen = socket.socket(family, socket.SOCK_STREAM)
        listen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if config.reuse_port:
            listen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listen.bind(address)
        if not config.reuse_port:  # a shared port gets connections once it listens: listen when all is ready
            listen.listen(BACKLOG)
    except OSError as error:
        raise StartupError(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}") from None
    return listen


def url_of(listen: socket.socket, *, secure: bool) -> str:
    host, port = listen.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@lru_cache(64)
def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
