"""Llama 3.1: a JSON object that is the whole answer, or follows <|python_tag|>."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check

CALL = '{"name": "f", "parameters": {"a": "x"}}'
F = ("f", {"a": "x"})

CASES = {
    "text": Case('Hi {"name": "f", "parameters": {}} x', 'Hi {"name": "f", "parameters": {}} x'),
    "one": Case(CALL, calls=(F,)),
    "spaces around": Case(f" \n{CALL}\n", calls=(F,)),
    "tag": Case(f"<|python_tag|>{CALL}", calls=(F,)),
    "tag after text": Case(f"Sure.\n<|python_tag|> {CALL} ok", "Sure. ok", (F,)),
    "several": Case(f"{CALL};{CALL} ; {CALL}", calls=(F, F, F)),
    "several, each with the tag": Case(f"<|python_tag|>{CALL};<|python_tag|>{CALL}", calls=(F, F)),
    "Llama 4": Case(f"<|python_start|>{CALL}<|python_end|>\nok", "\nok", (F,)),
    "Llama 4, several": Case(f"{CALL}{CALL}", calls=(F, F)),
    "several lines": Case(f"{CALL}\n{CALL}", calls=(F, F)),
    "arguments": Case('{"type": "function", "name": "f", "arguments": {"a": "x"}}', calls=(F,)),
    "parameters first": Case('{"parameters": {"a": "x"}, "name": "f"}', calls=(F,)),
    "nested": Case('{"name": "f", "parameters": {"a": {"b": ["}", {}]}}}', calls=(("f", {"a": {"b": ["}", {}]}}),)),
    "unicode and escapes": Case('{"name": "f", "parameters": {"a": "é\\u00e9\\""}}', calls=(("f", {"a": 'éé"'}),)),
    "markers in strings": Case(
        '{"name": "f", "parameters": {"a": "<|python_tag|>; {"}}', calls=(("f", {"a": "<|python_tag|>; {"}),)
    ),
    "call, then text": Case(f"{CALL}\nDone; ok", "\nDone; ok", (F,)),
    "call, then a semicolon": Case(f"{CALL}; then", "; then", (F,)),
    "other JSON": Case('{"result": 1}', '{"result": 1}'),
    "other JSON, same keys": Case('{"name": "Bob", "id": 7}', '{"name": "Bob", "id": 7}'),
    "second is other JSON": Case(f'{CALL}; {{"x": 1}}', '; {"x": 1}', (F,)),
    "empty object": Case("{}", "{}"),
    "code after the tag": Case("<|python_tag|>print(1)", "<|python_tag|>print(1)"),
    "partial tag": Case("a <|python_", "a <|python_"),
    "truncated in the head": Case('{"name": "f", "param', '{"name": "f", "param'),
    "truncated in arguments": Case('{"name": "f", "parameters": {"a": "x', calls=(("f", '{"a": "x'),)),
    "malformed arguments": Case('{"name": "f", "parameters": {"a" "x"}}', '"x"}}', (("f", '{"a" '),)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("llama3_json"), case)
