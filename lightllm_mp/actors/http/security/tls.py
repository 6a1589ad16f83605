"""The TLS context of the HTTPS port."""

from __future__ import annotations

import ssl
from pathlib import Path

from lightllm_mp.config import HttpConfig
from lightllm_mp.errors import ConfigError


def server_context(config: HttpConfig) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the configured certificate; None: plain HTTP. Raises ConfigError with one line."""
    if config.ssl_certfile is None:
        if config.ssl_keyfile is not None:
            raise ConfigError("--ssl-keyfile without --ssl-certfile", param="ssl_certfile")
        return None
    _check_readable("--ssl-certfile", config.ssl_certfile)
    if config.ssl_keyfile is not None:
        _check_readable("--ssl-keyfile", config.ssl_keyfile)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password=_no_password)
    except ssl.SSLError as error:
        raise ConfigError(f"{_flags(config)}: {_reason(error)}", param="ssl_certfile") from None
    return context


def _check_readable(flag: str, file: str) -> None:
    try:
        with Path(file).open("rb") as opened:
            opened.read(1)
    except OSError as error:
        raise ConfigError(f"{flag} {file}: {error.strerror or type(error).__name__}", param=flag) from None


def _no_password() -> str:
    raise ConfigError("--ssl-keyfile: the key is encrypted; a server needs one that is not", param="ssl_keyfile")


def _flags(config: HttpConfig) -> str:
    key = f" and --ssl-keyfile {config.ssl_keyfile}" if config.ssl_keyfile else ""
    return f"--ssl-certfile {config.ssl_certfile}{key}"


def _reason(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    if error.reason in ("NO_START_LINE", "PEM_LIB") or error.reason is None:
        return "not a certificate and its private key in PEM format"
    return error.reason.replace("_", " ").lower()
