"""Reasoning between tags, begun by the model or by the prompt."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats, opens_reasoning
from tests.parsers.replies import Case, check

CALL = '<tool_call>{"name": "now"}</tool_call>'
NOW = ("now", {})

CASES = {
    "model begins": Case("<think>\nHm.\n\nSo.\n</think>\n\nHi", "Hi", reasoning="Hm.\n\nSo."),
    "model begins after a newline": Case("\n<think>Hm.</think>Hi", "Hi", reasoning="Hm."),
    "prompt begins": Case("Hm.\n</think>\n\nHi", "Hi", reasoning="Hm.", thinking=True),
    "both begin": Case("\n<think>\nHm.</think>\nHi", "Hi", reasoning="Hm.", thinking=True),
    "empty": Case("<think>\n\n</think>\n\nHi\n", "Hi\n"),
    "none": Case("Hi <think>x</think>", "Hi <think>x</think>"),
    "none, after a newline": Case("\n\n  Hi", "  Hi"),
    "only spaces": Case("\n ", " "),
    "indented content": Case("<think>x</think>\n    code", "    code", reasoning="x"),
    "call": Case(f"<think>Hm.</think>\n{CALL}", reasoning="Hm.", calls=(NOW,)),
    "call in thoughts": Case(f"<think>I write {CALL}.\n</think>{CALL}", reasoning=f"I write {CALL}.", calls=(NOW,)),
    "text and call": Case(f"x</think>\n\nHi\n{CALL}", "Hi", (NOW,), reasoning="x", thinking=True),
    "a second pair is text": Case("<think>x</think>a<think>b</think>", "a<think>b</think>", reasoning="x"),
    "partial end": Case("<think>a </thin b</think>c", "c", reasoning="a </thin b"),
    "partial begin": Case("<thi", "<thi"),
    "ends in thoughts": Case("<think>a </thi", reasoning="a </thi"),
    "ends in the prompt's thoughts": Case("a\n", reasoning="a", thinking=True),
}


@pytest.mark.parametrize("name", ["deepseek_r1", "glm45", "qwen3"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case, name: str) -> None:
    check(Formats("hermes", name), case)


def test_mistral() -> None:
    check(Formats("mistral", "mistral"), Case("[THINK]a[/THINK]b", "b", reasoning="a"))


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<｜Assistant｜><think>", True),
        ("<｜Assistant｜></think>", False),
    ],
)
def test_the_prompt_tells_whether_reasoning_has_begun(prompt: str, opens: bool) -> None:
    assert opens_reasoning(Formats("hermes", "qwen3"), prompt) == opens
    assert not opens_reasoning(Formats("hermes"), prompt)
    assert not opens_reasoning(Formats("gpt_oss", "gpt_oss"), prompt)
