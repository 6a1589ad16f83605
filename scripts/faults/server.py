"""The server that scripts/chaos.py disturbs: a real one; with hooks in its actors; or with instant tokens as well."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from lightllm_mp import Config, Server, launch, server
from lightllm_mp.actors import supervisor
from lightllm_mp.actors.topology import Topology
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, SupervisorConfig
from scripts.faults.hooks import FOLDER, hooked_program
from tests.actors.embedded import write_byte_tokenizer

MOCK = "LIGHTLLM_CHAOS_MOCK"
"""Environment variable: 1 where the workers have no model."""
PROGRAM = "import sys; from scripts.faults.server import serve_hooked; sys.exit(serve_hooked())"
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "vocab_size": 256,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}
"""What the mock worker pretends to be."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is started. `watchdog` in seconds."""

    mock: bool = False
    hooks: bool = False
    ranks: int = 1
    watchdog: float = 1.0
    kv_tokens: int = 20_000
    log_level: str = "critical"

    def config(self, folder: Path) -> Config:
        level = "error" if self.log_level == "critical" else self.log_level
        return Config(
            model=ModelConfig(model_dir=str(folder), load_format="dummy") if self.mock else ModelConfig(),
            engine=EngineConfig(tp=self.ranks, max_total_token_num=self.kv_tokens, run_ahead=1 if self.mock else -1),
            http=HttpConfig(port=0, disable_access_log=True),
            supervisor=SupervisorConfig(
                max_restarts=1_000_000,
                watchdog_timeout=self.watchdog,
                start_timeout=120.0,
                drain_timeout=20.0,
                log_level=level,  # type: ignore[arg-type]
            ),
        )


@contextlib.contextmanager
def running(setting: Setting) -> Iterator[tuple[Server, Path]]:
    """The server, ready, and the folder of its hooks. It is stopped at the end if it still runs."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = Path(name)
        environment = {FOLDER: name, MOCK: str(int(setting.mock))}
        if setting.mock:
            write_byte_tokenizer(folder)
            (folder / "config.json").write_text(json.dumps(MODEL))
        program = PROGRAM if setting.hooks else server.PROGRAM
        with mock.patch.dict(os.environ, environment), mock.patch.object(server, "PROGRAM", program):
            started = launch(setting.config(folder))
        with started:
            yield started.wait_ready(240.0), folder


def serve_hooked() -> int:
    """The main program of the supervisor's process: as usual, but its children have hooks."""
    usual = supervisor.topology
    with_mock = os.environ[MOCK] == "1"

    def topology(**values: object) -> Topology:
        return hooked(usual(**values), mocked=with_mock)  # type: ignore[arg-type]

    supervisor.topology = topology
    return server._child()


def hooked(plan: Topology, *, mocked: bool) -> Topology:
    """The same topology with hooks in every child, and with workers without a model."""
    ranks = sum(child.name.startswith("worker") for child in plan.children)
    worker = "tests.actors.rank_actor:MockRankActor" if ranks > 1 else "tests.actors.mock_actor:MockWorkerActor"
    children = tuple(
        dataclasses.replace(
            child, program=hooked_program(worker if mocked and child.name.startswith("worker") else child.program)
        )
        for child in plan.children
    )
    return dataclasses.replace(plan, children=children)
