"""Chat formats of families whose folders bring no chat template, as Jinja templates for the sandbox of chat.py.

They render what the families' own chat functions build. Two differences are wanted: a special token that a message
spells out is read as that token, as everywhere in this package, and a system message is placed first where upstream
knows none.
"""

from __future__ import annotations

_EACH = "{% for message in messages %}{% set role, content = message['role'], message['content'] or '' %}"
_END = "{% endfor %}"
_FIRST = "{% if not loop.first %}{{ raise_exception('the system message is not the first one') }}{% endif %}"
_ELSE_UNKNOWN = "{% else %}{{ raise_exception('this model has no role ' ~ role) }}{% endif %}"

QWEN = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + _EACH
    + "{{ '<|im_start|>' ~ role ~ '\n' ~ content ~ '<|im_end|>\n' }}"
    + _END
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CHATGLM2 = (
    "{{ '[gMASK]<|sop|>' }}{% set ns = namespace(round=0) %}"
    + _EACH
    + "{% if role == 'user' %}{% set ns.round = ns.round + 1 %}"
    + "{{ '[Round ' ~ ns.round ~ ']\n\n问：' ~ content ~ '\n\n答：' }}"
    + "{% elif role == 'assistant' %}{{ content ~ '\n\n' }}"
    + ("{% elif role == 'system' %}" + _FIRST + "{{ content ~ '\n\n' }}")
    + _ELSE_UNKNOWN
    + _END
)

# The space stands for the one that SentencePiece puts before a content that is encoded on its own.
CHATGLM3 = (
    "{{ '[gMASK]<|sop|>' }}"
    + _EACH
    + "{% if role in ['system', 'user', 'assistant', 'observation', 'tool'] %}"
    + "{{ '<|' ~ role.replace('tool', 'observation') ~ '|>' ~ (message['metadata'] or '') ~ '\n' }}"
    + "{% if content %}{{ ' ' ~ content }}{% endif %}"
    + _ELSE_UNKNOWN
    + _END
    + "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_BAICHUAN = (
    _EACH
    + "{% if role == 'user' %}{{ 'USER' ~ content }}"
    + "{% elif role == 'assistant' %}{{ 'ASSISTANT' ~ content ~ END }}"
    + ("{% elif role == 'system' %}" + _FIRST + "{{ content }}")
    + _ELSE_UNKNOWN
    + _END
    + "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ 'ASSISTANT' }}{% endif %}"
)

_INTERNLM = (
    "{{ bos_token }}"
    + _EACH
    + "{% if role == 'user' %}{{ '<|User|>:' ~ content ~ 'END\n<|Bot|>:' }}"
    + "{% elif role == 'assistant' %}{{ content ~ '<eoa>\n' }}"
    + ("{% elif role == 'system' %}" + _FIRST + "{{ '<|System|>:' ~ content ~ '\n' }}")
    + _ELSE_UNKNOWN
    + _END
)

_INTERNLM2 = (
    "{{ bos_token }}"
    + _EACH
    + "{{ 'START' ~ role ~ '\n' ~ content ~ 'END\n' }}"
    + _END
    + "{% if add_generation_prompt %}{{ 'STARTassistant\n' }}{% endif %}"
)


def baichuan(user: str, assistant: str, *, ends_answers: bool) -> str:
    """The template with these role tokens; `ends_answers`: an answer is followed by the end-of-sequence token."""
    end = "eos_token" if ends_answers else "''"
    return _BAICHUAN.replace("END", end).replace("USER", user).replace("ASSISTANT", assistant)


def internlm(end_of_question: str) -> str:
    """The template of InternLM; `end_of_question` is "<eoh>" for its first release, later "" ."""
    return _INTERNLM.replace("END", end_of_question)


def internlm2(start: str, end: str) -> str:
    """The template of InternLM2 with its two turn tokens."""
    return _INTERNLM2.replace("START", start).replace("END", end)
