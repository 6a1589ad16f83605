"""`lightllm-mp chat` in scripts: a question in the command line or on standard input, an answer, an exit code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lightllm_mp.cli.chat import connect
from lightllm_mp.cli.chat.connect import KEY_VARIABLE, chat_server
from lightllm_mp.errors import ConfigError, EngineError
from tests.cli.chat.fake_server import BREAK, HANG, FakeChatServer, fake_chat_server
from tests.paths import ROOT


@pytest.fixture
def server() -> Iterator[FakeChatServer]:
    with fake_chat_server() as running:
        yield running


def command(server: FakeChatServer, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "lightllm_mp", "chat", "--url", server.url, *words]


def chat(
    server: FakeChatServer, *words: str, stdin: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(command(server, *words), env=env, capture_output=True, text=True, timeout=60, **given)


def test_a_question(server: FakeChatServer) -> None:
    server.answers.append([{"reasoning_content": "Hm."}, "one\n", "", "\n", "two \x1b[31m"])
    done = chat(server, "How", "many?", "--temperature", "0", "--max-tokens", "9", "--system", "Count.")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n\ntwo ␛[31m\n", "")
    body = server.bodies[0]
    assert body["messages"] == [{"role": "system", "content": "Count."}, {"role": "user", "content": "How many?"}]
    assert (body["temperature"], body["max_tokens"], body["model"], body["stream"]) == (0, 9, "fake", True)


def test_standard_input(server: FakeChatServer) -> None:
    assert chat(server, stdin="hello\n").stdout == "echo hello\n"
    assert chat(server, "Sum up:", stdin="a\nb\n").stdout == "echo Sum up:\n\na\nb\n"
    done = chat(server, stdin="")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing is asked" in done.stderr


def test_a_server_that_knows_no_timings_is_asked_without(server: FakeChatServer) -> None:
    server.knows_timings = False
    assert chat(server, "hello").stdout == "echo hello\n"
    assert "return_timings" not in server.bodies[0]


def test_keys(server: FakeChatServer) -> None:
    server.key = "secret"
    refused = chat(server, "hello")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "set LIGHTLLM_MP_API_KEY" in refused.stderr
    assert chat(server, "hello", LIGHTLLM_MP_API_KEY="secret").stdout == "echo hello\n"


def test_refusals(server: FakeChatServer) -> None:
    server.answers.append([503, "full\x1b[2J"])
    done = chat(server, "hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "lightllm-mp: error: full␛[2J\n"
    assert chat(server, "hello", "--model-dir", "x").returncode == 2
    assert chat(server, "hello", "--image", "/nowhere.png").returncode == 2


def test_a_stream_that_breaks_is_whole(server: FakeChatServer) -> None:
    server.answers.append(["one ", BREAK, "two"])
    assert chat(server, "count").stdout == "one two\n"
    assert server.returns == 1


def test_an_interrupt(server: FakeChatServer) -> None:
    server.answers.append(["so far", HANG])
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command(server, "hello"), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == "so far"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert server.left.wait(10)


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EngineError, match=f"no server answers at {url}: Connection refused; start one"):
        chat_server(url, None, {}).__enter__()
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        chat_server("ftp://x", None, {}).__enter__()


def test_where_no_server_runs_it_starts_one(server: FakeChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a program that is no server of chats one."""
    own: list[str | None] = []
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"

    class Own:
        def __init__(self, model_dir: str | None) -> None:
            own.append(model_dir)

        def __enter__(self) -> str:
            return server.url

        def __exit__(self, *exception: object) -> None:
            own.append("ended")

    monkeypatch.setattr(connect, "own_server", Own)
    for default, model_dir, expected in (
        (server.url, None, []),
        (server.url, "folder", ["folder", "ended"]),
        (nobody, None, [None, "ended"]),
        (server.url + "/another", None, [None, "ended"]),
    ):
        own.clear()
        monkeypatch.setattr(connect, "DEFAULT_URL", default)
        if default.endswith("another"):
            monkeypatch.setattr(connect, "get_json", answers_nothing_once(connect.get_json))
        with chat_server(None, model_dir, {}) as found:
            assert found.model == "fake"
        assert own == expected


def answers_nothing_once(real):
    calls: list[str] = []

    def get_json(*args: object, **options: object) -> object:
        calls.append("call")
        return {"hello": 1} if len(calls) == 1 else real(*args, **options)

    return get_json
