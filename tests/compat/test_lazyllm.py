"""The unmodified lazyllm from PyPI: it starts, asks, streams and stops this engine as its `deploy.lightllm`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clients.environment import VENV, needs_clients
from tests.paths import ROOT
from tests.text.tokenizer_samples import default_model

HERE = find_spec("lazyllm") is not None
pytestmark = [] if HERE else [needs_clients]

DEADLINE = 240.0
PYTHON = sys.executable if HERE else str(VENV / "bin" / "python")


def environment(home: Path) -> dict[str, str]:
    """LazyLLM runs `python`, which must be the one that it is in, and keeps its files in a folder of its own. Where it
    is in the environment of the clients, the engine's packages come before those that are there."""
    paths = [str(ROOT), str(ROOT / "compat" / "lightllm"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(PYTHON).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([*paths, *([] if HERE else [sysconfig.get_path("purelib")])]),
        "LAZYLLM_HOME": str(home),
    }


def members(session: int) -> list[str]:
    """The processes of a session, but for those that have ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(folder.name)
    return found


@pytest.mark.parametrize("name", ["default.gguf", "internlm2-chat-7b"])
def test_the_example_runs_and_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    """LazyLLM knows chat formats by the model's name: the second has that of the default model, whose answers end with
    the stop string <|im_end|>, a special token."""
    model = tmp_path / name
    model.symlink_to(default_model())
    question = "Reply with the single word: yes"
    words = [PYTHON, str(ROOT / "examples" / "lazyllm_chat.py"), str(model), question]
    with subprocess.Popen(
        words,
        env=environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, log = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert process.returncode == 0, log
    whole, streamed = out.partition("answer:\n")[2].rstrip("\n").split("\nstreamed:\n")
    assert whole.strip()
    assert streamed.strip() == whole.strip()
    assert "<|im_end|>" not in whole
    assert "Job failed" not in log
    deadline = time.monotonic() + 20
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(process.pid) == []
