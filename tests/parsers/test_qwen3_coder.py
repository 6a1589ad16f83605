"""Qwen3-Coder: <function=...> with <parameter=...>, typed by the tool's schema."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check


def call(name: str, **parameters: str) -> str:
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


def weather(**arguments: object) -> tuple[str, dict[str, object]]:
    return "get_weather", arguments


CASES = {
    "text": Case("a < b, <tool and <function and x\n", "a < b, <tool and <function and x\n"),
    "one": Case(call("get_weather", city="Bern"), calls=(weather(city="Bern"),)),
    "compact": Case(
        "<tool_call><function=f><parameter=a>x</parameter><parameter=b>2</parameter></function></tool_call>",
        calls=(("f", {"a": "x", "b": 2}),),
    ),
    "no arguments": Case(call("now"), calls=(("now", {}),)),
    "several": Case(f"Hm.\n{call('now')}\n{call('f', a='1')}", "Hm.", (("now", {}), ("f", {"a": "1"}))),
    "text around": Case(f"a\n{call('now')}\nb\n{call('now')}\nc", "a\nb\nc", (("now", {}), ("now", {}))),
    "without <tool_call>": Case(
        "<function=f>\n<parameter=a>\nx\n</parameter>\n</function>", calls=(("f", {"a": "x"}),)
    ),
    "without </function>": Case(
        "<tool_call><function=f><parameter=a>x</parameter></tool_call>\nok", "ok", (("f", {"a": "x"}),)
    ),
    "types": Case(
        call(
            "get_weather", city="12", days=" 3 ", share="1.5", now="True", note="null", where='{"x": 1}', tags='["a"]'
        ),
        calls=(weather(city="12", days=3, share=1.5, now=True, note=None, where={"x": 1}, tags=["a"]),),
    ),
    "types, Python's way": Case(
        call("get_weather", where="{'x': None}", tags="['a', \"b\",]", now="false", note="None"),
        calls=(weather(where={"x": None}, tags=["a", "b"], now=False, note=None),),
    ),
    "whole numbers": Case(
        call("get_weather", days="3.0", share="3", any="4"), calls=(weather(days=3, share=3, any=4),)
    ),
    "of any type": Case(
        call("get_weather", any="{'x'", new='{"a": [1]}', other="text"),
        calls=(weather(any="{'x'", new={"a": [1]}, other="text"),),
    ),
    "of two types": Case(call("get_weather", mixed="5", unit="C"), calls=(weather(mixed=5, unit="C"),)),
    "of two types, text": Case(call("get_weather", mixed='{"a": 1}'), calls=(weather(mixed='{"a": 1}'),)),
    "of another type": Case(call("get_weather", days="many", now="yes"), calls=(weather(days="many", now="yes"),)),
    "nullable text": Case(call("get_weather", note="nullable"), calls=(weather(note="nullable"),)),
    "nullable text, a beginning": Case(call("get_weather", note="nul"), calls=(weather(note="nul"),)),
    "unknown tool": Case(call("g", a="1", b="x"), calls=(("g", {"a": 1, "b": "x"}),)),
    "empty values": Case(call("get_weather", city="", days=""), calls=(weather(city="", days=""),)),
    "lines": Case(call("f", a="\n  x\n\ny\n"), calls=(("f", {"a": "\n  x\n\ny\n"}),)),
    "unicode and escapes": Case(call("f", a='日本 "\\n" \\ é😀\t'), calls=(("f", {"a": '日本 "\\n" \\ é😀\t'}),)),
    "markers in values": Case(
        call("f", a="</function>\n</tool_call> </parameter> x <parameter=b> </param"),
        calls=(("f", {"a": "</function>\n</tool_call> </parameter> x <parameter=b> </param"}),),
    ),
    "spaces in names": Case(
        "<tool_call><function= f ><parameter= a >x</parameter></function>", calls=(("f", {"a": "x"}),)
    ),
    "partial markers": Case("<tool_call <function <tool_cal", "<tool_call <function <tool_cal"),
    "no name": Case("<tool_call><function=></function>", "<tool_call><function=></function>"),
    "no function": Case("<tool_call>\n{}</tool_call>", "<tool_call>\n{}</tool_call>"),
    "text for a parameter": Case("<tool_call><function=f>x</function>", "<tool_call><function=f>x</function>"),
    "malformed later": Case(
        "<tool_call><function=f><parameter=a>x</parameter><parameter=></parameter></function>",
        "></parameter></function>",
        (("f", '{"a": "x"'),),
    ),
    "truncated in the head": Case("<tool_call>\n<function=f>\n<param", "<tool_call>\n<function=f>\n<param"),
    "truncated in a value": Case("<tool_call><function=f><parameter=a>\nxy", calls=(("f", '{"a": "xy'),)),
    "truncated in a number": Case("<tool_call><function=f><parameter=b>\n12", calls=(("f", '{"b": '),)),
    "truncated behind a value": Case(
        "<tool_call><function=f><parameter=a>\nx\n</parameter>\n", calls=(("f", '{"a": "x"'),)
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("qwen3_coder"), case)
