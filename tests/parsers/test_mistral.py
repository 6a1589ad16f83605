"""Mistral: [TOOL_CALLS] with a list of objects, and with a name and [ARGS]."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check

ITEM = '{"name": "f", "arguments": {"a": "x"}}'
F = ("f", {"a": "x"})

CASES = {
    "text": Case("a [TOOL b [ARGS]", "a [TOOL b [ARGS]"),
    "list of one": Case(f"[TOOL_CALLS][{ITEM}]", calls=(F,)),
    "list": Case(f"[TOOL_CALLS] [{ITEM}, {ITEM} ,{ITEM}]", calls=(F, F, F)),
    "list with ids": Case('[TOOL_CALLS] [{"name": "f", "arguments": {"a": "x"}, "id": "123456789"}]', calls=(F,)),
    "object": Case(f"[TOOL_CALLS] {ITEM}", calls=(F,)),
    "name": Case('[TOOL_CALLS]f[ARGS]{"a": "x"}', calls=(F,)),
    "name without a marker": Case('[TOOL_CALLS]f{"a": "x"}', calls=(F,)),
    "name and id": Case('[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": "x"}', calls=(F,)),
    "names": Case('Ok.\n[TOOL_CALLS]f[ARGS]{"a": "x"}[TOOL_CALLS]now[ARGS]{}', "Ok.", (F, ("now", {}))),
    "text after": Case(f"[TOOL_CALLS][{ITEM}] bye", " bye", (F,)),
    "markers in strings": Case(
        '[TOOL_CALLS]f[ARGS]{"a": "[TOOL_CALLS]f[ARGS]{}"}', calls=(("f", {"a": "[TOOL_CALLS]f[ARGS]{}"}),)
    ),
    "nested, unicode and escapes": Case(
        '[TOOL_CALLS]f[ARGS]{"a": {"b": ["é\\u00e9", "]"]}}', calls=(("f", {"a": {"b": ["éé", "]"]}}),)
    ),
    "partial marker": Case("x [TOOL_CALL", "x [TOOL_CALL"),
    "marker, then text": Case("[TOOL_CALLS] are made so", "[TOOL_CALLS] are made so"),
    "empty list": Case("[TOOL_CALLS][]", "[TOOL_CALLS][]"),
    "no object": Case("[TOOL_CALLS]f[ARGS]12", "[TOOL_CALLS]f[ARGS]12"),
    "second is malformed": Case(f'[TOOL_CALLS][{ITEM}, {{"x"}}]', ' {"x"}]', (F,)),
    "truncated list": Case(f"[TOOL_CALLS][{ITEM}, ", calls=(F,)),
    "truncated arguments": Case('[TOOL_CALLS]f[ARGS]{"a": "x', calls=(("f", '{"a": "x'),)),
    "truncated head": Case("[TOOL_CALLS]f[ARGS]", "[TOOL_CALLS]f[ARGS]"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("mistral"), case)
    check(Formats("mistral_list"), case)
