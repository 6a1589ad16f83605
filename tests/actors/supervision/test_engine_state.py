"""The state of its processes that the supervisor reports while it starts, repairs and stops them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from lightllm_mp.actors.supervision.engine_state import actor_state
from lightllm_mp.actors.supervision.process_usage import ProcessUsage, process_usage
from lightllm_mp.actors.topology import SUPERVISOR, topology
from lightllm_mp.facts import Facts
from lightllm_mp.messages import ActorState, EngineState, LaneState, Loading, Ready
from tests.actors.supervision.fake_server import DIES, SETTINGS, START_ORDER, Server, recovers, running


def states(server: Server) -> Mapping[str, str]:
    return {name: actor_state(child, None, server.now).state for name, child in server.machine.children.items()}


def test_a_start_says_what_it_does() -> None:
    server = Server()
    assert set(states(server).values()) == {"down"}
    server.take(server.machine.start())
    assert set(states(server).values()) == {"starting"}
    server.says("worker0", Loading("weights", 3, 9))
    worker = actor_state(server.machine.children["worker0"], None, 0.0)
    assert (worker.doing, worker.done, worker.total) == ("weights", 3, 9)
    server.says("worker0", Ready(Facts()))
    worker = actor_state(server.machine.children["worker0"], None, 0.0)
    assert (worker.state, worker.doing) == ("ready", "")


def test_a_repair_says_who_died_and_how() -> None:
    server = running()
    assert set(states(server).values()) == {"ready"}
    server.dies("worker0")
    found = states(server)
    assert found["worker0"] == "starting"
    assert {found[name] for name in START_ORDER if name != "worker0"} == {"resetting"}
    worker = actor_state(server.machine.children["worker0"], None, server.now)
    assert (worker.died, worker.restarts) == (DIES, 1)
    recovers(server, "worker0")
    assert set(states(server).values()) == {"ready"}
    assert actor_state(server.machine.children["worker0"], None, server.now).died == DIES


def test_ranks_that_fall_together_and_silence_and_pauses() -> None:
    server = running(ranks=2)
    server.dies("worker1")
    assert (states(server)["worker0"], states(server)["worker1"]) == ("killed", "down")
    server = running()
    server.ticks(0.0)
    server.ticks(6.0)
    assert states(server)["router"] == "silent"
    assert actor_state(server.machine.children["router"], None, server.now).wait == 6.0
    server.ticks(6.0)
    assert states(server)["router"] == "killed"
    server = running()
    for _ in range(SETTINGS.max_restarts + 1):
        server.dies("guide")
    assert states(server)["guide"] == "away"
    server.take(server.machine.stop())
    assert states(server)["http"] == "stopping"


def test_the_use_of_a_process() -> None:
    block = bytearray(64 << 20)
    found = process_usage(os.getpid())
    assert found.cpu_seconds > 0
    assert len(block) < found.memory < 1 << 40
    assert found.shared > 0
    assert process_usage(1 << 22) == ProcessUsage()


def test_the_largest_answer_fits_a_record() -> None:
    """Tests more processes and lanes than sixteen ranks have: a record takes at most an eighth of its lane."""
    actors = tuple(ActorState(f"worker{rank}", "pausing", 1 << 22, 1e6, 9, "x" * 64, "y" * 64) for rank in range(32))
    lanes = tuple(LaneState("detokenizer", f"worker{lane}", 1 << 20, 1 << 20, 1 << 40, 1 << 40) for lane in range(128))
    data = msgspec.msgpack.encode(EngineState("repairing", 9, 1.5, actors, lanes))
    plan = topology()
    (edge,) = (edge for edge in plan.edges if (edge.first, edge.second) == (SUPERVISOR, plan.front))
    assert len(data) < edge.forward // 8
