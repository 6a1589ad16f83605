"""InternLM 2: <|action_start|><|plugin|>."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check

CALL = '<|action_start|><|plugin|>\n{"name": "f", "parameters": {"a": "x"}}<|action_end|>'
F = ("f", {"a": "x"})

CASES = {
    "text": Case("a <|action b", "a <|action b"),
    "one": Case(CALL, calls=(F,)),
    "several": Case(f"I look.{CALL}\n{CALL}\n", "I look.", (F, F)),
    "a space between the markers": Case(CALL.replace("><", "> <"), calls=(F,)),
    "arguments": Case(CALL.replace("parameters", "arguments"), calls=(F,)),
    "text after": Case(f"{CALL}bye", "bye", (F,)),
    "markers in strings": Case(
        '<|action_start|><|plugin|>{"name": "f", "parameters": {"a": "<|action_end|>"}}<|action_end|>',
        calls=(("f", {"a": "<|action_end|>"}),),
    ),
    "nested, unicode and escapes": Case(
        '<|action_start|><|plugin|>{"name": "f", "parameters": {"a": [{"é": "\\u00e9"}]}}<|action_end|>',
        calls=(("f", {"a": [{"é": "é"}]}),),
    ),
    "no end": Case('<|action_start|><|plugin|>{"name": "f"}', calls=(("f", {}),)),
    "interpreter": Case(
        "<|action_start|><|interpreter|>1+1<|action_end|>", "<|action_start|><|interpreter|>1+1<|action_end|>"
    ),
    "malformed": Case("<|action_start|><|plugin|>\nf()<|action_end|>", "<|action_start|><|plugin|>\nf()<|action_end|>"),
    "partial marker": Case("x<|action_start|", "x<|action_start|"),
    "truncated head": Case("<|action_start|><|plug", "<|action_start|><|plug"),
    "truncated arguments": Case('<|action_start|><|plugin|>{"name": "f", "parameters": {', calls=(("f", "{"),)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("internlm"), case)
