"""A tokenizer without a chat template, or with one that cannot be used: chats are refused, completions are served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightllm_mp.actors.tokenizer import TokenizerActor
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.messages import ChatPrompt, Generate, Rejected, Sampling, Terms, Tokenized
from tests.actors.embedded import write_byte_tokenizer
from tests.text.text_actors import FRONT, Outbox, started_without_files


@pytest.mark.parametrize("template", [None, "{% for", "{{ messages.__class__.__mro__ }}"])
def test_only_the_chat_is_refused(tmp_path: Path, template: str | None) -> None:
    write_byte_tokenizer(tmp_path)
    if template is not None:
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    outbox = Outbox()
    actor, _ = started_without_files(TokenizerActor, tmp_path, outbox)
    rules = Terms(Sampling(seed=1))
    actor.on_message(FRONT, Generate(1, rules, chat=ChatPrompt(b'[{"role":"user","content":"hello"}]')))
    actor.on_message(FRONT, Generate(2, rules, text="hello"))
    (chat, refused), (text, served) = outbox.posted
    assert (chat, text) == (FRONT, ROUTER)
    assert isinstance(refused, Rejected)
    assert (refused.error.status, refused.error.code) == (400, "invalid_request")
    assert "template" in refused.error.message
    assert isinstance(served, Tokenized)
    assert served.prompt_tokens == 5
