"""The whole group of processes: ended in every way and restarted, stopped, drained, and two groups side by side. The
workers have no model (tests/actors/mock_server.py); everything else is what an operator runs."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lightllm_mp import client
from lightllm_mp.errors import EngineError
from tests.actors.mock_front import POISON
from tests.actors.mock_server import FRONT, WORKER, write_mock_model
from tests.end_to_end.test_serve_command import DEADLINE, Serving, environment, gone
from tests.paths import ROOT

URL = r"url +http://127.0.0.1:(\d+)"
RESTARTS = int(os.environ.get("LIGHTLLM_TEST_RESTARTS", "4"))
"""Consecutive restarts; 20 in a run by hand."""
BODY = {"inputs": "Tell me", "parameters": {"max_new_tokens": 1000, "ignore_eos": True, "do_sample": True}}


class MockServing(Serving):
    """A server in its own process group and session, as in a shell or a container."""

    def __init__(
        self, folder: Path, *flags: str, worker: str = "", front: str = "", prepare: Callable[[], object] | None = None
    ) -> None:
        words = ["serve", "--model-dir", str(folder), "--load-format", "dummy", *flags]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.actors.mock_server", *words],
            env=environment(**{name: program for name, program in ((WORKER, worker), (FRONT, front)) if program}),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=prepare,
        )
        self.log = ""

    @property
    def port(self) -> int:
        return int(self.until(URL)[1])

    def actors(self) -> dict[str, int]:
        """{name: pid} of the living children. A child may end between two reads."""
        found = {}
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                found |= {words[3].decode(): int(pid)} if len(words) > 3 else {}
        return found


@contextlib.contextmanager
def mock_serving(
    folder: Path, *flags: str, worker: str = "", front: str = "", prepare: Callable[[], object] | None = None
) -> Iterator[MockServing]:
    """`prepare` runs in the process that becomes the server."""
    server = MockServing(folder, *flags, worker=worker, front=front, prepare=prepare)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate(timeout=DEADLINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mock_model(tmp_path_factory.mktemp("whole") / "model")


def ask(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, json.dumps(body) if body else None)
        reply = connection.getresponse()
        return reply.status, reply.read(), {name.lower(): value for name, value in reply.getheaders()}


def text(port: int, number: int) -> str:
    """The text of an answer that depends on the number. It is streamed if the number is even, else whole."""
    body = {**BODY, "parameters": {**BODY["parameters"], "seed": number}}  # type: ignore[dict-item]
    if number % 2:
        status, data, _ = ask(port, "POST", "/generate", body)
        assert status == 200, data
        return str(json.loads(data)["generated_text"][0])
    status, data, _ = ask(port, "POST", "/generate_stream", body)
    assert status == 200, data
    events = [json.loads(line[5:]) for line in data.splitlines() if line.startswith(b"data:")]
    assert events[-1]["finished"]
    return "".join(event["token"]["text"] for event in events)


def live(port: int) -> float:
    return metric(port, "live_requests")


def metric(port: int, name: str) -> float:
    lines = ask(port, "GET", "/metrics")[1].decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"lightllm_{name}{{"))


def until(condition: Any, seconds: float = DEADLINE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def holders(port: int, pids: list[int]) -> set[int]:
    """The processes that hold the socket that listens on the port."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    socket_name = next(f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A")
    found = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found |= {pid} if os.readlink(link) == socket_name else set()
    return found


def readme_stream(port: int, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    (block,) = re.findall(r"```python\n(import http\.client, .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program: dict[str, Any] = {}
    exec(block, program)
    return program["stream"](f"127.0.0.1:{port}", "mine", body)


def handle_stream(port: int, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Stream as `Server.stream` does."""
    return client.stream(f"http://127.0.0.1:{port}", body)


@pytest.mark.parametrize("stream", [readme_stream, handle_stream])
def test_every_event_comes_once_although_http_is_killed(folder: Path, stream: Any) -> None:
    with mock_serving(folder, "--port", "0") as server:
        whole = text(server.port, 2)
        body = {**BODY, "parameters": {**BODY["parameters"], "seed": 2}}  # type: ignore[dict-item]
        found = []
        for event in stream(server.port, body):
            found.append(event["token"]["text"])
            if len(found) in (100, 400, 700):
                while "http" not in (actors := server.actors()):
                    time.sleep(0.01)  # http is being replaced; these events came before its death
                os.kill(actors["http"], signal.SIGKILL)
    assert len(found) == 1000
    assert "".join(found) == whole


def poison(port: int, name: str) -> bytes:
    """Send a request that kills http. Returns the answer that the client gets when it reconnects."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/generate", json.dumps({"inputs": POISON}), {"X-Request-Id": name})
        connection.getresponse()
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, data, _ = ask(port, "GET", f"/requests/{name}")
            if status != 503:
                return data
        time.sleep(0.05)
    raise AssertionError("there is no answer")


def test_requests_that_kill_http_do_not_end_the_server(folder: Path) -> None:
    """Each request kills http three times. Without blame on the request the second one would end the server."""
    poisoned = "tests.actors.mock_front:PoisonedHttpActor"
    with mock_serving(folder, "--port", "0", front=poisoned) as server, ThreadPoolExecutor(1) as pool:
        wanted = text(server.port, 2)
        body = {**BODY, "parameters": {**BODY["parameters"], "seed": 2}}  # type: ignore[dict-item]
        for number in range(3):
            events = handle_stream(server.port, body)
            first = next(events)["token"]["text"]
            other = pool.submit(lambda first=first, events=events: first + "".join(e["token"]["text"] for e in events))
            assert b"failed on this request repeatedly" in poison(server.port, f"poison-{number}")
            assert other.result() == wanted
        until(lambda: b'actor="http",model_name="mock"} 9.0' in ask(server.port, "GET", "/metrics")[1])


def test_a_refusal_is_said_by_the_client(folder: Path) -> None:
    refused = pytest.raises(EngineError, match="token ids must lie between 0 and 255")
    with mock_serving(folder, "--port", "0") as server, refused:
        next(handle_stream(server.port, {"inputs": [70_000]}))


def test_sigterm_finishes_what_runs_and_another_server_is_not_touched(folder: Path, tmp_path: Path) -> None:
    """The model folder of the first server is also deleted: the server has read all that it needs."""
    own = tmp_path / "model"
    shutil.copytree(folder, own)
    with mock_serving(own, "--port", "0") as first, mock_serving(folder, "--port", "0") as second:
        wanted = [text(second.port, number) for number in range(8)]
        shutil.rmtree(own)
        assert text(first.port, 1) == wanted[1]
        worker = first.actors()["worker0"]
        with ThreadPoolExecutor(8) as pool:
            os.kill(worker, signal.SIGSTOP)  # no answer is ready before all requests are there
            answers = [pool.submit(text, first.port, number) for number in range(8)]
            until(lambda: live(first.port) == 8)
            first.process.send_signal(signal.SIGTERM)
            until(lambda: ask(first.port, "GET", "/readiness")[0] == 503)
            status, _, headers = ask(first.port, "POST", "/generate", BODY)
            assert (status, "retry-after" in headers) == (503, True)
            os.kill(worker, signal.SIGCONT)
            assert [answer.result() for answer in answers] == wanted
        assert first.process.wait(DEADLINE) == 0
        assert gone(first.children)
        assert text(second.port, 3) == wanted[3]
        assert sorted(second.actors().values()) == sorted(second.children)


def test_a_terminal_that_closes_lets_running_requests_finish(folder: Path) -> None:
    """The whole group gets SIGHUP more than once."""
    with mock_serving(folder, "--port", "0") as server, ThreadPoolExecutor(4) as pool:
        port, worker = server.port, server.actors()["worker0"]
        wanted = [text(port, number) for number in range(4)]
        os.kill(worker, signal.SIGSTOP)
        answers = [pool.submit(text, port, number) for number in range(4)]
        until(lambda: live(port) == 4)
        os.killpg(server.process.pid, signal.SIGHUP)
        until(lambda: ask(port, "GET", "/readiness")[0] == 503)
        os.killpg(server.process.pid, signal.SIGHUP)
        time.sleep(0.5)
        assert ask(port, "GET", "/readiness")[0] == 503  # not stopped
        os.kill(worker, signal.SIGCONT)
        assert [answer.result() for answer in answers] == wanted
        assert server.process.wait(DEADLINE) == 0
        assert gone(server.children)


def test_with_nohup_a_terminal_that_closes_changes_nothing(folder: Path) -> None:
    with mock_serving(folder, "--port", "0", prepare=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as server:
        port = server.port
        os.killpg(server.process.pid, signal.SIGHUP)
        time.sleep(0.5)
        assert text(port, 1)
        assert ask(port, "GET", "/readiness")[0] == 200


PR_SET_CHILD_SUBREAPER = 36


def test_who_loses_its_parent_to_the_server_is_no_zombie(folder: Path) -> None:
    """As PID 1 of a container (here: a subreaper) the server inherits the children of dead actors."""
    libc = ctypes.CDLL(None)
    with mock_serving(
        folder,
        "--port",
        "0",
        worker="tests.actors.supervision.odd_actors:ParentActor",
        prepare=lambda: libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0),
    ) as server:
        wanted = text(server.port, 1)
        for _ in range(2):
            worker = server.actors()["worker0"]
            (orphan,) = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
            os.kill(worker, signal.SIGKILL)
            until(lambda path=Path(f"/proc/{orphan}"): not path.exists(), 20.0)  # a zombie still has its folder
            server.until(f"reaped process {orphan}, whose parent had ended")
            assert text(server.port, 1) == wanted
        assert server.log.count("worker0 was killed by SIGKILL") == 2  # the event loop got the status of its own child
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE) == 0


ENDS = {
    "SIGKILL of the supervisor": lambda process: process.kill(),
    "SIGKILL of the group": lambda process: os.killpg(process.pid, signal.SIGKILL),
    "SIGINT of the group": lambda process: os.killpg(process.pid, signal.SIGINT),
    "SIGTERM of the supervisor": lambda process: process.send_signal(signal.SIGTERM),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_restarts_in_a_row_leave_nothing_behind(folder: Path) -> None:
    """A restart under load, on the same port, at once."""
    shared, port = set(os.listdir("/dev/shm")), 0
    for number in range(RESTARTS):
        name, end = list(ENDS.items())[number % len(ENDS)]
        with mock_serving(folder, "--port", str(port), "--drain-timeout", "0.2") as server:
            port = server.port
            actors = server.actors()
            assert len(actors) == 6
            assert holders(port, list(actors.values())) == {actors["http"]}
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 4000, "n": 8, "ignore_eos": True}})
                client.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
                client.sendall(body.encode())
                until(lambda port=port: live(port) == 1)
                end(server.process)
                assert server.process.wait(DEADLINE) == (-signal.SIGKILL if "KILL" in name else 0), name
                assert gone(list(actors.values())), name
    assert set(os.listdir("/dev/shm")) == shared


def test_stopped_actors_make_it_unhealthy_and_are_replaced(folder: Path) -> None:
    flags = ("--port", "0", "--watchdog-timeout", "1", "--max-restarts", "100")
    with mock_serving(folder, *flags) as server, ThreadPoolExecutor(1) as pool:
        port, old = server.port, server.actors()
        wanted = text(port, 0)
        others = {pid for name, pid in old.items() if name != "http"}
        asked = pool.submit(text, port, 0)
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: ask(port, "GET", "/health")[0] == 503)
        assert b"lightllm_actor_up" in ask(port, "GET", "/metrics")[1]  # needs no other process
        assert ask(port, "GET", "/liveness")[0] == 200
        assert asked.result() == wanted
        assert not others & set(server.actors().values())
        # Now the port's own process dies too: the next one serves clients that connect meanwhile.
        old = server.actors()
        for pid in old.values():
            os.kill(pid, signal.SIGSTOP)
        until(lambda: ask(port, "GET", "/health")[0] == 200)
        assert not set(old.values()) & set(server.actors().values())
        assert text(port, 0) == wanted


def test_a_worker_that_dies_at_every_start_ends_the_server(folder: Path) -> None:
    with mock_serving(
        folder, "--port", "0", worker="tests.actors.supervision.odd_actors:DiesAtEveryRestartActor"
    ) as server:
        assert text(server.port, 1)
        os.kill(server.actors()["worker0"], signal.SIGKILL)
        pids = list(server.actors().values())
        _, rest = server.process.communicate(timeout=DEADLINE)
        assert server.process.returncode == 70
        assert rest.count("WARNING lightllm_mp.supervisor: worker0 exited with code 3") == 3
        reason = "giving up: worker0 exited with code 3, and the restart budget is spent"
        assert rest.splitlines()[-1].endswith(reason), rest
        assert gone(pids)
