"""gpt-oss: messages with channels."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, answer, check, read

A, F = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "x"}'
X = ("f", {"a": "x"})

CASES = {
    "plain text": Case("Hi <|chan", "Hi <|chan"),
    "final": Case(f"{F}Hi\n there.<|return|>", "Hi\n there."),
    "analysis and final": Case(f"{A}Hm. {NEXT}{F}Hi", "Hi", reasoning="Hm."),
    "two thoughts": Case(f"{A}one{NEXT}{A}two{NEXT}{F}Hi", "Hi", reasoning="one\n\ntwo"),
    "preamble": Case(f"<|channel|>commentary<|message|>I look.{NEXT}{F}Hi", "I look.\n\nHi"),
    "call": Case(CALL, calls=(X,)),
    "call with its end": Case(f"{CALL}<|call|>", calls=(X,)),
    "thought and call": Case(f"{A}hm{NEXT}{CALL}", reasoning="hm", calls=(X,)),
    "recipient beside the role": Case(
        f'{A}hm{NEXT} to=functions.f<|channel|>commentary <|constrain|>json<|message|>{{"a": "x"}}',
        reasoning="hm",
        calls=(X,),
    ),
    "recipient beside the role of the prompt": Case(
        ' to=functions.f<|channel|>commentary json<|message|>{"a": "x"}<|call|>', calls=(X,)
    ),
    "text like a recipient": Case(" to=f is no", " to=f is no"),
    "no constraint": Case('<|channel|>commentary to=functions.f<|message|>{"a": "x"}', calls=(X,)),
    "a call on the analysis channel": Case('<|channel|>analysis to=functions.f code<|message|>{"a": "x"}', calls=(X,)),
    "recipient without the name space": Case(CALL.replace("functions.", ""), calls=(X,)),
    "unknown tool": Case(CALL.replace("functions.f", "functions.g"), calls=(("g", {"a": "x"}),)),
    "several calls": Case(f"{CALL}<|call|><|start|>assistant{CALL}<|call|>", calls=(X, X)),
    "no arguments": Case("<|channel|>commentary to=functions.now<|message|><|call|>", calls=(("now", {}),)),
    "markers in strings": Case(CALL.replace('"x"', '"<|end|><|call|>"'), calls=(("f", {"a": "<|end|><|call|>"}),)),
    "own tools of the model": Case(f"<|channel|>analysis to=python code<|message|>1+1{NEXT}{F}2", "2", reasoning="1+1"),
    "malformed arguments": Case(
        "<|channel|>commentary to=functions.f<|message|>a=x<|call|>",
        "<|channel|>commentary to=functions.f<|message|>a=x",
    ),
    "truncated thought": Case(f"{A}I thi", reasoning="I thi"),
    "truncated header": Case(f"{A}hm{NEXT}<|channel|>fin", reasoning="hm"),
    "truncated arguments": Case(CALL[:-3], calls=(("f", '{"a": "'),)),
    "no end before the next": Case(f"{A}hm<|start|>assistant{F}Hi", "Hi", reasoning="hm"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("gpt_oss", "gpt_oss"), case)


def test_messages_are_read_without_tools_too() -> None:
    assert answer(read(Formats("gpt_oss"), [f"{A}hm{NEXT}{F}Hi"], tools=())) == ("hm", "Hi", [])
    assert answer(read(Formats(None, "gpt_oss"), [CALL], tools=())) == ("", '{"a": "x"}', [])
