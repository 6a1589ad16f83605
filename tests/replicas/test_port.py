"""The port of a fleet answers like an engine's port: all routes, keys, readiness, metrics, deadlines, limits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.http.app import create_app
from lightllm_mp.actors.http.security.keys import ApiKeys, digest
from lightllm_mp.actors.http.sockets.listener import serve
from lightllm_mp.config import HttpConfig, ModelConfig
from lightllm_mp.replicas.asgi import FrontApp
from lightllm_mp.replicas.fleet_metrics import merged
from lightllm_mp.replicas.front import FleetFront
from lightllm_mp.replicas.front_door import FrontDoor
from lightllm_mp.replicas.port import create_fleet_app
from tests.actors.http.harness import Engine
from tests.replicas.site_fleet import STREAM, Engines, fleet, run

KEYS = ApiKeys(
    users=frozenset({digest("user"), digest("second")}),
    admins=frozenset({digest("admin")}),
    relays=frozenset({digest("between us")}),
)
USER, ADMIN = {"Authorization": "Bearer user"}, {"X-Api-Key": "admin"}


@contextlib.asynccontextmanager
async def port(
    *names: str, keys: ApiKeys = KEYS, http: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[aiohttp.ClientSession, FleetFront, Engines, FrontDoor]]:
    config = HttpConfig(port=0, **(http or {}))
    async with fleet(*names, keys=keys, **options) as (front, engines):
        door = FrontDoor(front, keys)
        server = await serve(create_fleet_app(door, config, keys), socket.create_server(("127.0.0.1", 0)), config)
        base = "http://{}:{}".format(*server.address)
        try:
            async with aiohttp.ClientSession(base, auto_decompress=False) as session:
                yield session, front, engines, door
        finally:
            await server.close()


def route_table() -> list[tuple[str, str]]:
    engine = Engine()
    frontend = ResumableTable(engine.to_tokenizer, engine.to_router, limits=RequestLimits(1))
    app = create_app(frontend, HttpConfig(), model=ModelConfig(), stats=dict)
    found = []
    for route in app.router.routes():
        assert route.resource is not None
        path = re.sub(r"\{name\}", "chat.js", re.sub(r"\{id(:.\+)?\}", "fake", route.resource.canonical))
        found.append((route.method, path))
    return sorted(set(found))


BODIES: dict[str, Any] = {
    "/generate": {"inputs": "a", "parameters": {"max_new_tokens": 3}},
    "/tokenize": {"prompt": "a b"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3},
    "/v1/embeddings": {"input": "a"},
}


def test_every_route_answers_as_on_one_machine():
    """All routes but those that concern the whole fleet, and the stream that never ends."""

    async def body():
        routes = [(method, path) for method, path in route_table() if path != "/live/events"]
        assert len(routes) > 50
        async with port("a", "b", a={}, b={}) as (session, _, engines, _), aiohttp.ClientSession() as direct:
            host, number = engines.sites["a"].address
            fleets = {"/health", "/healthz", "/metrics", "/token_load"}
            for method, path in routes:
                asked = json.dumps(BODIES.get(path, {})).encode() if method == "POST" else None
                headers = ADMIN | {"X-Request-Id": "same", "Accept-Encoding": "identity"}
                url = f"http://{host}:{number}{path}"
                async with direct.request(method, url, data=asked, headers={**headers, "Authorization": ""}) as answer:
                    want = (answer.status, answer.headers.get("Content-Type"), timeless(await answer.read()))
                async with session.request(method, path, data=asked, headers=headers) as answer:
                    found = (answer.status, answer.headers.get("Content-Type"), timeless(await answer.read()))
                    assert "X-Request-Id" in answer.headers or want[0] == 200 or path in fleets, path
                assert found[:2] == want[:2], (method, path, found, want)
                if path not in fleets and method != "DELETE":
                    assert found[2] == want[2], (method, path)
            async with session.get("/live/events", headers=ADMIN) as answer:
                assert answer.content_type == "text/event-stream"
                assert (await answer.content.readline()).startswith(b"data:{")

    run(body)


def timeless(data: bytes) -> bytes:
    return re.sub(rb'"(created|created_at|completed_at|at|id)": ?"?[\w.-]+"?', b"", data)


def test_keys():
    async def body():
        both = USER | {"X-Api-Key": "admin"}
        asked: list[tuple[str, str, dict[str, str], int]] = [
            ("POST", "/generate", {}, 401),
            ("POST", "/generate", {"Authorization": "Bearer another"}, 401),
            ("POST", "/generate", both, 401),
            ("POST", "/generate", USER, 200),
            ("POST", "/generate", ADMIN, 200),
            ("GET", "/v1/models", {}, 401),
            ("GET", "/metrics", {}, 401),
            ("GET", "/nowhere", {}, 401),
            ("GET", "/nowhere", USER, 404),
            ("GET", "/live/events", USER, 403),
            ("GET", "/%6Cive/events", USER, 403),
            ("GET", "/x/../live/events", USER, 404),
            ("GET", "/live", {}, 200),
            ("GET", "/health", {}, 200),
            ("POST", "/relay", ADMIN, 403),
            ("GET", "/relay", ADMIN, 403),
            ("PUT", "/relay", ADMIN, 403),
        ]
        async with port("a", a={}) as (session, _, engines, _):
            for method, path, headers, status in asked:
                data = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 2}}) if method == "POST" else None
                url = session._base_url.with_path(path, encoded=True)  # type: ignore[union-attr]
                async with session.request(method, url, data=data, headers=headers) as answer:
                    assert answer.status == status, (method, path, headers, await answer.read())
            assert {m.terms.tenant for m in engines.sites["a"].engine.tokenizer} == {digest("user"), digest("admin")}  # type: ignore[attr-defined]

    run(body)


def test_readiness_and_load_are_those_of_the_fleet():
    async def body():
        stats = {"router": {"kv_total": 100.0, "kv_used": 50.0, "expected_tokens": 70.0, "waiting": 2.0}}
        async with port("a", "b", a={}, b={}, config={"stats": lambda: stats}) as (session, front, _, door):

            async def look(path: str) -> tuple[int, Any]:
                async with session.get(path, headers=USER) as answer:
                    data = await answer.read()
                    return answer.status, json.loads(data) if data.startswith(b"{") else data.decode()

            assert await look("/health") == (200, {"message": "Ok", "replicas": 2, "accepting": 2})
            assert (await look("/token_load"))[1] == {
                "current_load": 0.5,
                "logical_max_load": 0.5,
                "dynamic_max_load": 0.5,
                "expected_tokens": 140.0,
            }
            page = (await look("/metrics"))[1]
            for name in "ab":
                assert re.search(
                    rf'^lightllm_num_requests_waiting{{replica="{name}",model_name="fake"}} 2.0$', page, re.M
                )
            assert page.count("# TYPE lightllm_num_requests_waiting gauge") == 1
            assert "lightllm_fleet_replicas_accepting 2.0" in page
            front._router.accept("a", False)
            assert (await look("/readiness"))[0] == (await look("/health"))[0] == 200
            front._router.accept("b", False)
            assert (await look("/readiness"))[0] == (await look("/health"))[0] == 503
            assert (await look("/liveness"))[0] == 200
            front._router.accept("b", True)
            door.leaving = door.draining = True
            assert (await look("/readiness"))[0] == 503
            assert (await look("/health"))[0] == 200
            async with session.post("/generate", json=STREAM, headers=USER) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
            await door.quiet()

    run(body)


def test_pages_are_merged_by_metric():
    first = '# HELP a_total A.\n# TYPE a_total counter\na_total{x="1 2"} 1.0\na_total{x="{"} 2\n# TYPE b gauge\nb 5\n'
    assert merged({"p": first, 'q"': first}, "# TYPE b gauge\nb 1\n# TYPE c gauge\nc 2\n").splitlines() == [
        "# HELP a_total A.",
        "# TYPE a_total counter",
        'a_total{replica="p",x="1 2"} 1.0',
        'a_total{replica="p",x="{"} 2',
        'a_total{replica="q\\"",x="1 2"} 1.0',
        'a_total{replica="q\\"",x="{"} 2',
        "# TYPE b gauge",
        'b{replica="p"} 5',
        'b{replica="q\\""} 5',
        "b 1",
        "# TYPE c gauge",
        "c 2",
    ]


def test_a_flood_of_one_key_leaves_room_for_others():
    """Each replica reserves half of its places for the keys in equal parts, and a request goes to a free place."""

    async def body():
        slow = {"paused": True}
        async with port("a", "b", a=slow, b=slow, config={"max_live_requests": 12}) as (session, _, engines, _):

            async def ask(key: str) -> int:
                asked = session.post("/generate", json=STREAM, headers={"Authorization": f"Bearer {key}"})
                async with asked as answer:
                    await answer.read()
                    if answer.status == 429:
                        assert 1 <= int(answer.headers["Retry-After"]) <= 60
                    return answer.status

            flood = [asyncio.create_task(ask("user")) for _ in range(40)]
            live = [s.frontend for s in engines.sites.values()]
            await engines.sites["a"].settled(
                lambda: sum(task.done() for task in flood) == 40 - sum(f.live for f in live)
            )
            assert [task.result() for task in flood if task.done()] == [429] * 24
            others = [asyncio.create_task(ask("second")) for _ in range(4)]
            await engines.sites["a"].settled(lambda: sum(f.live for f in live) == 20)
            assert not any(task.done() for task in others)
            for s in engines.sites.values():
                s.engine.paused = False
            assert await asyncio.gather(*others) == [200] * 4
            assert sorted(await asyncio.gather(*flood)) == [200] * 16 + [429] * 24

    run(body)


def test_the_soonest_of_all_refusals_is_told():
    async def body():
        async with port("a", "b", a={"paused": True}, b={"paused": True}, config={"max_live_requests": 1}) as running:
            session, _, engines, _ = running
            waits = iter((40.0, 7.0))
            held = [asyncio.create_task(session.post("/generate", json=STREAM, headers=USER)) for _ in range(2)]
            live = [s.frontend for s in engines.sites.values()]
            await engines.sites["a"].settled(lambda: all(f.live for f in live))
            for f, wait in zip(live, waits, strict=True):
                f.limits.retry_after = lambda wait=wait: wait  # type: ignore[method-assign]
            async with session.post("/generate", json=STREAM, headers=USER) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)

    run(body)


def test_a_deadline_passes_while_no_replica_is_ready():
    async def body():
        async with port("a", a={}) as (session, front, _, _):
            front._router.accept("a", False)
            begin = asyncio.get_running_loop().time()
            late = USER | {"X-Request-Timeout": "0.3"}
            async with session.post("/generate", json=STREAM, headers=late) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (504, "deadline_exceeded")
            assert asyncio.get_running_loop().time() - begin < 2

    run(body)


def test_pages_of_other_hosts_and_large_bodies_are_refused():
    async def body():
        http = {"max_body_bytes": 100}
        async with port("a", a={}, keys=ApiKeys(relays=KEYS.relays), http=http) as (session, _, _, _):
            async with session.get("/v1/models", headers={"Host": "evil.example"}) as answer:
                assert answer.status == 403
            async with session.post("/generate", json={"inputs": "a" * 100}) as answer:
                assert answer.status == 413
        http = {"cors_allow_origin": ("https://page.example",)}
        async with port("a", a={}, http=http) as (session, _, _, _):
            origin = {"Origin": "https://page.example"}
            async with session.get("/v1/models", headers=USER | origin) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
            asks = origin | {"Access-Control-Request-Method": "POST"}
            async with session.options("/generate", headers=asks) as answer:
                assert answer.status == 204

    run(body)


def test_a_client_that_leaves_ends_its_request():
    async def body():
        async with port("a", a={"paused": True}) as (session, _, engines, door):
            asking = asyncio.create_task(session.post("/generate", json=STREAM, headers=USER))
            await engines.sites["a"].settled(lambda: bool(engines.sites["a"].engine.running))
            asking.cancel()
            await engines.sites["a"].settled(lambda: not engines.sites["a"].engine.running)
            await asyncio.wait_for(door.quiet(), 5)

    run(body)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_same_behind_another_server(method: str):
    """The front as an ASGI application, as in Ray Serve."""

    async def body():
        async with fleet("a", keys=KEYS, a={}) as (front, _):
            app = FrontApp(FrontDoor(front, KEYS), max_body_bytes=10)

            async def ask(path: str, data: bytes = b"", verb: str = method, **headers: str) -> tuple[int, bytes]:
                sent = list[Any]()
                scope = {
                    "type": "http",
                    "method": verb,
                    "path": path,
                    "query_string": b"",
                    "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
                }
                messages = iter([{"type": "http.request", "body": data}])

                async def receive() -> Any:
                    if (message := next(messages, None)) is None:
                        await asyncio.Event().wait()
                    return message

                async def send(message: Any) -> None:
                    sent.append(message)

                await app(scope, receive, send)
                assert dict(sent[0]["headers"])[b"X-Request-Id"]
                return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

            status, data = await ask("/v1/models", authorization="Bearer user")
            assert (status, bool(data)) == (200, method == "GET")
            assert (await ask("/v1/models"))[0] == 401
            assert (await ask("/liveness"))[0] == 200
            assert (await ask("/generate", b"x" * 11, "POST", authorization="Bearer user"))[0] == 413

    run(body)
