"""`lightllm-mp serve --replicas N`: a fleet on this machine with a Ray of its own, or in a cluster (--ray-address)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import ray
from msgspec.structs import replace
from ray import serve

from lightllm_mp.config import Config
from lightllm_mp.ray.app import build_app, has_gpus
from lightllm_mp.ray.directory import DirectoryClient

APPLICATION = "lightllm_mp"
OBJECT_STORE = 80 << 20
"""Bytes; requests do not pass Ray's object store."""

log = logging.getLogger("lightllm_mp.fleet")


def serve_fleet(config: Config) -> int:
    """Serve until a signal stops the fleet. Returns the exit code."""
    count, ended = config.fleet.replicas, threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if config.fleet.ray_address is None:
        cpus = max(count + 1, os.cpu_count() or 1)  # names of cores for Ray's own count; engines share the real ones
        ray.init(
            num_cpus=cpus, object_store_memory=OBJECT_STORE, include_dashboard=False, logging_level=logging.WARNING
        )
    else:
        ray.init(config.fleet.ray_address, log_to_driver=False, logging_level=logging.WARNING)
    try:
        serve.start(http_options={"host": config.http.host, "port": config.http.port})
        engine = _shared(config) if config.fleet.ray_address is None else config
        print(f"lightllm-mp starts {count} replicas", file=sys.stderr)
        serve.run(build_app(engine), name=APPLICATION, blocking=False)
        print(
            f"lightllm-mp is serving with {count} replicas on http://{config.http.host}:{config.http.port}",
            file=sys.stderr,
        )
        ended.wait()
        serve.delete(APPLICATION)
        DirectoryClient(APPLICATION).end()
        if config.fleet.ray_address is None:
            serve.shutdown()
    except RuntimeError as error:  # Serve says so when a deployment fails
        log.critical("%s", error)
        return 1
    finally:
        ray.shutdown()
    return 0


def _shared(config: Config) -> Config:
    """The engines of one machine without GPUs share its memory and cores."""
    if config.model.device == "cuda" or has_gpus():
        return config
    count, engine = config.fleet.replicas, config.engine
    threads = engine.threads or max(1, len(os.sched_getaffinity(0)) // (count * engine.tp))
    return replace(config, engine=replace(engine, threads=threads, mem_fraction=engine.mem_fraction / count))
