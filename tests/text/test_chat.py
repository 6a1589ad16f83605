"""Chat templates: the same text as a plain sandbox gives, and bounded cost for hostile ones."""

from __future__ import annotations

import json
import resource
from datetime import datetime
from time import process_time
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lightllm_mp.errors import InvalidRequest, ModelError
from lightllm_mp.text.chat.rendering import compile_template, render_chat
from tests.text.tokenizer_samples import sample

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <b> & 'you' 你好"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}}]
MARKUP = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' and loop.last and system_message is defined %}
        {{- '[INST] ' ~ system_message + '\\n\\n' + message['content'] | trim + ' [/INST]' }}
    {%- elif message["role"] == "user" %}{{ "[INST] %s [/INST]" | format(message["content"]) }}
    {%- else %}{% generation %}{{ message.content.strip().upper() + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }} {{ tools[0].function.name }}{% endif %}
{% macro show(value, deep=0) %}
    {%- for key, item in value.items() if key != 'role' -%}
        {%- if item is mapping %}{{ show(item, deep + 1) }}{% else %}{{ key ~ '=' ~ item ~ deep }};{% endif %}
    {%- endfor %}
{%- endmacro %}
{{ show(messages[0]) }}{{ messages | map(attribute='role') | unique | sort | join('|') }}
{% set ns = namespace(count=0, names=[]) %}
{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
{% set ns.count = ns.count + m.content | length %}{% set ns.names = ns.names + [m.role[:2]] %}{% endfor %}
{{ ns.count }} {{ ns.names }} {{ 7 // 2 }} {{ 2 ** 5 }} {{ 'a' * 3 }} {{ none }} {{ true }} {{ missing }}
{{ {'a': [1, (2, 'x')]} }} {{ 'x' in 'xyz' }} {{ ['b', 'a'] == ['b', 'a'] }} {{ messages | length > 2 }}
{% if add_generation_prompt %}<|assistant|>{% endif %}
"""


def plain_environment() -> ImmutableSandboxedEnvironment:
    """What transformers renders with, less what is not compared here."""

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def raise_exception(message: str) -> None:
        raise AssertionError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("generate", [True, False])
def test_counting_changes_nothing(tools: list | None, generate: bool) -> None:
    plain = MARKUP.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    expected = (
        plain_environment()
        .from_string(plain)
        .render(messages=CHAT, tools=tools, bos_token="<s>", eos_token="</s>", add_generation_prompt=generate)
    )
    rendered = render_chat(MARKUP, CHAT, tools=tools, bos_token="<s>", eos_token="</s>", add_generation_prompt=generate)
    assert rendered == expected
    assert "HELLO!</s>" in rendered


def test_default_model() -> None:
    text = render_chat(sample("default").chat_template, CHAT[:2])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi <b> & 'you' 你好<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(("last", "end"), [("It is", "It is"), ("It is ", "It is "), ("user", "user")])
def test_the_answer_goes_on_with_the_last_message(last: str, end: str) -> None:
    chat = [*CHAT[:2], {"role": "assistant", "content": last}]
    text = render_chat(sample("default").chat_template, chat, continue_final=True)
    assert text.endswith(f"assistant\n{end}")


@pytest.mark.parametrize("content", [None, "", "  ", "unseen", [{"type": "image"}]])
def test_nothing_can_be_continued(content: object) -> None:
    template = "{% for m in messages %}{% for part in m.content %}x{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequest, match="no text that could be continued"):
        render_chat(template, [{"role": "assistant", "content": content}], continue_final=True)


@pytest.mark.parametrize(
    ("template", "role"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "system"),
        ("{% for m in messages %}{{ m.role }}{% if m.role == 'developer' %}{% endif %}{% endfor %}", "developer"),
    ],
)
def test_a_developer_is_the_system_for_templates_that_do_not_know_it(template: str, role: str) -> None:
    assert render_chat(template, [{"role": "developer", "content": "x"}]) == role


def test_a_template_refuses_messages() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render_chat(MARKUP, [CHAT[1], CHAT[1]])


def test_no_memory_is_not_the_fault_of_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: object, **options: object) -> str:
        raise MemoryError

    monkeypatch.setattr(compile_template(MARKUP)._template, "render", exhausted)
    with pytest.raises(MemoryError):
        render_chat(MARKUP, CHAT[1:2])


PARTS = [
    {"type": "text", "text": "a"},
    {"type": "image_url", "image_url": {"url": "data:..."}},
    {"type": "text", "text": "b"},
]


def test_parts_become_a_string_for_a_plain_template() -> None:
    template = "{% for m in messages %}{{ m.content + '!' }}{% endfor %}"
    message = {"role": "user", "content": PARTS}
    assert render_chat(template, [message], tags={"image": "<image>"}) == "a\n<image>\nb!"
    with pytest.raises(InvalidRequest, match="no images"):
        render_chat(template, [message])


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% for p in m['content'] %}"
        "{{ p.text if p.type == 'text' else '<pic>' }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% set parts = m.content %}{% for p in parts | selectattr('type', 'equalto', 'text') %}"
        "{{ p['text'] }}{% if loop.first %}<pic>{% endif %}{% endfor %}{% endfor %}",
    ],
)
def test_parts_stay_parts_for_a_template_that_iterates(template: str) -> None:
    assert render_chat(template, [{"role": "user", "content": PARTS}]) == "a<pic>b"


def test_tool_call_arguments_become_objects() -> None:
    template = "{% for c in messages[0].tool_calls %}{{ c.function.arguments.x }}{{ messages[0].content }}{% endfor %}"
    call = {"id": "1", "function": {"name": "f", "arguments": '{"x": 5}'}}
    assert render_chat(template, [{"role": "assistant", "content": None, "tool_calls": [call]}]) == "5None"


def test_client_arguments() -> None:
    template = "{{ thinking }} {{ add_generation_prompt }}"
    assert render_chat(template, CHAT, kwargs={"thinking": True}) == "True True"


@pytest.mark.parametrize(
    "name", ["messages", "add_generation_prompt", "range", "raise_exception", "_x", "a b", "self.x"]
)
def test_client_arguments_take_nobodys_place(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not allowed"):
        render_chat("x", CHAT, kwargs={name: 1})


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"content": "x"}],
        [{"role": 5, "content": "x"}],
        ["x"],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": [{"type": "video"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": "x" * (9 << 20)}],
    ],
)
def test_wrong_messages(messages: list) -> None:
    with pytest.raises(InvalidRequest):
        render_chat("{{ messages[0].content }}", messages, tags={"image": "<image>"})


def test_the_date() -> None:
    assert render_chat("{{ strftime_now('%Y') }}", CHAT) in {str(datetime.now().year), str(datetime.now().year - 1)}


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ x|nosuch }}", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "x" * (2 << 20)]
)
def test_templates_that_do_not_compile(template: str) -> None:
    with pytest.raises(ModelError, match="chat template"):
        compile_template(template)


NEST = (
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
)
DOUBLE = "{% set ns = namespace(x='12345678') %}{% for i in range(40) %}{% set ns.x = NEXT %}{% endfor %}{{ ns.x }}"
HOSTILE = [
    "{{ cycler.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ (messages|attr('append'))(1) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='x') }}",
    "{{ lipsum(10**7) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ range(10**9) | list }}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{{ range(100000) | join }}{% endfor %}",
    "{% set x %}{% for i in range(100000) %}" + "A" * 10_000 + "{% endfor %}{% endset %}{{ x | length }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{% for i in range(10**5) %}{% call m() %}"
    + "A" * 1000
    + "{% endcall %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{{ [1] * 10**9 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'a' | center(10**9) }}",
    "{{ ['a'] | map('center', 10**9) | list }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**9) }}",
    "{{ ('x' * 1000000) | replace('x', 'y' * 10000) }}",
    "{{ ('x' * 1000000).replace('x', 'y' * 10000) }}",
    "{{ ('x\n' * 1000000) | indent(1000) }}",
    "{{ range(100000) | map('string') | join('x' * 1000) }}",
    "{{ ('x' * 1000).join(('y' * 1000000) | list) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ 1.5 | round(10**9) }}",
    "{{ [[1]] | sum(start=[]) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ strftime_now('%999999999d') }}",
    DOUBLE.replace("NEXT", "ns.x ~ ns.x"),
    DOUBLE.replace("NEXT", "ns.x + ns.x"),
    DOUBLE.replace("NEXT", "[ns.x, ns.x] | join"),
    DOUBLE.replace("NEXT", "'%s%s' % (ns.x, ns.x)"),
    DOUBLE.replace("NEXT", "'{}{}'.format(ns.x, ns.x)"),
    NEST + "{{ ns.x }}",
    NEST + "{{ ns }}",
    NEST + "{{ [ns.x.__len__] }}{{ ns.x | tojson }}",
    NEST + "{{ ns.x == ns.y }}",
    NEST + "{{ ns.x is eq ns.y }}",
    NEST + "{{ ns.x in [ns.y] }}",
    NEST + "{{ [ns.x, ns.y] | sort }}",
    NEST + "{{ '' ~ ns.x }}",
    NEST + "{{ '%s' % ns.x }}",
    NEST + "{{ [ns.x] | map('string') | list }}",
]


@pytest.mark.parametrize("template", HOSTILE)
def test_hostile_templates_end_soon_and_do_nothing(template: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = process_time()
    with pytest.raises(InvalidRequest) as caught:
        render_chat(template, CHAT)
    assert (
        process_time() - start < 2
    )  # the limit is one second; this is time of the processor, since the machine may be busy
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB
    assert " at 0x" not in caught.value.message
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler }}",
        "{{ range }}",
        "{{ ''.join }}",
        "{{ [joiner()] }}",
        "{{ joiner() | string }}",
        "{{ '%s' % joiner() }}",
        "{{ '%s' % [joiner()] }}",
        "{{ '%s' | format(joiner()) }}",
        "{{ '{}'.format(joiner()) }}",
        "{{ [joiner()] | join }}",
        "{{ '' ~ joiner() }}",
        "{{ namespace(a=joiner()) }}",
        "{{ joiner() | tojson }}",
    ],
)
def test_no_address_in_a_prompt(template: str) -> None:
    try:
        text = render_chat(template, CHAT)
    except InvalidRequest as error:
        text = error.message
    assert "0x" not in text


def test_a_long_chat_is_quick() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 50} for i in range(400)]
    template = compile_template(
        "{% for m in messages %}{{ '<' + m.role + '>' + m['content'] | trim + '\n' }}{% endfor %}"
    )
    start = process_time()
    text = template.render(messages, {})
    assert process_time() - start < 0.5
    assert text.count("<user>") == 200
