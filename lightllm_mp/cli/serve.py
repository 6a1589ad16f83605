"""`lightllm-mp serve`: checks all settings and the model's files, binds the port, then runs the supervisor."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

from lightllm_mp.actors.http.security.keys import ApiKeys, load_keys
from lightllm_mp.actors.http.security.origins import Origins
from lightllm_mp.actors.http.security.tls import server_context
from lightllm_mp.actors.http.sockets.bind import BACKLOG, bind, is_loopback, url_of
from lightllm_mp.actors.http.trace_endpoint import check_endpoint
from lightllm_mp.actors.runtime.logs import set_up_logging
from lightllm_mp.actors.supervision.console import Console
from lightllm_mp.actors.supervision.state_machine import EXIT_START_FAILED
from lightllm_mp.actors.supervision.supervisor import Supervisor
from lightllm_mp.actors.supervision.systemd import sd_notify
from lightllm_mp.cli.model_check import check_model_apart
from lightllm_mp.config import Config, FleetConfig
from lightllm_mp.errors import ConfigError, EngineError
from lightllm_mp.facts import Facts
from lightllm_mp.machine import raise_open_file_limit
from lightllm_mp.model_description import ModelDescription
from lightllm_mp.model_files.default_model import find_model
from lightllm_mp.sandbox import hide

log = logging.getLogger("lightllm_mp.supervisor")

EXIT_CONFIG = 2
EXIT_TERMINATED = 128 + signal.SIGTERM


def main(
    config: Config, *, parent_fd: int = -1, status_fd: int = -1, on_serving: Callable[[str], None] = lambda url: None
) -> int:
    """Serve until a signal stops the server. Returns the exit code.

    `parent_fd`: the server ends when this descriptor reads end-of-file. `status_fd`: when the server is ready, it
    writes its facts there as one line of JSON (see server.py). -1: not used. `on_serving` then gets the URL.
    """
    hide()
    end_at_sigterm()
    raise_open_file_limit()
    set_up_logging(config.supervisor.log_level, json=config.supervisor.log_json, actor="supervisor")
    try:
        if config.engine.nnodes > 1:
            from lightllm_mp.actors.node import node_key
            from lightllm_mp.cli.serve_node import serve_node

            if config.engine.node_rank:
                return serve_node(config, node_key(os.environ), parent_fd)
            if config.fleet == FleetConfig():
                node_key(os.environ)
        keys = load_keys(config.http, os.environ)
        server_context(config.http)
        check_endpoint(config.http.otlp_traces_endpoint)
        Origins(config.http.cors_allow_origin)
        model_path = find_model(config.model.model_dir, images=config.multimodal.enable_multimodal)
        model = check_model_apart(
            model_path,
            ranks=config.engine.tp,
            ep=config.engine.ep,
            weights=config.model.load_format != "dummy",
            images=config.multimodal.enable_multimodal,
            task=config.model.task,
            score_tokens=config.model.score_tokens,
        )
        listen = bind(config.http)
    except EngineError as error:
        return _refused(config, error)
    if config.fleet != FleetConfig():
        with listen:
            return _serve_fleet(config, listen, keys, parent_fd, status_fd)
    if config.multimodal.enable_multimodal and model.vision is None:
        log.warning("--enable-multimodal: this model has no vision tower; requests with images are refused")
    if not keys and not is_loopback(config.http.host):
        log.warning("ANYBODY who reaches %s can use this server; set --api-key-file", config.http.host)
    with listen:
        try:
            return asyncio.run(_run(config, model, listen, bool(keys), parent_fd, status_fd, on_serving))
        except EngineError as error:  # no shared memory for the lanes, and no process has started yet
            return _refused(config, error)


def end_at_sigterm() -> None:
    """Let SIGTERM end the program until the supervisor handles it. The kernel ignores signals without a handler for PID
    1 of a container."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))


def _serve_fleet(config: Config, listen: socket.socket, keys: ApiKeys, parent_fd: int, status_fd: int) -> int:
    try:
        from lightllm_mp.ray.command import serve_fleet
    except ImportError as error:
        return _refused(config, ConfigError(f"--replicas needs Ray: pip install 'lightllm-mp[ray]' ({error})"))
    return serve_fleet(config, listen, keys, parent_fd=parent_fd, status_fd=status_fd)


def _refused(config: Config, error: EngineError) -> int:
    """Report in one line why the server does not start. Returns the exit code."""
    if config.supervisor.log_json:
        log.critical("%s", error.message)
    else:
        print(f"lightllm-mp: {error.message}", file=sys.stderr)
    return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_START_FAILED


async def _run(
    config: Config,
    model: ModelDescription,
    listen: socket.socket,
    keys: bool,
    parent_fd: int,
    status_fd: int,
    on_serving: Callable[[str], None],
) -> int:
    console = Console(json=config.supervisor.log_json)
    url = url_of(listen, secure=config.http.ssl_certfile is not None)

    def serving(facts: Facts) -> None:
        if config.http.reuse_port:
            listen.listen(BACKLOG)  # from here on the kernel gives this server connections
        console.serving(url, facts, config.http, len(supervisor.topology.children), keys=keys)
        on_serving(url)
        sd_notify("READY=1")
        if status_fd >= 0:
            os.write(status_fd, json.dumps({"url": url, **facts.flat()}).encode() + b"\n")

    supervisor = Supervisor(config, model, listen=listen, on_progress=console.progress, on_serving=serving)
    loop = asyncio.get_running_loop()

    def drain() -> None:
        sd_notify("STOPPING=1")
        supervisor.drain()

    def hang_up() -> None:
        """Drain. A terminal may send SIGHUP twice when it closes. Unlike a second SIGTERM, a second SIGHUP does not
        stop the server at once."""
        if not supervisor.draining:
            drain()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, drain)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    loop.add_signal_handler(signal.SIGCHLD, supervisor.reap_orphans)
    if parent_fd >= 0:
        loop.add_reader(parent_fd, supervisor.begin_stop)
    return await supervisor.run()
