"""How an answer is shown: what goes where, and the line of figures."""

from __future__ import annotations

import io
from typing import Any

from lightllm_mp.cli.chat.answers import AnswerView, Timing


def delta(**fields: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def shown(*chunks: dict[str, Any], terminal: bool) -> tuple[str, AnswerView]:
    out, ticks = io.StringIO(), iter(range(1000))
    view = AnswerView(out, terminal=terminal, clock=lambda: float(next(ticks)))
    view.show(iter(chunks))
    view.end()
    return out.getvalue(), view


CHUNKS = (
    delta(role="assistant", content=""),
    delta(reasoning_content="\nHm"),
    delta(reasoning_content=".\n"),
    delta(content="\n\nYes,"),
    delta(content="\n\n"),
    delta(content="no."),
)


def test_on_a_terminal_and_elsewhere() -> None:
    assert shown(*CHUNKS, terminal=True)[0] == "\x1b[2mHm.\n\x1b[0mYes,\n\nno.\n"
    assert shown(*CHUNKS, terminal=False)[0] == "Yes,\n\nno.\n"


def test_the_history_has_the_answer_as_the_model_wrote_it() -> None:
    assert shown(*CHUNKS, terminal=True)[1].text == "\n\nYes,\n\nno."
    assert shown(delta(content="\x1b[31m"), terminal=True)[1].text == "\x1b[31m"


def test_figures_of_the_server_or_of_this_clock() -> None:
    usage = {"choices": [], "usage": {"completion_tokens": 4}}
    timings = {"predicted_n": 4, "predicted_per_second": 2.5, "ttft_ms": 31.4}
    assert shown(delta(content="a"), {**usage, "timings": timings}, terminal=True)[1].figures == str(
        Timing(4, 2.5, 31.4)
    )
    own = shown(delta(content="a"), usage, terminal=True)[1].timing
    assert own is not None
    assert (own.tokens, own.first_ms) == (4, 1000)
    assert own.rate > 0
    assert shown(delta(content="a"), terminal=True)[1].figures == ""
    assert str(Timing(1, 2.0, 3.0)) == "1 token, 2.0 tokens/s, first after 3 ms"


def test_chunks_of_other_servers() -> None:
    odd = ({}, {"choices": None}, {"choices": [{"delta": None}]}, {"choices": [{"delta": {"content": None}}]})
    cut = {"choices": [{"delta": {"content": "x"}, "finish_reason": "length"}], "usage": None}
    text, view = shown(*odd, cut, terminal=True)
    assert (text, view.figures) == ("x\n", "cut off: it may not be longer")


def test_an_answer_that_is_stopped_leaves_the_terminal_as_it_was() -> None:
    out = io.StringIO()
    view = AnswerView(out, terminal=True)
    view.show(iter([delta(reasoning_content="Hm")]))
    view.end()
    assert out.getvalue() == "\x1b[2mHm\n\x1b[0m"
