"""MiniCPM 3 and 4: a block of Python between markers; thoughts between markers."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check

B, E = "<|tool_call_start|>\n```python\n", "```\n<|tool_call_end|>"

CASES = {
    "text": Case("a <|tool f(a=1)", "a <|tool f(a=1)"),
    "one": Case(f'{B}f(a="x")\n{E}', calls=(("f", {"a": "x"}),)),
    "several": Case(
        f"{B}f(a=1,b=[2])\nnow()\nf(b={{'x': None}})\n{E}\n",
        calls=(("f", {"a": 1, "b": [2]}), ("now", {}), ("f", {"b": {"x": None}})),
    ),
    "thought and text": Case(
        f"<|thought_start|>\nhm\n<|thought_end|>\n{B}now()\n{E}\nbye", "\nbye", (("now", {}),), reasoning="hm"
    ),
    "without the block": Case("<|tool_call_start|>now()<|tool_call_end|>", calls=(("now", {}),)),
    "markers in strings": Case(
        f"{B}f(a='```\\n<|tool_call_end|>')\n{E}", calls=(("f", {"a": "```\n<|tool_call_end|>"}),)
    ),
    "unicode": Case(f"{B}f(a='日\\u672c')\n{E}", calls=(("f", {"a": "日本"}),)),
    "malformed": Case(f"{B}f(1)\n{E}", f"{B}f(1)\n{E}"),
    "second is malformed": Case(f"{B}now()\nx = 1\n{E}", f"x = 1\n{E}", (("now", {}),)),
    "empty": Case(B + E, B + E),
    "partial marker": Case("x <|tool_call_", "x <|tool_call_"),
    "truncated": Case(f"{B}f(a='x", calls=(("f", '{"a": "x'),)),
    "truncated between calls": Case(f"{B}now()\nf(", "f(", calls=(("now", {}),)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("minicpm", "minicpm"), case)
