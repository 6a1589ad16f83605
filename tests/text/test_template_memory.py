"""A chat template cannot take the memory of the tokenizer's process, whatever it makes and keeps."""

from __future__ import annotations

import tracemalloc

import pytest

from lightllm_mp.text.chat.template_budget import MAX_BYTES, Budget, TemplateLimit
from lightllm_mp.text.chat.template_sandbox import ChatEnvironment

KEEPS = """
{%- set ns = namespace(all=[], big='x' * 1000000, wide='\N{GRINNING FACE}' * 250000, words='ab ' * 300000) -%}
{%- for i in range(90000) -%}{%- for j in range(90000) -%}
{%- set ns.all = [ns.all, MADE] if i % 2 else ns.all + [MADE] -%}
{%- endfor -%}{%- endfor -%}
"""
PEAK = MAX_BYTES + (64 << 20)


@pytest.mark.parametrize(
    "made",
    [
        "'x' * 1000000 ~ i ~ j",
        "'x' * 1000000",
        "ns.big + 'y'",
        "ns.wide ~ 'y'",
        "ns.big[1:]",
        "ns.big|upper",
        "ns.big.lower()",
        "ns.big|replace('y', 'z') ~ ''",
        "ns.words.split()",
        "ns.words|list",
        "range(90000)|list",
        "(range(90000)|list)[1:]",
        "range(90000)|batch(1)|list",
        "[ns.big[1:]]|tojson",
        "'%s' % ns.big[2:]",
        "'{}'.format(ns.big)",
        "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]",
        "{'a': [], 'b': {}, 'c': (1, j)}",
        "namespace(a=j)",
        "2 ** 2000 + j",
        "-(2 ** 2000)",
        "[[], [], [], [], [], [], [], [], [], [], [], [], [], [], [], [], [], [], [], []]",
        "ns.wide|list",
        "ns.wide|batch(100)|list",
        "(ns.wide|batch(1000))|first",
        "('x ' * 4000000).split()",
        "('\N{GRINNING FACE}' * 8000000)|list",
        "('\N{GRINNING FACE}' * 400000)|urlencode",
        "[ns.wide[i], ns.wide[j], ns.wide[1], ns.wide[2]]",
    ],
)
def test_what_a_template_makes_is_bounded(made: str) -> None:
    environment = ChatEnvironment()
    template = environment.from_string(KEEPS.replace("MADE", made))
    tracemalloc.start()
    environment.budget = Budget(seconds=2.0)  # tracing takes time
    try:
        with pytest.raises(TemplateLimit):
            template.render()
        assert tracemalloc.get_traced_memory()[1] < PEAK
    finally:
        tracemalloc.stop()


def test_a_list_of_large_strings_is_refused_for_its_memory() -> None:
    environment = ChatEnvironment()
    environment.budget = Budget(seconds=60.0)
    template = environment.from_string(KEEPS.replace("MADE", "'x' * 1000000 ~ i ~ j"))
    with pytest.raises(TemplateLimit, match="makes more than 256 MiB of values"):
        template.render()


def test_a_long_conversation_fits() -> None:
    """A million characters in two thousand messages, each trimmed, split and looked at several times."""
    environment = ChatEnvironment()
    environment.budget = Budget(seconds=60.0)
    template = environment.from_string(
        "{%- set ns = namespace(last=-1) -%}"
        "{%- for m in messages[::-1] -%}{%- if m.get('role') == 'user' -%}{%- set ns.last = loop.index0 -%}"
        "{%- endif -%}{%- endfor -%}"
        "{%- for m in messages -%}{%- set text = m['content'] | trim -%}"
        "{{ '<|' + m.role + '|>' + text.split('</think>')[-1].lstrip('\\n') ~ '<|end|>' }}{%- endfor -%}"
    )
    messages = [{"role": "user", "content": " word" * 100} for _ in range(2000)]
    assert len(template.render(messages=messages)) > 1_000_000


def test_indented_json_of_a_deep_value_is_bounded() -> None:
    """200,000 numbers at a depth of 300 would take a gigabyte of spaces."""
    environment = ChatEnvironment()
    environment.budget = Budget(seconds=60.0)
    template = environment.from_string(
        "{%- set ns = namespace(x=range(90000)|list) -%}{%- for i in range(300) -%}{%- set ns.x = [ns.x] -%}"
        "{%- endfor -%}{{ ns.x|tojson(indent=16)|length }}"
    )
    tracemalloc.start()
    try:
        with pytest.raises(TemplateLimit, match="characters"):
            template.render()
        assert tracemalloc.get_traced_memory()[1] < PEAK
    finally:
        tracemalloc.stop()
    assert (
        environment.from_string("{{ {'a': [1, 2]}|tojson(indent=2) }}").render() == '{\n  "a": [\n    1,\n    2\n  ]\n}'
    )


def test_reading_what_exists_costs_nothing() -> None:
    """Templates look at the first message, a long document, for every other one."""
    environment = ChatEnvironment()
    environment.budget = Budget(seconds=60.0)
    template = environment.from_string(
        "{%- for m in messages -%}{%- if messages[0]['content'] and messages[0].get('content') and messages|first "
        "and (messages[0].content|default('')) -%}{{ loop.index0 % 10 }}{%- endif -%}{%- endfor -%}"
    )
    messages = [{"content": "x" * 1_000_000}] + [{"content": "y"}] * 999
    assert len(template.render(messages=messages)) == 1000
