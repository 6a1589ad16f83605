"""Llama 3.2 and 4: a Python list of calls that is the whole answer, or stands between markers."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check

CASES = {
    "text": Case("Call [f(a=1)] or [now()].", "Call [f(a=1)] or [now()]."),
    "one": Case("[f(a='x')]", calls=(("f", {"a": "x"}),)),
    "no arguments": Case("[now()]", calls=(("now", {}),)),
    "several": Case(
        '[f(a="x", b=2), now( ), f( b = 3 , )]\n', calls=(("f", {"a": "x", "b": 2}), ("now", {}), ("f", {"b": 3}))
    ),
    "markers": Case("Well.\n<|python_start|>[now()]<|python_end|>", "Well.", (("now", {}),)),
    "literals": Case(
        "[f(a=[True, False, None, true, null], b={'x': (1, 2), \"y\": [], 3: {}}, c=-1.5e3, d=.5, e=1_000, g=2.)]",
        calls=(
            (
                "f",
                {
                    "a": [True, False, None, True, None],
                    "b": {"x": [1, 2], "y": [], "3": {}},
                    "c": -1500.0,
                    "d": 0.5,
                    "e": 1000,
                    "g": 2.0,
                },
            ),
        ),
    ),
    "strings": Case(
        r"""[f(a='it\'s "x" \n \\ \x41\u00e9\U0001F600 \d', b="'", c='', d="y")]""",
        calls=(("f", {"a": 'it\'s "x" \n \\ Aé😀 \\d', "b": "'", "c": "", "d": "y"}),),
    ),
    "long strings": Case(
        "[f(a='''x 'y' \"z\"\n''', b=\"\"\"it's\"\"\", c='''''', d='x\\\ny')]",
        calls=(("f", {"a": "x 'y' \"z\"\n", "b": "it's", "c": "", "d": "xy"}),),
    ),
    "surrogates": Case(r"[f(a='\ud83d\ude00')]", calls=(("f", {"a": "😀"}),)),
    "unicode": Case("[f(a='日本 😀')]", calls=(("f", {"a": "日本 😀"}),)),
    "markers in strings": Case(
        "[f(a=')] <|python_end|> [now()]')]", calls=(("f", {"a": ")] <|python_end|> [now()]"}),)
    ),
    "call, then text": Case("[now()] and so", "and so", (("now", {}),)),
    "unknown tool": Case("[g(a=1)]", "[g(a=1)]"),
    "other lists": Case("[1, 2]", "[1, 2]"),
    "link": Case("[f](http://x)", "[f](http://x)"),
    "empty list": Case("[]", "[]"),
    "argument without a name": Case("[f(1)]", "[f(1)]"),
    "no name for an argument": Case("[f(a=1, =2)]", ", =2)]", (("f", '{"a": 1'),)),
    "wrong code": Case(r"[f(a='\x4g')]", "\\x4g')]", (("f", '{"a": "'),)),
    "truncated in an escape": Case(r"[f(a='\x4", calls=(("f", '{"a": "'),)),
    "call as a value": Case("[f(a=now())]", "now())]", (("f", '{"a": '),)),
    "second is unknown": Case("[now(), g()]", " g()]", (("now", {}),)),
    "wrong value": Case("[f(a=1, b=@)]", "@)]", (("f", '{"a": 1, "b": '),)),
    "set": Case("[f(a={1, 2})]", " 2})]", (("f", '{"a": {"1"'),)),
    "code point too large": Case(r"[f(a='\Uffffffff')]", "\\Uffffffff')]", (("f", '{"a": "'),)),
    "partial marker": Case("a <|python_st", "a <|python_st"),
    "truncated in the head": Case("[f(a", "[f(a"),
    "truncated in a string": Case("[f(a='xy\\", calls=(("f", '{"a": "xy'),)),
    "truncated between calls": Case("[now(), ", calls=(("now", {}),)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("pythonic"), case)
