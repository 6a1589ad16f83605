"""Clients that leave, wait, do not read, or send half of what they should; and a repair in the middle of it all."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest

from lightllm_mp import messages as say
from tests.actors.http.harness import PATIENCE, Engine, Site, parse, run, word

BODY = {"inputs": "a", "parameters": {"max_new_tokens": 500}}


def post(path: str, body: dict, *headers: str, version: str = "1.1") -> bytes:
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + data


async def closed_after(reader: asyncio.StreamReader) -> float:
    """Seconds until the server closes the connection, long before it would by itself."""
    begin = time.monotonic()
    await asyncio.wait_for(reader.read(), PATIENCE)
    return time.monotonic() - begin


def test_a_client_that_leaves_frees_its_request():
    async def body(s: Site):
        for path in ("/generate_stream", "/generate"):
            _, writer = await asyncio.open_connection(*s.address)
            writer.write(post(path, BODY | {"parameters": {"n": 1, "max_new_tokens": 10**6}}))
            await s.settled(lambda: bool(s.engine.running))
            [rid] = s.engine.running
            s.engine.tokenizer.clear()
            s.engine.router.clear()
            writer.close()
            await s.settled(lambda: s.frontend.live == 0)
            assert s.engine.router == s.engine.tokenizer == [say.Abort(rid)]
            assert not s.engine.running
        _, text, _ = await s.get("/metrics")
        assert 'request_failure_total{model_name="fake",reason="client_gone"} 2.0' in text

    run(body, engine=Engine(pace=0.002))


def test_a_client_that_leaves_with_several_answers_or_before_the_first_token():
    async def body(s: Site):
        s.engine.paused = True
        for body_ in ({"inputs": "a", "parameters": {"n": 4}}, {"inputs": "a"}):
            _, writer = await asyncio.open_connection(*s.address)
            writer.write(post("/generate", body_))
            await s.settled(lambda: bool(s.engine.running))
            writer.transport.abort()
            await s.settled(lambda: s.frontend.live == 0)
            assert not s.engine.running

    run(body)


def test_a_client_that_leaves_while_sending():
    async def body(s: Site):
        for _ in range(20):
            _, writer = await asyncio.open_connection(*s.address)
            writer.write(post("/generate", BODY)[:-5])
            await writer.drain()
            writer.transport.abort()
        assert (await s.post("/generate", {"inputs": "a"}))[0] == 200
        await s.settled(lambda: s.frontend.live == 0)
        assert sum(isinstance(m, say.Generate) for m in s.engine.tokenizer) == 1

    run(body)


def test_a_stream_resumes_after_a_repair_without_a_lost_or_doubled_event():
    async def body(s: Site):
        want = "".join(word(i)[1] for i in range(40))
        stream = asyncio.create_task(s.events({"inputs": "a", "parameters": {"max_new_tokens": 40}}))
        whole = asyncio.create_task(s.post("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 40, "n": 2}}))
        await s.settled(lambda: len(s.engine.running) == 3)
        for _ in range(3):
            await asyncio.sleep(0.03)
            s.engine.crash()
            assert (await s.get("/health"))[0] == 503
            late = asyncio.create_task(s.post("/generate", {"inputs": "late"}))
            await asyncio.sleep(0.01)
            s.engine.begin()
            assert (await late)[0] == 200
        events = await stream
        assert "".join(e["token"]["text"] for e in events) == want
        assert [e["token"]["count_output_tokens"] for e in events] == list(range(1, 41))
        assert (await whole)[1]["generated_text"] == [want, want]
        resumed = [m for m in s.engine.tokenizer if isinstance(m, say.Generate) and m.emitted]
        assert resumed
        assert all(m.terms.n == 1 for m in resumed)

    run(body, engine=Engine(pace=0.003))


@pytest.mark.parametrize(
    ("pace", "write_timeout", "reason"),
    [(0.0005, 60.0, "slow_reader"), (0.03, 0.2, "client_gone")],
    ids=["by the bound on what waits for it", "by time, long before that bound"],
)
def test_a_reader_that_does_not_read_is_cut_off_and_others_are_served(pace, write_timeout, reason):
    async def body(s: Site):
        s.engine.text = "x" * 100_000
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, s.address)
        await asyncio.get_running_loop().sock_sendall(sock, post("/generate_stream", BODY))
        await s.settled(lambda: bool(s.engine.running))
        other = await s.post("/generate", {"inputs": "b", "parameters": {"max_new_tokens": 3}})
        assert other[0] == 200
        await s.settled(lambda: s.frontend.live == 0)
        assert not s.engine.running
        assert f'reason="{reason}"' in (await s.get("/metrics"))[1]
        sock.close()

    run(body, engine=Engine(pace=pace), write_timeout=write_timeout)


def test_a_slow_reader_that_reads_is_not_cut_off():
    async def body(s: Site):
        s.engine.text = "x" * 20_000
        reader, writer = await asyncio.open_connection(*s.address, limit=4096)
        writer.write(
            post("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": 60}}, "Connection: close")
        )
        size = 0
        while data := await reader.read(16384):
            size += len(data)
            await asyncio.sleep(0.005)
        assert size > 60 * 20_000
        writer.close()

    run(body, engine=Engine(pace=0.001), write_timeout=0.2)


def test_half_sent_requests_are_closed_and_others_served():
    async def body(s: Site):
        halves = [b"", b"POST /gen", b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Le"]
        readers = []
        for half in halves * 50:
            reader, writer = await asyncio.open_connection(*s.address)
            writer.write(half)
            readers.append((reader, writer))
        assert (await s.post("/generate", {"inputs": "a"}))[0] == 200
        for reader, writer in readers:
            await closed_after(reader)
            writer.close()

    run(body, header_timeout=1.0)  # also for the whole request, beside 150 others


def test_headers_that_trickle_are_closed():
    async def body(s: Site):
        reader, writer = await asyncio.open_connection(*s.address)
        closing = asyncio.create_task(closed_after(reader))
        for byte in b"GET /health HTTP/1.1\r\nX: " + b"a" * 1000:  # for 20 s, if it may
            if closing.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        assert 0.2 < await closing < 15
        writer.close()

    run(body, header_timeout=0.3)


def test_a_body_that_does_not_come_is_408():
    async def body(s: Site):
        answer = await s.raw(post("/generate", BODY)[:-5])
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer
        assert s.frontend.live == 0

    run(body, header_timeout=0.2)


def test_keep_alive_outlives_the_header_timeout_but_a_half_request_does_not():
    async def body(s: Site):
        reader, writer = await asyncio.open_connection(*s.address)
        for _ in range(2):
            writer.write(b"GET /liveness HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b'{"status":"ok"}')
            await asyncio.sleep(0.3)
        writer.write(b"GET /liveness HT")
        await closed_after(reader)
        writer.close()

    run(body, header_timeout=0.2)


def test_a_long_answer_outlives_the_header_timeout():
    async def body(s: Site):
        assert len(await s.events({"inputs": "a", "parameters": {"max_new_tokens": 30}})) == 30

    run(body, header_timeout=0.1, engine=Engine(pace=0.01))


def test_pipelined_requests_are_answered_in_order_with_errors_between():
    async def body(s: Site):
        short = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
        requests = [
            post("/generate", short),
            post("/generate", {"inputs": 5}),
            b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n",
            post("/generate_stream", short),
            b"GET /liveness HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ]
        answer = await s.raw(b"".join(requests))
        statuses = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        statuses += [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses[-5:] == [b"200", b"400", b"404", b"200", b"200"]
        assert answer.index(b"generated_text") < answer.index(b"not_found") < answer.index(b"data:{")
        assert answer.endswith(b'{"status":"ok"}')

    run(body)


def test_http_1_0_chunked_upload_and_expect():
    async def body(s: Site):
        short = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
        answer = await s.raw(post("/generate", short, version="1.0"))
        assert answer.startswith(b"HTTP/1.0 200")
        assert b"generated_text" in answer
        answer = await s.raw(post("/generate_stream", short, version="1.0"))
        head, _, events = answer.partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert len(parse(events)) == 2
        data = json.dumps(short).encode()
        chunked = b"".join(b"%x\r\n%b\r\n" % (len(data[i : i + 7]), data[i : i + 7]) for i in range(0, len(data), 7))
        head = b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        assert b"generated_text" in await s.raw(head + chunked + b"0\r\n\r\n")
        reader, writer = await asyncio.open_connection(*s.address)
        head, _, data = post("/generate", short, "Expect: 100-continue", "Connection: close").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 100")
        writer.write(data)
        assert b"generated_text" in await reader.read()
        writer.close()

    run(body)


def test_drain_finishes_what_runs_and_refuses_what_comes():
    async def body(s: Site):
        drained = asyncio.Event()
        s.frontend.on_drained = drained.set
        running = asyncio.create_task(s.events({"inputs": "a", "parameters": {"max_new_tokens": 30}}))
        await s.settled(lambda: bool(s.engine.running))
        s.frontend.health(say.Health(ok=True, draining=True))
        assert (await s.get("/readiness"))[0] == 503
        assert (await s.get("/health"))[0] == (await s.get("/liveness"))[0] == 200
        status, _, headers = await s.post("/generate", BODY)
        assert (status, "Retry-After" in headers) == (503, True)
        assert not drained.is_set()
        assert (await running)[-1]["finished"]
        await asyncio.wait_for(drained.wait(), PATIENCE)

    run(body, engine=Engine(pace=0.005))


def test_many_at_once_each_gets_its_own():
    async def body(s: Site):
        tasks = [s.events({"inputs": "a", "parameters": {"max_new_tokens": 1 + i % 7}}) for i in range(100)]
        for i, events in enumerate(await asyncio.gather(*tasks)):
            assert len(events) == 1 + i % 7
            assert events[-1]["finished"]
        await s.settled(lambda: s.frontend.live == 0)

    run(body)
