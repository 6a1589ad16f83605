"""`python -m tests.actors.mock_server serve ...`: the whole program, but its workers have no model: it starts in a
second and answers at once. Other kinds of worker and front are named by the variables below."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from lightllm_mp.actors.supervision import supervisor
from lightllm_mp.actors.topology import HTTP, Topology
from lightllm_mp.cli.main import main
from tests.actors.embedded import mocked, write_byte_tokenizer

WORKER, FRONT, STEP = "LIGHTLLM_TEST_WORKER", "LIGHTLLM_TEST_FRONT", "LIGHTLLM_TEST_STEP"
"""Environment variables; STEP: seconds of a PacedWorkerActor's step."""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "vocab_size": 256,
    "eos_token_id": 0,
    "torch_dtype": "float32",
}


def write_mock_model(folder: Path) -> Path:
    """A folder that the program takes for a model, to be served with --load-format dummy."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return write_byte_tokenizer(folder)


def serve() -> int:
    usual = supervisor.topology
    program = os.environ.get(WORKER, "tests.actors.mock_actor:MockWorkerActor")

    def topology(**values: object) -> Topology:
        plan = mocked(usual(**values), program)  # type: ignore[arg-type]
        return mocked(plan, os.environ[FRONT], HTTP) if FRONT in os.environ else plan

    supervisor.topology = topology
    return main()


if __name__ == "__main__":
    sys.exit(serve())
