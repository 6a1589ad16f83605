"""The turns of a conversation, the paths in what a person types, and the editor's rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightllm_mp.cli.chat.conversation import MAX_IMAGE_BYTES, Conversation, data_url, text_of
from lightllm_mp.cli.chat.dropped_files import take_images
from lightllm_mp.cli.chat.line_editor import LineEditor
from lightllm_mp.errors import ConfigError


def spoken(*texts: str) -> Conversation:
    conversation = Conversation()
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        conversation.ask(question)
        conversation.answer(answer)
    return conversation


def test_undo_and_retry() -> None:
    talk = spoken("a", "A", "b", "B")
    assert talk.forget_answer()
    assert [turn["content"] for turn in talk.turns] == ["a", "A", "b"]
    assert talk.undo()
    assert talk.undo()
    assert talk.turns == []
    assert not talk.undo()
    assert not talk.forget_answer()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"messages": 1}', '{"messages": [{"role": "user"}]}', "[" * 100_000])
def test_what_is_no_conversation(tmp_path: Path, text: str) -> None:
    talk = spoken("a", "A")
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match="no conversation can be read"):
        talk.load(tmp_path / "x.json")
    assert len(talk.turns) == 2


def test_the_body_of_a_request_is_one(tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    file.write_text(json.dumps({"model": "x", "messages": [{"role": "user", "content": "hi"}]}))
    talk = Conversation("Be brief.")
    talk.load(file)
    assert (talk.system, text_of(talk.turns[0])) == ("", "hi")
    with pytest.raises(ConfigError, match="No such file"):
        talk.save(tmp_path / "none" / "x.json")


def test_images(tmp_path: Path) -> None:
    file = tmp_path / "x.dat"
    for data, kind in ((b"\x89PNG\r\n", "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"RIFF0000WEBP", "webp")):
        file.write_bytes(data)
        assert data_url(file).startswith(f"data:image/{kind};base64,")
    with file.open("wb") as large:
        large.truncate(MAX_IMAGE_BYTES + 1)
    with pytest.raises(ConfigError, match="an image may have"):
        data_url(file)
    talk = Conversation()
    talk.pending = ["data:,"]
    talk.ask("What?")
    assert text_of(talk.turns[0]) == "[image] What?"


def test_paths_in_what_a_person_types(tmp_path: Path) -> None:
    plain, spaced = tmp_path / "a.png", tmp_path / "b c.JPG"
    for file in (plain, spaced):
        file.touch()
    escaped = str(spaced).replace(" ", "\\ ")
    url = spaced.as_uri()
    for typed, rest, found in (
        (f"What is {plain} about?", "What is  about?", [plain]),
        (f"'{spaced}'", "", [spaced]),
        (f'"{spaced}" {plain} what\'s this', "what's this", [spaced, plain]),
        (f"{escaped} x", "x", [spaced]),
        (url, "", [spaced]),
        ("What's in none.png, or \\n?", "What's in none.png, or \\n?", []),
        ("  indented\n  lines ", "  indented\n  lines ", []),
        ("\0.png", "\0.png", []),
    ):
        assert take_images(typed) == (rest, found)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""', "one", "", 'two"""'], "one\n\ntwo"),
        (['"""one"""'], "one"),
        (["pasted\nlines"], "pasted\nlines"),
    ],
)
def test_several_lines(lines: list[str], text: str) -> None:
    left = iter(lines)
    assert LineEditor([], lambda prompt: next(left)).read() == text
    assert list(left) == []


def test_completion(tmp_path: Path) -> None:
    (tmp_path / "cat [1].png").touch()
    (tmp_path / "cats").mkdir()
    editor = LineEditor(["/image", "/help"], input)
    assert editor.options("/", "/") == ["/help ", "/image "]
    assert editor.options("he", "he") == []
    start = str(tmp_path / "cat")
    assert editor.options(start, f"/image {start}") == [f"{start} [1].png", f"{start}s/"]
    assert editor.options(start, f"What is {start}") == []
