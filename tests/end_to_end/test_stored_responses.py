"""Stored responses survive the process that made them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.actors.mock_server import write_mock_model
from tests.end_to_end.test_whole_group import MockServing, ask, live, metric, mock_serving, until

PATH = "/v1/responses"
SHORT: dict[str, Any] = {"max_output_tokens": 30, "temperature": 0, "ignore_eos": True}


def create(server: MockServing, **more: Any) -> dict[str, Any]:
    status, data, _ = ask(server.port, "POST", PATH, {"input": "Tell me", **SHORT, **more})
    assert status == 200, data
    return json.loads(data)


def fetch(server: MockServing, id: str) -> tuple[int, bytes]:
    return ask(server.port, "GET", f"{PATH}/{id}")[:2]


def kill_http(server: MockServing) -> None:
    old = server.actors()["http"]
    os.kill(old, signal.SIGKILL)
    until(lambda: server.actors().get("http", old) != old)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_mock_model(tmp_path_factory.mktemp("stored") / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    return folder


@pytest.mark.timeout(180)
@pytest.mark.parametrize("window", ["60", "0"])
def test_http_dies_between_the_turns(folder: Path, window: str) -> None:
    """`window`: seconds for which a client can resume an answer that is not stored."""
    with mock_serving(folder, "--port", "0", "--resume-window", window) as server:
        first, other = create(server), create(server, input="And that")
        second = create(server, previous_response_id=first["id"], input="More")
        assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"] + 30
        for _ in range(2):
            kill_http(server)
            assert json.loads(fetch(server, first["id"])[1]) == first
            again = create(server, previous_response_id=first["id"], input="More")
            assert (again["output"][0]["content"], again["usage"]["input_tokens"]) == (
                second["output"][0]["content"],
                second["usage"]["input_tokens"],
            )
        third = create(server, previous_response_id=again["id"], input="More")
        assert third["usage"]["input_tokens"] > again["usage"]["input_tokens"] + 30
        assert ask(server.port, "DELETE", f"{PATH}/{first['id']}")[0] == 200
        kill_http(server)
        assert fetch(server, first["id"])[0] == 404
        assert json.loads(fetch(server, other["id"])[1]) == other
        assert metric(server.port, "live_requests") == 0


@pytest.mark.timeout(180)
def test_http_dies_in_the_middle_of_a_response(folder: Path) -> None:
    """The client does not resume the stream and asks for the response much later."""
    asked = {"input": "Tell me", **SHORT, "max_output_tokens": 100, "stream": True}
    paced = "tests.actors.mock_actor:PacedLargeMockWorkerActor"
    with mock_serving(folder, "--port", "0", "--resume-window", "5", worker=paced) as server:
        wanted = create(server, **{**asked, "stream": False})
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", PATH, json.dumps(asked))
            reply = connection.getresponse()
            id = next(json.loads(line[5:])["response"]["id"] for line in reply if line.startswith(b"data:"))
            kill_http(server)
        until(lambda: b'"in_progress"' in fetch(server, id)[1])
        until(lambda: live(server.port) == 0)  # until the window has ended
        status, data = fetch(server, id)
        assert status == 200
        found = json.loads(data)
        assert (found["status"], found["usage"]["output_tokens"]) == ("incomplete", 100)
        assert found["output"][0]["content"] == wanted["output"][0]["content"]
