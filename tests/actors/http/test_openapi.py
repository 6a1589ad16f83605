"""GET /openapi.json: complete, and true of what the dialects answer."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from msgspec import inspect
from msgspec.structs import replace

from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.actors.http.app import create_app
from lightllm_mp.actors.http.openapi.deferred import deferred
from lightllm_mp.actors.http.openapi.forms import FORMS
from lightllm_mp.actors.http.security.keys import ApiKeys
from lightllm_mp.config import HttpConfig, ModelConfig
from lightllm_mp.facts import ChatFacts, Facts, PooledFacts
from tests.actors.http.harness import FACTS, Engine, Site, run
from tests.actors.http.test_auth import digests
from tests.actors.http.test_chat import HELLO
from tests.actors.http.test_chat_tools import CALLING, TOOLS

CHAT = replace(FACTS, chat=ChatFacts(template=True))
LIMIT = {"max_tokens": 3}
SCORES = replace(FACTS, engine=replace(FACTS.engine, pooled=PooledFacts("score", 1, pairs=True)))
EMBEDDINGS = replace(FACTS, engine=replace(FACTS.engine, pooled=PooledFacts("embed", 3)))
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 3, "return_details": True, "prompt_logprobs": 1}}),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 3, "n": 2, "logprobs": 2, "return_details": True}}),
    ("/tokens", {"text": "a b"}),
    ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 1, "n": 2, **LIMIT}),
    ("/v1/chat/completions", {"messages": HELLO, "return_token_ids": True, **LIMIT}),
    ("/v1/completions", {"prompt": ["a", "b"], "logprobs": 1, "echo": True, **LIMIT}),
    ("/v1/responses", {"input": "a", "max_output_tokens": 3}),
    ("/v1/messages", {"model": "any", "messages": HELLO, **LIMIT}),
    ("/v1/messages/count_tokens", {"model": "any", "messages": HELLO}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/messages", {"model": "any"}),
]

POOLED: list[tuple[Facts, str, dict[str, Any]]] = [
    (SCORES, "/get_score", {"chat": "a"}),
    (SCORES, "/v1/rerank", {"query": "a", "documents": ["b", {"text": "c"}]}),
    (SCORES, "/score", {"text_1": "a", "text_2": ["b", "c"]}),
    (EMBEDDINGS, "/v1/embeddings", {"input": ["a", "b"]}),
    (EMBEDDINGS, "/v1/embeddings", {"input": [[1, 2]], "encoding_format": "base64"}),
    (EMBEDDINGS, "/v1/embeddings", {"input": {}}),
]


async def described(s: Site) -> dict[str, Any]:
    status, text, headers = await s.get("/openapi.json")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    found: dict[str, Any] = json.loads(text)
    return found


def schema_of(document: dict[str, Any], path: str, status: int, method: str = "post") -> dict[str, Any]:
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    return content["application/json"]["schema"] | {"components": document["components"]}


def test_every_route_is_described():
    async def body(s: Site):
        document = await described(s)
        assert {(path, method) for path, methods in document["paths"].items() for method in methods} == table
        assert set(FORMS) == set(document["paths"])

    frontend = ResumableTable(lambda message: True, lambda message: True, limits=RequestLimits(1))
    app = create_app(frontend, HttpConfig(no_ui=True), model=ModelConfig(), stats=dict)
    table = {
        (re.sub(r"{(\w+):[^}]*}", r"{\1}", route.resource.canonical), route.method.lower())
        for route in app.router.routes()
        if route.resource is not None
    }
    run(body)


def test_every_deferred_field_is_described():
    """A field that a decoder leaves raw is of a type that clients are told."""
    left = {forms.body for forms in FORMS.values() if forms.body is not None}
    seen = set(left)
    while left:
        struct = left.pop()
        names = set(deferred(struct))
        assert names <= set(struct.__struct_fields__)
        for field in inspect.type_info(struct).fields:  # type: ignore[union-attr]
            raw = isinstance(field.type, inspect.RawType)
            assert raw == (field.name in names) or field.name == "type", (struct, field.name)
        found = set(structs(list(deferred(struct).values()))) | set(structs(struct.__annotations__.values()))
        left |= found - seen
        seen |= found


def structs(kinds: Any) -> list[Any]:
    """The structs that types name."""
    found = []
    for kind in kinds:
        if isinstance(kind, dict):
            found += structs(kind.values())
        elif isinstance(kind, list | tuple):
            found += structs(kind)
        elif isinstance(kind, type) and hasattr(kind, "__struct_fields__"):
            found.append(kind)
        elif hasattr(kind, "__args__"):
            found += structs(kind.__args__)
    return found


def test_schemas_are_schemas():
    async def body(s: Site):
        document = await described(s)
        for schema in document["components"]["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(schema)
        assert not [name for name in re.findall(r'"\$ref":"([^"]*)"', json.dumps(document)) if not at(document, name)]

    run(body)


def at(document: dict[str, Any], ref: str) -> Any:
    found: Any = document
    for part in ref.removeprefix("#/").split("/"):
        found = found.get(part, {})
    return found


@pytest.mark.parametrize(("facts", "path", "asked"), [*((CHAT, *case) for case in ASKED), *POOLED])
def test_bodies_and_answers_are_as_described(facts: Facts, path: str, asked: dict[str, Any]):
    async def body(s: Site):
        document = await described(s)
        content = document["paths"][path]["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        status, answer, _ = await s.post(path, asked)
        assert jsonschema.Draft202012Validator(schema).is_valid(asked) == (status == 200)
        jsonschema.validate(answer, schema_of(document, path, status))

    run(body, engine=Engine(facts=facts, row=lambda request: [0.5] * facts.engine.pooled.width))


def test_tool_calls_and_thoughts_are_as_described():
    async def body(s: Site):
        document = await described(s)
        tool = {"type": "function", "function": {"name": "weather"}}
        _, answer, _ = await s.post("/v1/chat/completions", {"messages": HELLO, "tools": [tool]})
        assert answer["choices"][0]["message"]["tool_calls"]
        jsonschema.validate(answer, schema_of(document, "/v1/chat/completions", 200))

    run(body, engine=Engine(facts=TOOLS, script=CALLING))


def test_it_needs_a_key_where_the_others_do():
    async def body(s: Site):
        status, text, _ = await s.get("/openapi.json")
        assert status == 401
        status, text, _ = await s.get("/openapi.json", headers={"Authorization": "Bearer key"})
        assert status == 200
        assert json.loads(text)["paths"]["/health"]["get"]["security"] == []
        assert json.loads(text)["paths"]["/generate"]["post"]["security"]

    run(body, keys=ApiKeys(users=digests("key")))
