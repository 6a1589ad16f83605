"""Checks where traces go. The supervisor does it before it starts a process, so it imports no HTTP library."""

from __future__ import annotations

from importlib import import_module
from urllib.parse import urlsplit

from lightllm_mp.errors import ConfigError

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


def check_endpoint(endpoint: str | None) -> None:
    """ConfigError if traces cannot be sent there, or if the packages for it are missing."""
    if endpoint is None:
        return
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            f"--otlp-traces-endpoint {endpoint}: expected a URL of OTLP over HTTP, such as http://host:4318/v1/traces",
            param="otlp_traces_endpoint",
        )
    try:
        import_module(EXPORTER)
    except ImportError:
        raise ConfigError(
            "--otlp-traces-endpoint needs more packages: pip install 'lightllm-mp[tracing]'",
            param="otlp_traces_endpoint",
        ) from None
