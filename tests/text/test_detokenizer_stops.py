"""What the detokenizer actor says when the token that ends an answer is one of its stop strings."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_mp.actors.detokenizer import DetokenizerActor
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.config import Config, HttpConfig
from lightllm_mp.facts import EngineLimits, Facts
from lightllm_mp.messages import LENGTH, RUNNING, STOP, Open, Output, StopMatched, Texts, Tokens
from tests.text.text_actors import Outbox, started
from tests.text.tokenizer_samples import default_model, sample

END = "<|im_end|>"


def answer(output: Output, finish: int, *, eos: bool, show: bool = False) -> tuple[str, int, list[object]]:
    """Text, finish reason and other messages of `Hello<|im_end|>`, whose last token the router gives this reason.
    `show`: the server shows special tokens by default."""
    tokenizer, path = sample("default"), default_model()
    outbox = Outbox()
    ends = (tokenizer.token_to_id(END),)
    facts = Facts(engine=EngineLimits(vocab_size=tokenizer.vocab_size), eos_ids=ends if eos else ())
    actor, _ = started(
        DetokenizerActor, path, outbox, facts, config=Config(http=HttpConfig(no_skipping_special_tokens=show))
    )
    actor.on_message(ROUTER, Open(1, output, prompt_tokens=1, cached_tokens=0, prompt_tail=b""))
    reasons = (RUNNING, finish)
    for token, reason in zip((tokenizer.token_to_id("Hello"), *ends), reasons, strict=True):
        column = np.array([token], "<i4").tobytes()
        actor.on_message(ROUTER, Tokens(np.array([1], "<i8").tobytes(), column, b"\0\0\0\0", bytes([reason])))
    texts = [message for _, message in outbox.posted if isinstance(message, Texts)]
    others = [message for _, message in outbox.posted if not isinstance(message, Texts)]
    return "".join(text for message in texts for text in message.texts), texts[-1].finish[0], others


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(("keep", "shown"), [(True, "Hello" + END), (False, "Hello")])
def test_a_special_token_that_is_no_end_of_the_model_stops(keep: bool, shown: str, skip: bool) -> None:
    output = Output(stop=(END,), keep_stop=keep, skip_special_tokens=skip)
    assert answer(output, RUNNING, eos=False) == (shown, STOP, [StopMatched(1)])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("print_eos", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_an_end_of_the_model_that_is_a_stop_string_is_shown_once(keep: bool, print_eos: bool, skip: bool) -> None:
    output = Output(stop=(END,), keep_stop=keep, print_eos_token=print_eos, skip_special_tokens=skip)
    assert answer(output, STOP, eos=True) == ("Hello" + END * (keep or print_eos), STOP, [])


def test_it_stops_although_ends_are_ignored() -> None:
    """With ignore_eos the router goes on; the stop string is the client's own."""
    assert answer(Output(stop=(END,)), RUNNING, eos=True) == ("Hello", STOP, [StopMatched(1)])


@pytest.mark.parametrize("show", [True, False])
@pytest.mark.parametrize("skip", [True, False, None])
def test_the_flag_says_whether_special_tokens_are_shown_unless_the_request_does(show: bool, skip: bool | None) -> None:
    shown = show if skip is None else not skip
    text = answer(Output(skip_special_tokens=skip), LENGTH, eos=False, show=show)[0]
    assert text == ("Hello" + END if shown else "Hello")
    assert answer(Output(skip_special_tokens=skip), STOP, eos=True, show=show)[0] == "Hello", "the end is no text"
