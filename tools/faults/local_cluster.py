"""A Ray cluster of several nodes on this machine with a fleet of replicas without a model. Nothing of it remains."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import ray
import ray.cluster_utils
from ray import serve

from lightllm_mp.config import Config, EngineConfig, HttpConfig, ModelConfig, SupervisorConfig
from lightllm_mp.ray import app
from lightllm_mp.ray.directory import DirectoryClient
from tests.actors.mock_server import write_mock_model
from tools.faults.mock_replica import MockReplica

APPLICATION = "lightllm_mp"
OBJECT_STORE = 80 << 20
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 3,
}
"""With these settings Ray's head notices the loss of a node after seconds instead of half a minute."""
ENDED = 10.0
"""Seconds within which a cluster's processes must end."""


class LocalCluster:
    """`url`: the fleet's address. Each replica takes one logical GPU, so a node has room for as many replicas as it has
    logical GPUs. The front takes a CPU, which only the head has."""

    def __init__(self, folder: Path, cluster: Any, port: int) -> None:
        self.folder, self.cluster, self.port = folder, cluster, port
        self.url = f"http://127.0.0.1:{port}"
        self.relay_key = secrets.token_hex(16)
        self._model = str(write_mock_model(folder / "mock"))

    def add_node(self, replicas: int) -> Any:
        return self.cluster.add_node(num_cpus=0, num_gpus=replicas, object_store_memory=OBJECT_STORE)

    def deploy(self, replicas: int, kv_tokens: int = 20_000, nodes: int = 1) -> None:
        """Deploy the fleet. Returns when it is ready. `nodes`: nodes per replica, with one rank each; the first is the
        head."""
        config = Config(
            model=ModelConfig(model_dir=self._model, device="cpu", load_format="dummy"),
            engine=EngineConfig(max_total_token_num=kv_tokens, threads=1, tp=nodes, nnodes=nodes),
            http=HttpConfig(port=0, disable_access_log=True),
            supervisor=SupervisorConfig(max_restarts=100, log_level="warning"),
        )
        arguments = {
            "flags": config,
            "replicas": replicas,
            "host": "127.0.0.1",
            "cpus": 0 if nodes == 1 else 0.5,
            "gpus": nodes,
        }
        environment = {"LIGHTLLM_MP_RELAY_KEYS": self.relay_key}
        with mock.patch.dict(os.environ, environment), mock.patch.object(app, "LightLLMReplica", MockReplica):
            serve.run(app.build_app(arguments), name=APPLICATION)

    def replicas(self) -> dict[int, int]:
        """The process of each replica -> the supervisor of its engine."""
        return {
            pid: child
            for pid in self.processes("ray::ServeReplica:lightllm_mp:replica")
            for child in children(pid)
            if "mock_engine" in command(child)
        }

    def ready(self) -> list[int]:
        """The processes of replicas that have started."""
        return [pid for pid in self.replicas() if "init" not in command(pid)]

    def processes(self, name: str) -> list[int]:
        """Processes of this cluster whose command begins with `name`."""
        return [pid for pid in all_processes() if command(pid).startswith(name) and has_open(pid, self.folder)]

    def end_application(self) -> None:
        serve.delete(APPLICATION)
        DirectoryClient(APPLICATION).end()


@contextlib.contextmanager
def local_cluster(head: int, *nodes: int) -> Iterator[LocalCluster]:
    """Yields a cluster. `head`, `nodes`: the number of replicas for which the head and the other nodes have room. The
    head keeps its state on disk, so that it can be restarted."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir="/tmp"))  # a short path, because it contains sockets
    environment = {
        "RAY_TMPDIR": str(folder),
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(folder / "head"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # the monitor kills workers when memory is short
    }
    gcs_port, port = free_ports(2)
    arguments = {
        "num_cpus": 1,
        "num_gpus": head,
        "object_store_memory": OBJECT_STORE,
        "include_dashboard": False,
        "include_log_monitor": False,
        "no_monitor": True,
        "gcs_server_port": gcs_port,
        "_system_config": QUICK,
    }
    try:
        with mock.patch.dict(os.environ, environment):
            cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args=arguments)
            found = LocalCluster(folder, cluster, port)
            for replicas in nodes:
                found.add_node(replicas)
            ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            try:
                serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
                yield found
            finally:
                with contextlib.suppress(Exception):
                    ray.shutdown()
                for node in [*cluster.worker_nodes, cluster.head_node]:
                    with contextlib.suppress(Exception):
                        node.kill_all_processes(check_alive=False, allow_graceful=False)
    finally:
        end_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("", 0))).getsockname()[1] for _ in range(count)]


def settle(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until the condition holds. TimeoutError after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it does not come about")
        time.sleep(0.2)


def end_all(folder: Path) -> None:
    """Kill all processes of a cluster, whether Ray still knows them or not."""
    end = time.monotonic() + ENDED
    while (left := belonging(folder)) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def belonging(folder: Path) -> list[int]:
    """Processes, except this one, with open files in the folder: all of Ray and the children of its workers."""
    return [pid for pid in all_processes() if pid != os.getpid() and has_open(pid, folder)]


def all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def has_open(pid: int, folder: Path) -> bool:
    """Whether the process has a file of this folder open."""
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(fd).startswith(str(folder)):
                    return True
    return False


def command(pid: int) -> str:
    """The command line of a process; empty if the process is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def children(pid: int) -> list[int]:
    """The children of all threads of a process."""
    found = list[int]()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found
