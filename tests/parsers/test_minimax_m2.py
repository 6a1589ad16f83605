"""MiniMax-M2: <invoke> and <parameter>, typed by the tool's schema."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check

B, E = "<minimax:tool_call>", "</minimax:tool_call>"


def invoke(name: str, **arguments: str) -> str:
    body = "".join(f'<parameter name="{key}">{value}</parameter>\n' for key, value in arguments.items())
    return f'<invoke name="{name}">\n{body}</invoke>\n'


F, CALLED = invoke("f", a="x", b="2"), ("f", {"a": "x", "b": 2})
CASES = {
    "text": Case("a <minimax b <invoke", "a <minimax b <invoke"),
    "one": Case(f"{B}\n{F}{E}", calls=(CALLED,)),
    "several": Case(f"Ok.\n{B}\n{F}{invoke('now')}{E}", "Ok.", (CALLED, ("now", {}))),
    "two sections": Case(f"{B}\n{F}{E}\n{B}\n{F}{E}", calls=(CALLED, CALLED)),
    "without newlines": Case(
        f'{B}<invoke name="f"><parameter name="a">x</parameter></invoke>{E}', calls=(("f", {"a": "x"}),)
    ),
    "text after": Case(f"{B}{F}{E} bye", " bye", (CALLED,)),
    "types": Case(
        B + invoke("get_weather", city="1", days="2", now="true", where='{"x": [1]}', note="null", tags='["a"]') + E,
        calls=(
            ("get_weather", {"city": "1", "days": 2, "now": True, "where": {"x": [1]}, "note": None, "tags": ["a"]}),
        ),
    ),
    "strings as written": Case(B + invoke("f", a="\n x \n") + E, calls=(("f", {"a": "\n x \n"}),)),
    "unicode and escapes": Case(B + invoke("f", a='北京 "\\u" 😀') + E, calls=(("f", {"a": '北京 "\\u" 😀'}),)),
    "markers in values": Case(
        B + invoke("f", a=f"</parameter> x {E}{B}<invoke>") + E, calls=(("f", {"a": f"</parameter> x {E}{B}<invoke>"}),)
    ),
    "thinks, then calls": Case(f"hm\n</think>\n\n{B}\n{F}{E}", reasoning="hm", calls=(CALLED,), thinking=True),
    "no name": Case(f'{B}<invoke name="">{E}', f'{B}<invoke name="">{E}'),
    "JSON": Case(f'{B}{{"name": "f"}}{E}', f'{B}{{"name": "f"}}{E}'),
    "second is malformed": Case(f'{B}{F}<invoke name="g" x>{E}', f'<invoke name="g" x>{E}', (CALLED,)),
    "truncated in a name": Case(f'{B}<invoke name="f', f'{B}<invoke name="f'),
    "truncated in a value": Case(f'{B}<invoke name="f"><parameter name="a">x</para', calls=(("f", '{"a": "x</para'),)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("minimax_m2", "minimax_m2" if case.thinking else None), case)
