"""Chat formats of families whose folders bring no chat template, as Jinja templates for the sandbox of chat.py.

They render what the families' own chat functions build. Two differences are wanted: a special token that a message
spells out is read as that token, as everywhere in this package, and a system message is placed first where upstream
knows none.
"""

from __future__ import annotations

_FIRST = "{% if not loop.first %}{{ raise_exception('the system message is not the first one') }}{% endif %}"
_UNKNOWN = "{{ raise_exception('this model has no role ' ~ message['role']) }}"
_CONTENT = "(message['content'] or '')"

QWEN = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ CONTENT ~ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
).replace("CONTENT", _CONTENT)

CHATGLM2 = (
    "{{ '[gMASK]<|sop|>' }}{% set ns = namespace(round=0) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set ns.round = ns.round + 1 %}"
    "{{ '[Round ' ~ ns.round ~ ']\n\n问：' ~ CONTENT ~ '\n\n答：' }}"
    "{% elif message['role'] == 'assistant' %}{{ CONTENT ~ '\n\n' }}"
    "{% elif message['role'] == 'system' %}FIRST{{ CONTENT ~ '\n\n' }}"
    "{% else %}UNKNOWN{% endif %}"
    "{% endfor %}"
)
CHATGLM2 = CHATGLM2.replace("CONTENT", _CONTENT).replace("FIRST", _FIRST).replace("UNKNOWN", _UNKNOWN)

# The space stands for the one that SentencePiece puts before a content that is encoded on its own.
CHATGLM3 = (
    "{{ '[gMASK]<|sop|>' }}"
    "{% for message in messages %}"
    "{% set role = 'observation' if message['role'] == 'tool' else message['role'] %}"
    "{% if role not in ['system', 'user', 'assistant', 'observation'] %}UNKNOWN{% endif %}"
    "{{ '<|' ~ role ~ '|>' ~ (message['metadata'] or '') ~ '\n' ~ (' ' ~ CONTENT if CONTENT else '') }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CHATGLM3 = CHATGLM3.replace("CONTENT", _CONTENT).replace("UNKNOWN", _UNKNOWN)


def baichuan(user: str, assistant: str, *, end: str) -> str:
    """The template with these role tokens; `end` is the Jinja expression written after an answer."""
    return (
        "{% for message in messages %}"
        f"{{% if message['role'] == 'user' %}}{{{{ '{user}' ~ {_CONTENT} }}}}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ '{assistant}' ~ {_CONTENT} ~ {end} }}}}"
        f"{{% elif message['role'] == 'system' %}}{_FIRST}{{{{ {_CONTENT} }}}}"
        f"{{% else %}}{_UNKNOWN}{{% endif %}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}}{{{{ '{assistant}' }}}}{{% endif %}}"
    )


def internlm(end_of_question: str) -> str:
    """The template of InternLM; `end_of_question` is "<eoh>" for its first release."""
    return (
        "{{ bos_token }}"
        "{% for message in messages %}"
        f"{{% if message['role'] == 'user' %}}{{{{ '<|User|>:' ~ {_CONTENT} ~ '{end_of_question}\n<|Bot|>:' }}}}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ {_CONTENT} ~ '<eoa>\n' }}}}"
        f"{{% elif message['role'] == 'system' %}}{_FIRST}{{{{ '<|System|>:' ~ {_CONTENT} ~ '\n' }}}}"
        f"{{% else %}}{_UNKNOWN}{{% endif %}}"
        "{% endfor %}"
    )


def internlm2(start: str, end: str) -> str:
    """The template of InternLM2 with the names of its two turn tokens."""
    return (
        "{{ bos_token }}"
        f"{{% for message in messages %}}{{{{ '{start}' ~ message['role'] ~ '\n' ~ {_CONTENT} ~ '{end}\n' }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{start}assistant\n' }}}}{{% endif %}}"
    )
