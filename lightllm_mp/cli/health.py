"""`lightllm-mp health`: asks a server on this machine whether it is healthy, for the health check of a container.

Without flags it asks the server of this container. It finds the port and the scheme in the flags, the environment and
the configuration file with which PID 1 was started.
"""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightllm_mp.cli.flags import resolve
from lightllm_mp.cli.flags.parser import Parser, parse
from lightllm_mp.config import HttpConfig

INIT_COMMAND = Path("/proc/1/cmdline")
SERVERS = ("serve", "lightllm.server.api_server")
"""Words of a command line that the flags of a server follow."""
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main(argv: Sequence[str]) -> int:
    """Print the server's answer. Returns 0 if it is healthy, 1 if it is not or does not answer."""
    space = parse(parser(), argv)
    healthy, text = ask(space.url or own_url(INIT_COMMAND, os.environ), space.timeout)
    print(text)
    return 0 if healthy else 1


def parser() -> Parser:
    description = "ask a server of this machine whether it is healthy"
    found = Parser("lightllm-mp health", description=description, allow_abbrev=False)
    found.add_argument("--url", help="base URL; default: where the server that is PID 1 (of a container) listens")
    found.add_argument("--timeout", type=float, default=4.0, help="seconds to wait for the answer (%(default)s)")
    return found


def own_url(command: Path, environ: Mapping[str, str]) -> str:
    """The URL of the server with this command line and environment. `command`: a file in which NUL ends each word.
    ConfigError for wrong settings."""
    config, _ = resolve(server_flags(command.read_bytes().decode(errors="replace").split("\0")), environ)
    return base_url(config.http)


def server_flags(words: Sequence[str]) -> list[str]:
    """The server's flags in a command line, without empty words; empty if the command starts no server."""
    begin = next((number for number, word in enumerate(words) if word in SERVERS), len(words))
    return [word for word in words[begin + 1 :] if word]


def base_url(config: HttpConfig) -> str:
    """The URL at which a program on the same machine reaches the port."""
    host = ANY_ADDRESS.get(config.host, config.host)
    scheme = "https" if config.ssl_certfile else "http"
    return f"{scheme}://[{host}]:{config.port}" if ":" in host else f"{scheme}://{host}:{config.port}"


def ask(url: str, timeout: float) -> tuple[bool, str]:
    """Whether GET `url`/health answers 200, and its body or the reason why there is none. The certificate is not
    checked, because the connection stays on this machine and only the status matters."""
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    try:
        with direct.open(f"{url}/health", timeout=timeout) as reply:
            return True, reply.read(4096).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return False, error.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return False, f"{url} does not answer: {error}"
