"""Replicas on Ray with engines without a model: after any failure requests continue. All tests share one cluster and
run in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer

from lightllm_mp import client
from lightllm_mp.messages import Sampling
from lightllm_mp.replicas import engine_client
from lightllm_mp.replicas.front import FleetFront
from lightllm_mp.replicas.http_fleet import HttpFleet
from lightllm_mp.replicas.routing import ReplicaRouter
from tests.replicas.tcp_proxy import TcpProxy, tcp_proxy
from tests.scheduler.mock_worker import expected
from tools.harness.procfs import actors

ray = pytest.importorskip("ray", reason="needs Ray (pip install 'lightllm-mp[ray]')")

from lightllm_mp.ray.directory import Directory, DirectoryClient  # noqa: E402
from tools.faults.local_cluster import LocalCluster, belonging, children, local_cluster, settle  # noqa: E402

pytestmark = pytest.mark.timeout(120)
TOKENS = 150
ASKED = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": TOKENS, "ignore_eos": True}}
STREAMS = 4
PATIENCE = 60.0


@dataclass
class Streamed:
    ids: list[int] = field(default_factory=list)
    text: str = ""
    times: list[float] = field(default_factory=list)
    error: str = ""


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalCluster]:
    """Two replicas on two nodes."""
    with local_cluster(1, 1) as cluster:
        cluster.deploy(2)
        yield cluster
        before = set(cluster.replicas().values())
        cluster.end_application()
        settle(lambda: not any(is_alive(pid) for pid in before))
    assert belonging(cluster.folder) == []
    assert not cluster.folder.exists()


@pytest.fixture(scope="module")
def whole(fleet: LocalCluster) -> Streamed:
    """The undisturbed answer of one engine."""
    found = Streamed()
    stream(fleet, found)
    prompt = Tokenizer.from_file(str(fleet.folder / "mock" / "tokenizer.json")).encode(ASKED["inputs"]).ids
    sampling = Sampling(seed=0, max_new_tokens=TOKENS, ignore_eos=True)
    assert found.ids == expected(prompt, sampling, eos_ids=(0,), vocab_size=256, longest=4096)
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


def ask(fleet: LocalCluster, path: str, body: Any, **headers: str) -> Any:
    request = urllib.request.Request(fleet.url + path, json.dumps(body).encode(), headers)
    return urllib.request.urlopen(request, timeout=PATIENCE)


def stream(fleet: LocalCluster, found: Streamed) -> None:
    try:
        with ask(fleet, "/generate_stream", ASKED) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    token = json.loads(line[5:])["token"]
                    found.ids.append(token["id"])
                    found.text += token["text"]
                    found.times.append(time.monotonic())
    except (OSError, KeyError, ValueError) as error:
        found.error = repr(error)


@contextlib.contextmanager
def streams(fleet: LocalCluster, whole: Streamed) -> Iterator[list[Streamed]]:
    """Streams that run during the block. At the end each must be the whole answer."""
    found = [Streamed() for _ in range(STREAMS)]
    threads = [threading.Thread(target=stream, args=(fleet, one), daemon=True) for one in found]
    for thread in threads:
        thread.start()
    settle(lambda: all(len(one.ids) > 5 for one in found))
    yield found
    for thread in threads:
        thread.join(PATIENCE)
    assert [(one.error, one.ids, one.text) for one in found] == [("", whole.ids, whole.text)] * STREAMS


def answers(fleet: LocalCluster, whole: Streamed) -> None:
    """Check that a new request gets its answer."""
    with ask(fleet, "/generate", ASKED) as answer:
        assert json.load(answer)["generated_text"] == [whole.text]


class TestFleet:
    def test_every_api_is_there(self, fleet: LocalCluster, whole: Streamed) -> None:
        answers(fleet, whole)
        for path in ("/v1/models", "/health"):
            with urllib.request.urlopen(fleet.url + path, timeout=PATIENCE) as answer:
                assert json.load(answer)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(fleet, "/generate", {"inputs": 7})
        assert refused.value.code == 400
        assert "error" in json.load(refused.value)

    def test_a_process_of_an_engine_dies(self, fleet: LocalCluster, whole: Streamed) -> None:
        before = fleet.replicas()
        with streams(fleet, whole):
            for pid in before.values():
                os.kill(children(pid)[0], signal.SIGKILL)
        assert fleet.replicas() == before  # Serve has replaced no replica

    def test_a_replica_is_slow(self, fleet: LocalCluster, whole: Streamed) -> None:
        """Its streams wait, new requests go to another replica, and Serve replaces no replica."""
        before = fleet.replicas()
        front = actors(next(iter(before.values())))["http"]
        with streams(fleet, whole):
            os.kill(front, signal.SIGSTOP)
            try:
                time.sleep(4.0)
                begin = time.monotonic()
                for _ in range(3):
                    with ask(fleet, "/generate", {**ASKED, "parameters": {"max_new_tokens": 5}}) as answer:
                        assert json.load(answer)
                assert time.monotonic() - begin < 3.0
            finally:
                os.kill(front, signal.SIGCONT)
        assert fleet.replicas() == before

    def test_the_way_to_a_replica_is_cut(
        self, fleet: LocalCluster, whole: Streamed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The test's front reaches the replicas through proxies. One proxy falls silent in mid-stream."""
        monkeypatch.setattr(engine_client, "SILENCE", 3.0)
        asyncio.run(asyncio.wait_for(partition(fleet, whole), PATIENCE))

    def test_the_directory_dies(self, fleet: LocalCluster, whole: Streamed) -> None:
        (directory,) = fleet.processes("ray::Directory")
        with streams(fleet, whole):
            os.kill(directory, signal.SIGKILL)
            answers(fleet, whole)
        settle(lambda: fleet.processes("ray::Directory") not in ([], [directory]))
        answers(fleet, whole)

    def test_the_controller_of_serve_dies(self, fleet: LocalCluster, whole: Streamed) -> None:
        before = fleet.replicas()
        (controller,) = fleet.processes("ray::ServeController")
        with streams(fleet, whole):
            os.kill(controller, signal.SIGKILL)
            answers(fleet, whole)
        settle(lambda: fleet.processes("ray::ServeController") not in ([], [controller]))
        assert fleet.replicas() == before

    def test_a_whole_replica_dies(self, fleet: LocalCluster, whole: Streamed) -> None:
        """The new controller of Serve replaces the replica."""
        replica, engine = next(iter(fleet.replicas().items()))
        with streams(fleet, whole):
            os.kill(replica, signal.SIGKILL)
        settle(lambda: len(fleet.replicas()) == 2 and not is_alive(engine))

    def test_a_front_dies(self, fleet: LocalCluster, whole: Streamed) -> None:
        """A client that reconnects, like this package's client, gets the rest from another front."""
        (front,) = fleet.processes("ray::ServeReplica:lightllm_mp:front")
        ids = []
        for event in client.stream(fleet.url, ASKED):
            ids.append(event["token"]["id"])
            if len(ids) == 20:
                os.kill(front, signal.SIGKILL)
        assert ids == whole.ids

    def test_the_head_is_started_again(self, fleet: LocalCluster, whole: Streamed) -> None:
        head = fleet.cluster.head_node
        with streams(fleet, whole):
            head.kill_gcs_server()
            answers(fleet, whole)
            time.sleep(3.0)  # the fronts ask the directory meanwhile
            answers(fleet, whole)
            head.start_gcs_server()
        answers(fleet, whole)

    def test_a_node_is_gone(self, fleet: LocalCluster, whole: Streamed) -> None:
        """All processes of a node are killed. The new head finds another place for its replica."""
        (node,) = fleet.cluster.worker_nodes
        with streams(fleet, whole):
            fleet.cluster.remove_node(node, allow_graceful=False)
            settle(lambda: len(fleet.replicas()) == 1)
        fleet.add_node(1)
        settle(lambda: len(fleet.replicas()) == 2)
        answers(fleet, whole)

    def test_a_smaller_fleet_ends_what_it_has_begun(self, fleet: LocalCluster, whole: Streamed) -> None:
        with streams(fleet, whole):
            fleet.deploy(1)
        settle(lambda: len(fleet.replicas()) == 1)

    def test_a_rolling_update_loses_nothing(self, fleet: LocalCluster, whole: Streamed) -> None:
        before = fleet.replicas()
        with streams(fleet, whole):
            fleet.deploy(2, kv_tokens=5000)
        settle(lambda: len(fleet.replicas()) == 2 and not set(fleet.replicas()) & set(before))
        answers(fleet, whole)

    @pytest.mark.cluster
    def test_a_replica_on_two_nodes(self, fleet: LocalCluster, whole: Streamed) -> None:
        """The replica's process on the second node dies, then this node is gone: the engine stays and waits for
        another."""
        fleet.deploy(1, nodes=2)
        (replica,) = fleet.replicas().items()
        (agent,) = fleet.processes("ray::MockNode")
        with streams(fleet, whole):
            os.kill(children(agent)[0], signal.SIGKILL)
        (node,) = fleet.cluster.worker_nodes
        with streams(fleet, whole):
            fleet.cluster.remove_node(node, allow_graceful=False)
            fleet.add_node(1)
        assert fleet.replicas() == dict([replica])
        answers(fleet, whole)


async def partition(fleet: LocalCluster, whole: Streamed) -> None:
    router, proxies = ReplicaRouter(1), dict[str, TcpProxy]()
    over = HttpFleet(router, fleet.relay_key)
    front = FleetFront(over, router)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(over.close)
        facts = await DirectoryClient("lightllm_mp").replicas()
        assert facts is not None
        for name, known in facts.items():
            address = urlsplit(known.url)
            assert address.hostname is not None
            assert address.port is not None
            proxy = proxies[name] = await stack.enter_async_context(tcp_proxy(address.hostname, address.port))
            facts[name] = replace(known, url=f"http://127.0.0.1:{proxy.port}")
        await over.update(facts)
        answer = front.answer("POST", "/generate_stream", {"X-Request-Id": "cut"}, json.dumps(ASKED).encode())
        pieces = [await anext(answer) for _ in range(20)]
        begin = time.monotonic()
        cut = front._owners["", "cut"]
        proxies[cut].partition()
        pieces += [piece async for piece in answer]
        events = [json.loads(line[5:]) for line in joined(pieces).split(b"\n") if line.startswith(b"data:")]
        assert [event["token"]["id"] for event in events] == whole.ids
        assert "".join(event["token"]["text"] for event in events) == whole.text
        assert front.moved
        assert not front.lost
        assert 3.0 < time.monotonic() - begin < 30.0
        assert not router.replicas[cut].accepting


def joined(pieces: list[Any]) -> bytes:
    return b"".join(piece for piece in pieces if isinstance(piece, bytes))


def test_a_directory_that_knows_little_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("lightllm_mp.ray.directory.monotonic", lambda: now)
    directory = Directory()
    directory.report("a", {})
    assert directory.replicas() == ({"a": {}}, False)
    for _ in range(12):
        now += 0.5
        directory.report("a", {})
        found = directory.replicas()
    assert found == ({"a": {}}, True)
    now += 60.0  # the directory itself was paused
    assert directory.replicas() == ({"a": {}}, True)
    for _ in range(12):
        now += 0.5
        found = directory.replicas()
    assert found == ({}, True)
