"""Hermes and Qwen: <tool_call>{"name": ..., "arguments": ...}</tool_call>."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "x"}}\n</tool_call>'
F = ("f", {"a": "x"})

CASES = {
    "empty": Case(""),
    "spaces": Case(" \n", " \n"),
    "text": Case("Hello, <b>world</b> {x} [y]\n", "Hello, <b>world</b> {x} [y]\n"),
    "one": Case(CALL, calls=(F,)),
    "one, compact": Case('<tool_call>{"name":"f","arguments":{"a":"x"}}</tool_call>', calls=(F,)),
    "several": Case(f"{CALL}\n{CALL}{CALL}", calls=(F, F, F)),
    "text before": Case(f"Let me see.\n\n{CALL}", "Let me see.", (F,)),
    "text around": Case(f"one\n{CALL}\ntwo\n{CALL}\nthree\n", "one\ntwo\nthree\n", (F, F)),
    "spaces after": Case(CALL + "\n \n", calls=(F,)),
    "text kept as written": Case(
        '<tool_call>{"name": "f", "arguments": { "a" :1.50 }}', calls=(("f", '{ "a" :1.50 }'),)
    ),
    "nested": Case(
        '<tool_call>{"name": "f", "arguments": {"a": [{"b": {}}, [], [[1, -2.5e3, true, null]], ""]}}</tool_call>',
        calls=(("f", {"a": [{"b": {}}, [], [[1, -2500.0, True, None]], ""]}),),
    ),
    "unicode and escapes": Case(
        '<tool_call>{"name": "f", "arguments": {"ключ": "日 \\u00e9 \\ud83d\\ude00 \\n\\t\\"\\\\ \\/"}}</tool_call>',
        calls=(("f", {"ключ": '日 é 😀 \n\t"\\ /'}),),
    ),
    "name with escapes": Case('<tool_call>{"name": "\\u0066", "arguments": {"a": "x"}}</tool_call>', calls=(F,)),
    "markers in strings": Case(
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call> <tool_call>{\\"name\\": 1}"}}</tool_call>',
        calls=(("f", {"a": '</tool_call> <tool_call>{"name": 1}'}),),
    ),
    "control characters in strings": Case(
        '<tool_call>{"name": "f", "arguments": {"a": "x\n\ty\x01"}}</tool_call>', calls=(("f", {"a": "x\n\ty\x01"}),)
    ),
    "arguments first": Case('<tool_call>{"arguments": {"a": "x"}, "name": "f"}</tool_call>', calls=(F,)),
    "parameters": Case('<tool_call>{"name": "f", "parameters": {"a": "x"}}</tool_call>', calls=(F,)),
    "other keys": Case(
        '<tool_call>{"id": 7, "x": {"name": "g"}, "name": "f", "arguments": {"a": "x"}, "y": []}</tool_call>',
        calls=(F,),
    ),
    "no arguments": Case('<tool_call>{"name": "f"}</tool_call>', calls=(("f", {}),)),
    "null arguments": Case('<tool_call>{"name": "f", "arguments": null}</tool_call>', calls=(("f", {}),)),
    "arguments as a string": Case(
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"x\\"}"}</tool_call>', calls=(F,)
    ),
    "arguments as a string, first": Case(
        '<tool_call>{"arguments": " {\\"a\\": \\"x\\"}\\n", "name": "f"}</tool_call>', calls=(F,)
    ),
    "arguments as a string, and more": Case(
        '<tool_call>{"name": "f", "arguments": "{} {}"}', '<tool_call>{"name": "f", "arguments": "{} {}"}'
    ),
    "unknown tool": Case('<tool_call>{"name": "g", "arguments": {}}</tool_call>', calls=(("g", {}),)),
    "no end": Case('<tool_call>{"name": "f", "arguments": {"a": "x"}}', calls=(F,)),
    "a brace too few": Case('<tool_call>{"name": "f", "arguments": {"a": "x"}\n</tool_call>\nok', "\nok", (F,)),
    "partial marker": Case("a <tool_cal", "a <tool_cal"),
    "partial markers": Case("<<tool_<tool_call<tool_ca>", "<<tool_<tool_call<tool_ca>"),
    "marker twice": Case(f"<tool_call>{CALL}", "<tool_call>", (F,)),
    "marker only": Case("see <tool_call>\n", "see <tool_call>\n"),
    "not JSON": Case("<tool_call>f(x)</tool_call>", "<tool_call>f(x)</tool_call>"),
    "not an object": Case('<tool_call>["f"]</tool_call>', '<tool_call>["f"]</tool_call>'),
    "no name": Case('<tool_call>{"arguments": {}}</tool_call>!', '<tool_call>{"arguments": {}}</tool_call>!'),
    "empty name": Case('<tool_call>{"name": ""}</tool_call>', '<tool_call>{"name": ""}</tool_call>'),
    "name is no string": Case('<tool_call>{"name": 1}</tool_call>', '<tool_call>{"name": 1}</tool_call>'),
    "name is no Unicode": Case('<tool_call>{"name": "\\ud800"}', '<tool_call>{"name": "\\ud800"}'),
    "arguments are no object": Case(
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    ),
    "arguments are text": Case(
        '<tool_call>{"name": "f", "arguments": "x"}', '<tool_call>{"name": "f", "arguments": "x"}'
    ),
    "malformed, then well": Case(f"<tool_call>{{'name'}}</tool_call>\n{CALL}", "<tool_call>{'name'}</tool_call>", (F,)),
    "wrong within arguments": Case(
        '<tool_call>{"name": "f", "arguments": {"a": tru}}</tool_call> ok', "tru}}</tool_call> ok", (("f", '{"a": '),)
    ),
    "wrong escape": Case('<tool_call>{"name": "f", "arguments": {"a": "\\d"}}', '\\d"}}', (("f", '{"a": "'),)),
    "wrong code": Case('<tool_call>{"name": "f", "arguments": {"a": "\\u00x1"}}', '\\u00x1"}}', (("f", '{"a": "'),)),
    "wrong number": Case('<tool_call>{"name": "f", "arguments": {"a": 01}}', "01}}", (("f", '{"a": '),)),
    "long number": Case('<tool_call>{"name": "f", "arguments": {"a": ' + "1" * 300, "1" * 300, (("f", '{"a": '),)),
    "truncated in the head": Case('<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "argum'),
    "truncated in a string": Case('<tool_call>{"name": "f", "arguments": {"a": "x', calls=(("f", '{"a": "x'),)),
    "truncated in an escape": Case('<tool_call>{"name": "f", "arguments": {"a": "x\\u00', calls=(("f", '{"a": "x'),)),
    "truncated in the end": Case('<tool_call>{"name": "f", "arguments": {"a": "x"}}</tool_', "</tool_", (F,)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("hermes"), case)
