"""Clients from PyPI ask for embeddings and rankings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer, models, pre_tokenizers

from lightllm_mp import Config, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig
from tests.clients.environment import DEADLINE, KEY, command, environment, needs_clients
from tests.end_to_end.served import START
from tests.paths import GOLDENS

pytestmark = needs_clients


@pytest.mark.parametrize(("folder", "prefix"), [("qwen3_embedding", "embed_"), ("qwen3_reranker", "rank_")])
def test_a_tiny_model(folder: str, prefix: str, tmp_path: Path) -> None:
    """Its tokens are bytes."""
    model = Path(shutil.copytree(GOLDENS / folder, tmp_path / "model"))
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(model / "tokenizer.json"))
    (tmp_path / "keys").write_text(KEY + "\n")
    config = Config(
        model=ModelConfig(model_dir=str(model), data_type="float32", device="cpu"),
        engine=EngineConfig(max_total_token_num=20_000, threads=1),
        http=replace(HttpConfig(port=0), api_key_file=str(tmp_path / "keys")),
    )
    with launch(config) as server:
        server.wait_ready(START)
        found = subprocess.run(
            command("openai_embeddings.py", prefix),
            env=environment(server.base_url, tmp_path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
    assert found.returncode == 0, found.stdout + found.stderr
