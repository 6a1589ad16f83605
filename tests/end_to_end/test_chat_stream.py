"""The client of `lightllm-mp chat` gets each chunk once while the process that serves its connection is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lightllm_mp.client import stream_chat
from tests.actors.mock_server import write_mock_model
from tests.end_to_end.test_whole_group import MockServing, mock_serving

LENGTH = 1000
BODY = {
    "messages": [{"role": "user", "content": "Tell me"}],
    "max_tokens": LENGTH,
    "ignore_eos": True,
    "temperature": 0,
    "return_token_ids": True,
    "stream_options": {"include_usage": True},
}


def kill_http(server: MockServing) -> None:
    while "http" not in (actors := server.actors()):
        time.sleep(0.01)  # http is being replaced; these chunks came before its death
    os.kill(actors["http"], signal.SIGKILL)


def answer(server: MockServing, kills: tuple[int, ...] = ()) -> tuple[str, int]:
    """The text and the usage's number of tokens. http is killed when these numbers of chunks have arrived."""
    text, tokens = "", 0
    for number, chunk in enumerate(stream_chat(f"http://127.0.0.1:{server.port}", BODY), 1):
        text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        if number in kills:
            kill_http(server)
    return text, tokens


@pytest.mark.timeout(200)
def test_every_chunk_comes_once_although_http_is_killed(tmp_path: Path) -> None:
    folder = write_mock_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with mock_serving(folder, "--port", "0") as server:
        whole = answer(server)
        assert (len(whole[0]) > LENGTH / 2, whole[1]) == (True, LENGTH)
        assert answer(server, kills=(100, 400)) == whole
