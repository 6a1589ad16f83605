"""A viewer watches the engine while its processes are killed and while it drains."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.actors.mock_server import write_mock_model
from tests.end_to_end.test_serve_command import DEADLINE
from tests.end_to_end.test_whole_group import MockServing, ask, mock_serving

TOKENS = 250
PACED = "tests.actors.mock_actor:PacedLargeMockWorkerActor"
Event = dict[str, Any]


class Viewer:
    """Reads /live/events in a thread, and reconnects if the stream breaks before a drain."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/live/events"
        self.events: list[Event] = []
        self.connections = 0
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with urllib.request.urlopen(self.url, timeout=DEADLINE) as reply:
                    self.connections += 1
                    self._read(reply)
            except OSError:
                time.sleep(0.05)

    def _read(self, reply: Any) -> None:
        for line in reply:
            if line.startswith(b"data:"):
                self.events.append(json.loads(line[5:]))
                if self.events[-1]["engine"]["draining"]:
                    self._over.set()
                if self._over.is_set():
                    return

    def close(self) -> None:
        """Stop after the next event."""
        self._over.set()

    def until(self, condition: Callable[[Event], bool]) -> Event:
        """The first event from now on that meets the condition."""
        seen, deadline = len(self.events), time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            for event in self.events[seen:]:
                if condition(event):
                    return event
            time.sleep(0.02)
        raise AssertionError(f"not seen; last: {self.events[-1:]}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockServing]:
    folder = write_mock_model(tmp_path_factory.mktemp("live") / "model")
    with mock_serving(folder, "--port", "0", worker=PACED) as server:
        yield server


def answer(port: int, number: int) -> str:
    rules = {"max_new_tokens": TOKENS, "ignore_eos": True, "do_sample": True, "seed": number}
    status, data, _ = ask(port, "POST", "/generate", {"inputs": "Tell me", "parameters": rules})
    assert status == 200, data
    return str(json.loads(data)["generated_text"][0])


def actor(event: Event, name: str) -> Event:
    return next((one for one in event["actors"] if one["name"] == name), {})


def stages(event: Event) -> set[str]:
    return {row["stage"] for row in event["requests"]["rows"]}


def test_a_repair_is_seen_and_not_held_up(server: MockServing) -> None:
    port = server.port
    viewer = Viewer(port)
    with ThreadPoolExecutor(6) as pool:
        whole = list(pool.map(lambda number: answer(port, number), range(3)))
        answers = [pool.submit(answer, port, number) for number in range(3)]
        before = viewer.until(lambda event: stages(event) == {"decode"} and event["requests"]["running"] == 3)
        assert all(before["kv"][name] > 0 for name in ("used", "tree_nodes", "cell_slots"))
        os.kill(actor(before, "worker0")["pid"], signal.SIGKILL)
        repair = viewer.until(lambda event: event["engine"]["state"] == "repairing")
        assert stages(repair) == {"repair"}
        assert actor(repair, "worker0")["state"] != "ready"
        assert "worker0 was killed by SIGKILL" in repair["engine"]["trouble"]
        after = viewer.until(lambda event: event["engine"]["state"] == "running" and "decode" in stages(event))
        assert after["engine"]["epoch"] == before["engine"]["epoch"] + 1
        worker = actor(after, "worker0")
        assert (worker["restarts"], worker["died"], worker["state"]) == (1, "was killed by SIGKILL", "ready")
        assert [one.result(DEADLINE) for one in answers] == whole
    done = viewer.until(lambda event: not event["requests"]["rows"])
    assert viewer.connections == 1
    assert max(point["generated"] for point in done["history"]) > 0
    assert max(point["rows"] for point in done["history"]) >= 1
    os.kill(actor(done, "http")["pid"], signal.SIGKILL)
    viewer.until(lambda event: event["engine"]["epoch"] == before["engine"]["epoch"] + 2)
    assert viewer.connections == 2
    viewer.close()


def test_a_drain_does_not_wait_for_viewers(server: MockServing) -> None:
    viewers = [Viewer(server.port) for _ in range(3)]
    for viewer in viewers:
        viewer.until(lambda event: event["engine"]["state"] == "running")
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(DEADLINE) == 0
    assert time.monotonic() - begin < 10
    for viewer in viewers:
        viewer.close()
        viewer.thread.join(DEADLINE)
