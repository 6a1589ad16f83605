"""A model folder without tokenizer files: token ids are served, without text; text and chats are refused."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.actors.detokenizer import DetokenizerActor
from lightllm_mp.actors.tokenizer import TokenizerActor
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.facts import Facts
from lightllm_mp.messages import (
    RUNNING,
    STOP,
    ChatPrompt,
    Count,
    Generate,
    Open,
    Output,
    Rejected,
    Sampling,
    Terms,
    Texts,
    Tokenized,
    Tokens,
)
from tests.text.text_actors import FRONT, Outbox, started_without_files


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def ids(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


def test_ids_pass_and_everything_that_needs_text_is_refused(tmp_path, outbox: Outbox) -> None:
    actor, facts = started_without_files(TokenizerActor, tmp_path, outbox)
    assert facts == Facts(has_tokenizer=False)
    plain, stops = Terms(Sampling(seed=1)), Terms(Sampling(seed=1), Output(stop=("end",)))
    actor.on_message(FRONT, Generate(1, plain, ids=ids(5, 6, 7), emitted=ids(8)))
    actor.on_message(FRONT, Generate(2, plain, text="hello"))
    actor.on_message(FRONT, Generate(3, plain, chat=ChatPrompt(b'[{"role":"user","content":"hello"}]')))
    actor.on_message(FRONT, Count(4, "hello"))
    actor.on_message(FRONT, Generate(5, stops, ids=ids(5)))
    (peer, first), *others = outbox.posted
    assert (peer, first) == (ROUTER, Tokenized(1, plain, ids(5, 6, 7, 8), 3))
    assert [(peer, message.rid) for peer, message in others] == [(FRONT, rid) for rid in (2, 3, 4, 5)]
    for _, message in others:
        assert isinstance(message, Rejected)
        assert (message.error.status, message.error.code) == (400, "invalid_request")
        assert "no tokenizer files" in message.error.message


def test_details_without_text(tmp_path, outbox: Outbox) -> None:
    """Ids, logprobs and alternatives reach the front; every text is empty."""
    actor, _ = started_without_files(DetokenizerActor, tmp_path, outbox)
    actor.on_message(ROUTER, Open(1, Output(), prompt_tokens=3, cached_tokens=0, prompt_tail=ids(5, 6, 7)))
    logprobs = np.array([-0.5], "<f4").tobytes()
    for token, finish in ((11, RUNNING), (2, STOP)):
        top = ((0, ids(token, 9), np.array([-0.5, -1.5], "<f4").tobytes()),)
        actor.on_message(ROUTER, Tokens(np.array([1], "<i8").tobytes(), ids(token), logprobs, bytes([finish]), top))
    events = [message for _, message in outbox.posted]
    assert all(isinstance(event, Texts) for event in events)
    assert [(event.ids, event.texts, event.finish) for event in events] == [
        (ids(11), ("",), bytes([RUNNING])),
        (ids(2), ("",), bytes([STOP])),
    ]
    assert events[0].logprobs == logprobs
    assert (events[0].top[0][1], events[0].top_texts) == (ids(11, 9), ((),))
