"""Every program in the pages runs and prints what the page says, against one server for each kind of model."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightllm_mp import Config, Server, launch
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, MultimodalConfig
from tests.actors.embedded import write_byte_tokenizer
from tests.clients.environment import VENV, environment
from tests.docs.examples import ADDRESS, Example, all_examples, examples
from tests.end_to_end.conftest import default_model
from tests.end_to_end.served import START
from tests.paths import GOLDENS, ROOT

__all__ = ["default_model"]

DEADLINE = 90.0
"""Seconds of one example."""
EXAMPLES = sorted(all_examples(), key=lambda example: example.server)
TINY = {"embeddings": "qwen3_embedding", "ranks": "qwen3_reranker"}
"""Servers beside that of the default model: golden folders of random weights, whose tokens are bytes."""
PREFIXES = {"lightllm_num_requests"}
"""What a page searches the metrics for."""
FILES = {"bash": "example.sh", "python": "example.py", "javascript": "example.mjs"}


@pytest.fixture(scope="module")
def servers(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """A server by its name, started when an example first asks for it; the next one ends the last: examples stand in
    the order of their servers."""
    running: dict[str, Server] = {}

    def serve(name: str) -> Server:
        if name not in running:
            while running:
                running.popitem()[1].close()
            running[name] = launch(settings(name, tmp_path_factory)).wait_ready(START)
        return running[name]

    yield serve
    while running:
        running.popitem()[1].close()


def settings(name: str, folders: pytest.TempPathFactory) -> Config:
    http = HttpConfig(port=0, disable_access_log=True)
    engine = EngineConfig(max_total_token_num=20_000)
    if name == "default":
        return Config(engine=engine, http=http, multimodal=MultimodalConfig(enable_multimodal=True))
    folder = Path(shutil.copytree(GOLDENS / TINY[name], folders.mktemp(name) / "model"))
    model = ModelConfig(model_dir=str(write_byte_tokenizer(folder)), data_type="float32", device="cpu")
    return Config(model=model, engine=engine, http=http)


def test_metrics_that_pages_name_exist(servers: Callable[[str], Server]) -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"\blightllm_(?!mp\b)[a-z0-9_]+", pages)) - PREFIXES
    deadline = time.monotonic() + 30
    while True:  # an actor publishes its numbers a little after it is ready
        with urllib.request.urlopen(servers("default").base_url + "/metrics", timeout=10) as reply:
            exported = set(re.findall(r"^# TYPE (\w+)", reply.read().decode(), re.MULTILINE))
        if not named - exported or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert named - exported == set()


@pytest.mark.parametrize("example", [one for one in EXAMPLES if not one.skipped], ids=lambda one: one.name)
def test_it_runs(example: Example, servers: Callable[[str], Server], tmp_path: Path) -> None:
    interpreter = interpreter_of(example)
    base_url = servers(example.server).base_url if ADDRESS in example.code else "http://none"
    code, output = run(example, interpreter, base_url, tmp_path)
    assert code == 0, output
    assert example.prints in output


def interpreter_of(example: Example) -> list[str]:
    """Skips the test where it, or a package that the example imports, is not installed."""
    if example.language == "bash":
        return ["bash", "-eu"]
    needs_package = "openai" in example.code
    if needs_package and not (VENV / ".installed").is_file():
        pytest.skip("openai is not installed (scripts/dev.sh test does it)")
    if example.language == "python":
        return [str(VENV / "bin" / "python") if needs_package else sys.executable]
    node = shutil.which("node", path=f"{os.environ['PATH']}:{VENV / 'bin'}")
    return [node] if node else pytest.skip("needs Node.js")


def run(example: Example, interpreter: list[str], base_url: str, folder: Path) -> tuple[int, str]:
    """Exit code and output. A program that takes too long is killed with all that it has started."""
    file = folder / FILES[example.language]
    file.write_text(example.asking(base_url), "utf-8")
    if example.language == "javascript":  # imports are looked for beside the file
        (folder / "node_modules").symlink_to(VENV / "node_modules")
    path = {"PYTHONPATH": str(ROOT)} if interpreter == [sys.executable] else {}
    process = subprocess.Popen(
        [*interpreter, str(file)],
        cwd=ROOT,
        env=environment(base_url, folder) | path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output = process.communicate(timeout=DEADLINE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1, f"no end after {DEADLINE:.0f} s\n{process.communicate()[0]}"
    return process.returncode, output


def test_every_example_says_what_it_prints() -> None:
    assert len(EXAMPLES) > 25
    assert [one.name for one in EXAMPLES if not one.prints and not one.skipped] == []
    assert {one.language for one in EXAMPLES} == {"bash", "python", "javascript"}
    assert {one.server for one in EXAMPLES} == {"default", *TINY}


def test_comments_are_read() -> None:
    text = (
        "# A\n<!-- server: ranks -->\n<!-- prints: b -->\n```bash\necho b\n```\n```text\nno\n```\n```python\nc\n```\n"
    )
    assert list(examples(text, "p")) == [
        Example("p", 4, "bash", "echo b\n", "ranks", "b"),
        Example("p", 10, "python", "c\n"),
    ]
    with pytest.raises(ValueError, match="says nothing"):
        list(examples("<!-- runs -->\n```bash\n```\n"))
