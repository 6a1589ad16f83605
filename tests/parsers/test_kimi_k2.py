"""Kimi K2: calls with ids of the model's own."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.deltas import ToolCallBegin
from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check, read

B, E = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CB, ARGS, CE = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
CALL = f'{CB}functions.f:0{ARGS}{{"a": "x"}}{CE}'
F = ("f", {"a": "x"})

CASES = {
    "text": Case("a <|tool_calls b", "a <|tool_calls b"),
    "one": Case(B + CALL + E, calls=(F,)),
    "several": Case(f"Ok.\n{B}{CALL}{CB}functions.now:1{ARGS}{{}}{CE}{E}", "Ok.", (F, ("now", {}))),
    "spaces": Case(f"{B}\n{CB} functions.now:7 {ARGS} {{}} {CE}\n{E}", calls=(("now", {}),)),
    "without the outer markers": Case(CALL, calls=(F,)),
    "text after": Case(f"{B}{CALL}{E} bye", " bye", (F,)),
    "without a number": Case(f"{B}{CB}now{ARGS}{{}}{CE}{E}", calls=(("now", {}),)),
    "a colon in the name": Case(f"{B}{CB}functions.a:b:3{ARGS}{{}}{CE}{E}", calls=(("a:b", {}),)),
    "markers in strings": Case(
        f'{B}{CB}functions.f:0{ARGS}{{"a": "{CE}{E}"}}{CE}{E}', calls=(("f", {"a": f"{CE}{E}"}),)
    ),
    "thinks, then calls": Case(f"<think>hm</think>{B}{CALL}{E}", reasoning="hm", calls=(F,)),
    "no name": Case(f"{B}{CB}functions.:0{ARGS}{{}}{CE}", f"{B}{CB}functions.:0{ARGS}{{}}{CE}"),
    "no arguments": Case(f"{B}{CB}functions.f:0{CE}{E}", f"{B}{CB}functions.f:0{CE}{E}"),
    "second is malformed": Case(f"{B}{CALL}{CB}x{CE}{E}", f"{CB}x{CE}{E}", (F,)),
    "truncated head": Case(f"{B}{CB}functions.f", f"{B}{CB}functions.f"),
    "truncated arguments": Case(f'{B}{CB}functions.f:0{ARGS}{{"a"', calls=(("f", '{"a"'),)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("kimi_k2", "kimi_k2" if case.reasoning else None), case)


def test_a_call_keeps_the_id_that_the_model_gives_it() -> None:
    text = f"{B}{CB}functions.now:4{ARGS}{{}}{CE}{CB}now{ARGS}{{}}{CE}{CB}functions.f:5{ARGS}{{}}{CE}{E}"
    begun = [delta for delta in read(Formats("kimi_k2"), text) if isinstance(delta, ToolCallBegin)]
    assert [(call.name, call.id) for call in begun] == [
        ("now", "functions.now:4"),
        ("now", "call_1"),
        ("f", "functions.f:5"),
    ]
