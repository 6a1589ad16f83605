"""docs/apis.md names every route, and every field that a body may have."""

from __future__ import annotations

import ast
import re

import pytest
from msgspec import Struct

from lightllm_mp.actors.http.dialects.anthropic.anthropic_request import MessagesBody
from lightllm_mp.actors.http.dialects.chat_request import ChatBody
from lightllm_mp.actors.http.dialects.completion_request import CompletionBody
from lightllm_mp.actors.http.dialects.pooled_request import EmbeddingBody, RerankBody, ScorePairsBody
from lightllm_mp.actors.http.dialects.responses.response_request import ResponseBody
from lightllm_mp.actors.http.dialects.tokenize_request import DetokenizeBody, TokenizeBody
from lightllm_mp.offline.parameters import ChatFields
from lightllm_mp.parsers.reasoning import REASONING_FORMATS
from lightllm_mp.parsers.tool_calls.call_formats import CALL_FORMATS
from tests.repository.package import ROOT

PAGE = (ROOT / "docs" / "apis.md").read_text("utf-8")
NAMED = set(re.findall(r"`([^`]+)`", PAGE))
WORDS = {word for text in NAMED for word in re.findall(r"[\w]+", text)}
BODIES = (
    ChatBody,
    CompletionBody,
    ResponseBody,
    MessagesBody,
    EmbeddingBody,
    RerankBody,
    ScorePairsBody,
    TokenizeBody,
    DetokenizeBody,
    ChatFields,
)


@pytest.mark.parametrize("body", BODIES)
def test_every_field(body: type[Struct]) -> None:
    assert set(body.__struct_encode_fields__) - WORDS == set()


def test_every_route() -> None:
    source = (ROOT / "lightllm_mp" / "actors" / "http" / "app.py").read_text("utf-8")
    paths = {
        node.value.split("/{")[0]
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Route"
        for node in ast.walk(call.args[1])
        if isinstance(node, ast.Constant)
    }
    assert len(paths) > 25
    named = {path for text in NAMED for path in re.findall(r"/[\w/.]*", text)}
    assert {path for path in paths if not any(path == one or one.startswith(path + "/") for one in named)} == set()


def test_every_format() -> None:
    assert {*CALL_FORMATS, *REASONING_FORMATS} - NAMED == set()


def test_every_flag_exists() -> None:
    from lightllm_mp.cli.flags.fields import fields

    flags = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert len(flags) >= 10
    assert flags - {field.flag for field in fields().values()} == set()
