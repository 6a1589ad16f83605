"""GLM 4.5 to 4.7: <arg_key> and <arg_value>, typed by the tool's schema."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check


def call(name: str, **arguments: str) -> str:
    body = "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in arguments.items())
    return f"<tool_call>{name}\n{body}</tool_call>"


CASES = {
    "text": Case("a <tool b <arg_key>x", "a <tool b <arg_key>x"),
    "one": Case(call("f", a="x", b="2"), calls=(("f", {"a": "x", "b": 2}),)),
    "4.7, without newlines": Case(
        "<tool_call>f<arg_key>a</arg_key><arg_value>x</arg_value></tool_call>", calls=(("f", {"a": "x"}),)
    ),
    "no arguments": Case("<tool_call>now</tool_call>\n<tool_call>now\n</tool_call>", calls=(("now", {}), ("now", {}))),
    "text around": Case(f"\na\n{call('now')}b\n{call('now')}\n", "\nab", (("now", {}), ("now", {}))),
    "types": Case(
        call("get_weather", city="1", days="2", now="true", where='{"x": [1]}', note="null", any="[]"),
        calls=(("get_weather", {"city": "1", "days": 2, "now": True, "where": {"x": [1]}, "note": None, "any": []}),),
    ),
    "strings as written": Case(call("f", a="\n x \n"), calls=(("f", {"a": "\n x \n"}),)),
    "unicode and escapes": Case(call("f", a='北京 "\\u" 😀'), calls=(("f", {"a": '北京 "\\u" 😀'}),)),
    "markers in values": Case(
        call("f", a="</arg_value> x </tool_call><tool_call>g"),
        calls=(("f", {"a": "</arg_value> x </tool_call><tool_call>g"}),),
    ),
    "thinks, then calls": Case(f"\n<think>hm </think>\n{call('now')}", reasoning="hm", calls=(("now", {}),)),
    "does not think": Case(f"\nHi\n{call('now')}", "Hi", (("now", {}),)),
    "no name": Case("<tool_call>\n</tool_call>", "<tool_call>\n</tool_call>"),
    "name only, then text": Case("<tool_call>now or later", "<tool_call>now or later"),
    "JSON": Case('<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>'),
    "value missing": Case(
        "<tool_call>f<arg_key>a</arg_key></tool_call>", "<tool_call>f<arg_key>a</arg_key></tool_call>"
    ),
    "second value missing": Case(
        "<tool_call>f<arg_key>a</arg_key><arg_value>x</arg_value><arg_key>b</arg_key></tool_call>",
        "b</arg_key></tool_call>",
        (("f", '{"a": "x"'),),
    ),
    "truncated in a key": Case("<tool_call>f<arg_key>a", "<tool_call>f<arg_key>a"),
    "truncated in a value": Case(
        "<tool_call>f<arg_key>a</arg_key><arg_value>x</arg_", calls=(("f", '{"a": "x</arg_'),)
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("glm45", "glm45" if "hink" in case.text or case.text.startswith("\nHi") else None), case)
