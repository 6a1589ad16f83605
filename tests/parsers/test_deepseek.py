"""DeepSeek V3, R1 and V3.1."""

from __future__ import annotations

import pytest

from lightllm_mp.parsers.formats import Formats
from tests.parsers.replies import Case, check

B, E = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CB, SEP, CE = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
V3 = f'{CB}function{SEP}f\n```json\n{{"a": "x"}}\n```{CE}'
V31 = f'{CB}f{SEP}{{"a": "x"}}{CE}'
F = ("f", {"a": "x"})

CASES = {
    "text": Case("a <｜tool b ▁", "a <｜tool b ▁"),
    "v3": Case(B + V3 + E, calls=(F,)),
    "v3, several": Case(f"Ok.\n{B}{V3}\n{V3}\n{V3}{E}", "Ok.", (F, F, F)),
    "v3.1": Case(B + V31 + E, calls=(F,)),
    "v3.1, several": Case(f"Ok.\n\n{B}{V31}{V31}{E}", "Ok.", (F, F)),
    "v3.1, spaces": Case(f'{B}{CB}f{SEP}\n{{"a": "x"}}\n{CE}\n{E}', calls=(F,)),
    "without the outer markers": Case(V31 + V3, calls=(F, F)),
    "empty arguments": Case(f"{B}{CB}now{SEP}{{}}{CE}{E}", calls=(("now", {}),)),
    "text after": Case(f"{B}{V31}{E} bye", " bye", (F,)),
    "markers in strings": Case(f'{B}{CB}f{SEP}{{"a": "{CE}{E}```"}}{CE}{E}', calls=(("f", {"a": f"{CE}{E}```"}),)),
    "nested, unicode and escapes": Case(
        f'{B}{CB}f{SEP}{{"a": [{{"b": "北京\\u00e9\\n"}}]}}{CE}{E}', calls=(("f", {"a": [{"b": "北京é\n"}]}),)
    ),
    "partial marker": Case("x <｜tool▁calls▁be", "x <｜tool▁calls▁be"),
    "outer marker only": Case(f"{B} hm", f"{B} hm"),
    "no separator": Case(f"{B}{CB}f {{}}{CE}{E}", f"{B}{CB}f {{}}{CE}{E}"),
    "no name": Case(f"{B}{CB}{SEP}{{}}{CE}{E}", f"{B}{CB}{SEP}{{}}{CE}{E}"),
    "no JSON": Case(f"{B}{CB}function{SEP}f\n```json\nx```{CE}", f"{B}{CB}function{SEP}f\n```json\nx```{CE}"),
    "second is malformed": Case(f"{B}{V31}{CB}x{CE}{E}", f"{CB}x{CE}{E}", (F,)),
    "malformed arguments": Case(f'{B}{CB}f{SEP}{{"a": x}}{CE}{E}', f"x}}{CE}{E}", (("f", '{"a": '),)),
    "truncated head": Case(f"{B}{CB}f", f"{B}{CB}f"),
    "truncated arguments": Case(f'{B}{V31}{CB}f{SEP}{{"a"', calls=(F, ("f", '{"a"'))),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(case: Case) -> None:
    check(Formats("deepseek_v3"), case)
    check(Formats("deepseek_v31"), case)
