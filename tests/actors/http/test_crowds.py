"""Many clients at once and many requests in a row: refused in order, nothing grows, and everybody else is served."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.actors.http.harness import Engine, Site, run

SHORT = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
PATIENCE = 10.0
LONG = {"inputs": "a", "parameters": {"max_new_tokens": 10**6}}


def post(path: str, body: dict) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def counters(s: Site) -> dict[tuple, float]:
    families = text_string_to_metric_families((await s.get("/metrics"))[1])
    found = [sample for family in families for sample in family.samples]
    assert all(sample.value >= 0 for sample in found)
    ends = ("_total", "_count", "_bucket", "_sum")
    return {(x.name, *x.labels.values()): x.value for x in found if x.name.endswith(ends)}


def test_two_hundred_at_once_are_answered_or_told_when_to_come_again():
    async def body(s: Site):
        answers = await asyncio.gather(*(s.post("/generate", SHORT) for _ in range(200)))
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 429}
        assert statuses.count(200) >= 40
        assert all(1 <= int(h["Retry-After"]) <= 60 for status, _, h in answers if status == 429)
        assert (await s.post("/generate", SHORT))[0] == 200
        assert s.frontend.live == 0

    run(body, max_live_requests=40, engine=Engine(pace=0.01))


def test_a_flood_is_refused_in_bounded_memory_and_metrics_go_on():
    """1,000 requests beside a full server; scripts and not this test measure how quick a refusal is."""

    async def client(s: Site, count: int) -> set[int]:
        return {(await s.post("/generate", SHORT))[0] for _ in range(count)}

    async def body(s: Site):
        s.engine.paused = True
        held = [asyncio.create_task(s.post("/generate", SHORT)) for _ in range(20)]
        await s.settled(lambda: len(s.engine.running) == 20, PATIENCE)
        assert await client(s, 50) == {429}
        before, memory = await counters(s), resident()
        flood = [asyncio.create_task(client(s, 25)) for _ in range(40)]
        while not all(task.done() for task in flood):
            await asyncio.sleep(0.05)
            after = await counters(s)
            assert all(after[name] >= value for name, value in before.items())
            before = after
        assert [task.result() for task in flood] == [{429}] * 40
        assert s.frontend.live == 20
        assert resident() - memory < 16 << 20
        name = ("lightllm_admission_rejections_total", "fake", "max_live_requests")
        assert (await counters(s))[name] == 1050
        s.engine.paused = False
        assert {(await task)[0] for task in held} == {200}

    run(body, max_live_requests=20)


@pytest.mark.parametrize(("path", "count"), [("/generate_stream", 40), ("/generate", 30)])
def test_all_clients_leave_in_the_middle(path: str, count: int):
    async def body(s: Site):
        writers = []
        for _ in range(count):
            _, writer = await asyncio.open_connection(*s.address)
            writer.write(post(path, LONG))
            writers.append(writer)
        await s.settled(lambda: len(s.engine.running) == count, PATIENCE)
        await s.settled(lambda: all(produced for produced, *_ in s.engine.running.values()), PATIENCE)
        for writer in writers:
            writer.transport.abort()
        await s.settled(lambda: s.frontend.live == 0, PATIENCE)
        assert not s.engine.running
        assert (await s.post("/generate", SHORT))[0] == 200

    run(body, engine=Engine(pace=0.01))


def test_cut_uploads_and_probes_leave_nothing():
    async def body(s: Site):
        async def cut(count: int) -> None:
            for _ in range(count):
                _, writer = await asyncio.open_connection(*s.address)
                writer.write(post("/generate", {"inputs": "a" * 200_000})[:-5])
                await writer.drain()
                writer.transport.abort()

        async def probe(count: int) -> None:
            for _ in range(count):
                assert (await s.get("/health"))[0] == 200

        async def memory() -> int:
            await asyncio.sleep(0.1)  # the server hears of the last one
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        await cut(5)
        await probe(50)
        open_before = descriptors()
        tracemalloc.start()
        before = await memory()
        await cut(50)
        await probe(400)
        assert await memory() - before < 1 << 20  # what was sent is ten times as much
        tracemalloc.stop()
        assert descriptors() <= open_before
        assert s.frontend.live == 0
        assert not s.engine.tokenizer

    run(body)


def test_a_request_that_drips_is_closed_in_time():
    """A byte now and then does not buy more time, neither in the head nor in the body."""

    async def drip(s: Site, data: bytes, first: int) -> bytes:
        reader, writer = await asyncio.open_connection(*s.address)
        answer = asyncio.create_task(reader.read())
        writer.write(data[:first])
        for i in range(first, len(data)):
            if answer.done():
                break
            writer.write(data[i : i + 1])
            await asyncio.sleep(0.05)
        assert i < len(data) - 1
        writer.close()
        try:
            return await answer
        except ConnectionError:
            return b""

    async def body(s: Site):
        data = post("/generate", {"inputs": "a" * 200})
        in_head, in_body = await asyncio.gather(drip(s, data, 5), drip(s, data, data.index(b"\r\n\r\n") + 4))
        assert in_head == b""
        assert not in_body or in_body.startswith(b"HTTP/1.1 408 ")
        assert s.frontend.live == 0
        assert not s.engine.tokenizer
        assert (await s.post("/generate", SHORT))[0] == 200

    run(body, header_timeout=0.4)


CROWD = """
import socket, sys
clients = []
for _ in range(int(sys.argv[2])):
    client = socket.socket()
    client.settimeout(10)
    client.connect(("127.0.0.1", int(sys.argv[1])))
    clients.append(client)
print("all here", flush=True)
sys.stdin.read()
"""


def test_more_clients_than_descriptors(caplog: pytest.LogCaptureFixture):
    """Accepting pauses, those who are connected are served, and when the crowd has gone all is well again."""

    async def body(s: Site):
        kept = await asyncio.open_connection(*s.address)
        kept[1].write(post("/generate", SHORT))
        await kept[0].readuntil(b"}")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        crowd = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", CROWD, str(s.address[1]), "150"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert crowd.stdout is not None
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 100, hard))
        try:
            assert await crowd.stdout.readline() == b"all here\n"  # the rest waits in the kernel's queue
            await s.settled(lambda: "none can be accepted: Too many open files" in caplog.text, PATIENCE)
            kept[1].write(post("/generate", SHORT))
            assert b"generated_text" in await kept[0].readuntil(b"]")
            await crowd.communicate(b"")
            assert (await s.post("/generate", SHORT))[0] == 200
            assert len(caplog.records) < 200
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            kept[1].close()

    run(body)
