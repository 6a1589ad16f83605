"""Starts the server of the chaos tool: text or images, with hooks in its actors, or with instant tokens."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from unittest import mock

from lightllm_mp import Config, Server, launch, server
from lightllm_mp.actors.supervision import supervisor
from lightllm_mp.actors.topology import Topology
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, MultimodalConfig, SupervisorConfig
from tests.actors.mock_server import write_mock_model
from tools.faults.hooks import FOLDER, hooked_program
from tools.faults.requests import CACHED, Load
from tools.harness.models import write_tiny_model

MOCK = "LIGHTLLM_CHAOS_MOCK"
"""Environment variable: 1 if the workers have no model."""
PROGRAM = "import sys; from tools.faults.server import serve_hooked; sys.exit(serve_hooked())"
RESUME_WINDOW = 10.0
"""Seconds; shorter than the wait for idle memory, so that the server has dropped stored responses and requests whose
client has left."""
Kind = Literal["default", "mock", "images", "embedding", "encoder"]
"""The default model; no model; a tiny model with images; tiny embedding models, causal (Qwen3-Embedding) and not
(BERT)."""
TEMPLATE = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}[assistant]"
"""Chat template for a model without one."""
GOLDENS = {"images": "llava_hf", "embedding": "qwen3_embedding", "encoder": "bge_m3"}
LOADS = {
    "default": Load(tokens=(16, 40), sentences=60, too_long=4000),
    "mock": Load(tokens=(100, 300), sentences=180, too_long=1000),
    "images": Load(tokens=(20, 80), sentences=60, too_long=1000, images=True),
    "embedding": Load(tokens=(0, 0), sentences=0, too_long=0, embeds=True),
    "encoder": Load(tokens=(0, 0), sentences=0, too_long=0, embeds=True),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The server to start. `watchdog` in seconds."""

    kind: Kind = "default"
    hooks: bool = False
    ranks: int = 1
    watchdog: float = 1.0
    kv_tokens: int = 20_000
    log_level: str = "critical"

    @property
    def load(self) -> Load:
        return LOADS[self.kind]

    def config(self, folder: Path) -> Config:
        level = "error" if self.log_level == "critical" else self.log_level
        return Config(
            model=self._model(folder),
            engine=EngineConfig(
                tp=self.ranks,
                max_total_token_num=self.kv_tokens,
                run_ahead=1 if self.kind == "mock" else -1,
                threads=1 if self.kind in GOLDENS else 0,
            ),
            http=HttpConfig(
                port=0, disable_access_log=True, resume_window=RESUME_WINDOW, response_window=RESUME_WINDOW
            ),
            multimodal=MultimodalConfig(enable_multimodal=self.load.images, cache_capacity=CACHED),
            supervisor=SupervisorConfig(
                max_restarts=1_000_000,
                watchdog_timeout=self.watchdog,
                start_timeout=120.0,
                drain_timeout=20.0,
                log_level=level,  # type: ignore[arg-type]
            ),
        )

    def _model(self, folder: Path) -> ModelConfig:
        if self.kind == "mock":
            return ModelConfig(model_dir=str(folder), load_format="dummy")
        if self.kind in GOLDENS:
            return ModelConfig(model_dir=str(folder), data_type="float32", device="cpu")
        return ModelConfig()

    def write(self, folder: Path) -> None:
        """The model's own folder, if it has one."""
        if self.kind == "mock":
            write_mock_model(folder)
        if self.kind in GOLDENS:
            write_tiny_model(folder, GOLDENS[self.kind])
        (folder / "chat_template.jinja").write_text(TEMPLATE)


@contextlib.contextmanager
def running(setting: Setting) -> Iterator[tuple[Server, Path]]:
    """Yields the ready server and the folder of its hooks. Stops the server at the end if it still runs."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        setting.write(folder)
        environment = {FOLDER: name, MOCK: str(int(setting.kind == "mock"))}
        program = PROGRAM if setting.hooks else server.PROGRAM
        with mock.patch.dict(os.environ, environment), mock.patch.object(server, "PROGRAM", program):
            started = launch(setting.config(folder))
        with started:
            yield started.wait_ready(240.0), folder


def serve_hooked() -> int:
    """The main program of the supervisor's process; its children have hooks."""
    usual = supervisor.topology
    with_mock = os.environ[MOCK] == "1"

    def topology(**values: object) -> Topology:
        return hooked(usual(**values), mocked=with_mock)  # type: ignore[arg-type]

    supervisor.topology = topology
    return server._child()


def hooked(plan: Topology, *, mocked: bool) -> Topology:
    """The topology with hooks in every child and with workers without a model."""
    ranks = sum(child.name.startswith("worker") for child in plan.children)
    worker = (
        "tests.actors.supervision.rank_actor:MockRankActor" if ranks > 1 else "tests.actors.mock_actor:MockWorkerActor"
    )
    children = tuple(
        dataclasses.replace(
            child, program=hooked_program(worker if mocked and child.name.startswith("worker") else child.program)
        )
        for child in plan.children
    )
    return dataclasses.replace(plan, children=children)
