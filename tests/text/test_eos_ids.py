"""The flag --eos-id adds to the ends of the checkpoint. The worker tells it; the tokenizer looks what it means."""

from __future__ import annotations

import pytest

from lightllm_mp.actors.tokenizer import TokenizerActor
from lightllm_mp.config import Config, ModelConfig
from lightllm_mp.facts import Facts
from tests.text.text_actors import Outbox, started
from tests.text.tokenizer_samples import default_model, sample


def test_an_end_that_is_ordinary_text_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = sample("default")
    hello, end = (tokenizer.token_to_id(token) for token in ("Hello", "<|im_end|>"))
    config = Config(model=ModelConfig(eos_id=(end, hello)))
    _, facts = started(TokenizerActor, default_model(), Outbox(), Facts(), config=config)
    assert facts.eos_ids == tokenizer.eos_ids
    assert caplog.messages == [f"--eos-id {hello}: 'Hello' is ordinary text; answers end at it"]
