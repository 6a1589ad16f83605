"""Clients from PyPI and npm, unmodified, ask this server as they ask any other: see `programs`."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from lightllm_mp import Server, launch
from lightllm_mp.actors.http.security.keys import ApiKeys
from lightllm_mp.facts import PooledFacts
from tests.actors.http.harness import FACTS, Engine, site
from tests.actors.http.test_auth import digests
from tests.clients.assistant import Assistant
from tests.clients.environment import DEADLINE, KEY, OPENAI_2, command, environment, needs_clients
from tests.end_to_end.conftest import default_model, settings
from tests.end_to_end.served import START

pytestmark = needs_clients
__all__ = ["default_model"]

PROGRAMS = {
    "openai": ("openai_python.py", None),
    "openai 2": ("openai_python.py", OPENAI_2),
    "openai, Node": ("openai_node.cjs", None),
    "anthropic": ("anthropic_python.py", None),
    "langchain-openai": ("langchain_chat.py", None),
    "llama-index": ("llama_index_chat.py", OPENAI_2),
    "litellm": ("litellm_chat.py", None),
    "instructor": ("instructor_models.py", None),
    "pydantic-ai": ("pydantic_ai_agent.py", None),
}


@pytest.fixture(scope="module")
def server(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The default model, for those who have the key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n")
    usual = settings()
    with launch(replace(usual, http=replace(usual.http, api_key_file=str(keys)))) as server:
        yield server.wait_ready(START)


@pytest.mark.parametrize("client", PROGRAMS)
def test_the_default_model(server: Server, client: str, tmp_path: Path) -> None:
    program, layer = PROGRAMS[client]
    found = subprocess.run(
        command(program, "model_"),
        env=environment(server.base_url, tmp_path, layer),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("client", PROGRAMS)
def test_an_assistant_that_calls_tools(client: str, tmp_path: Path) -> None:
    ask(client, "script_", tmp_path, Assistant())


def test_embeddings_through_node(tmp_path: Path) -> None:
    """Those of Python are asked in test_embedding_clients.py."""
    facts = replace(FACTS, engine=replace(FACTS.engine, pooled=PooledFacts("embed", 3)))
    ask("openai, Node", "pooled_", tmp_path, Engine(facts=facts, row=lambda request: [0.5, 0.25, 0.125]))


def ask(client: str, prefix: str, tmp_path: Path, engine: Engine) -> None:
    """Run the client's checks whose names begin so against a port before this engine."""
    program, layer = PROGRAMS[client]

    async def main() -> None:
        async with site(engine=engine, keys=ApiKeys(users=digests(KEY))) as served:
            base_url = "http://{}:{}".format(*served.address)
            process = await asyncio.create_subprocess_exec(
                *command(program, prefix),
                env=environment(base_url, tmp_path, layer),
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            try:
                output, _ = await asyncio.wait_for(process.communicate(), DEADLINE)
            finally:
                if process.returncode is None:
                    process.kill()
            assert process.returncode == 0, output.decode()
            assert served.frontend.live == 0

    asyncio.run(main())
