"""`lightllm-mp chat` on a terminal: typed keys, streamed answers, commands, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.actors.embedded import write_byte_tokenizer
from tests.cli.chat.fake_server import BREAK, HANG, FakeChatServer, fake_chat_server
from tests.cli.terminal import Terminal, terminal
from tests.paths import GOLDENS, ROOT

PICTURE = ROOT / "examples" / "pair.png"
CHAT = [sys.executable, "-P", "-m", "lightllm_mp", "chat"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
READY = r"Ctrl-D ends\S*\r\n.*> "
"""The greeting, then the prompt."""
NEXT = r"ms\S*\r\n.*> "
"""The end of the line of figures, then the prompt."""
STOPPED = r"stopped\S*\r\n.*> "


@pytest.fixture(scope="module")
def server() -> Iterator[FakeChatServer]:
    with fake_chat_server() as running:
        yield running


@pytest.fixture
def chat(server: FakeChatServer) -> Iterator[Terminal]:
    server.answers.clear()
    server.bodies.clear()
    with terminal([*CHAT, "--url", server.url, "--system", "Be brief."], ENVIRONMENT) as opened:
        opened.until(READY)
        yield opened


def asked(server: FakeChatServer) -> list[tuple[str, object]]:
    """Roles and contents of the last request."""
    return [(message["role"], message["content"]) for message in server.bodies[-1]["messages"]]


def test_a_conversation(server: FakeChatServer, chat: Terminal) -> None:
    chat.type("one\r")
    chat.until("echo one\r\n")
    assert "7 tokens, 12.5 tokens/s, first after 34 ms" in chat.until(NEXT)
    chat.type('"""two\rlines"""\r')
    chat.until("echo two\r\nlines\r\n")
    chat.until(NEXT)
    first = [("system", "Be brief."), ("user", "one"), ("assistant", "echo one")]
    assert asked(server) == [*first, ("user", "two\nlines")]
    chat.type("/undo\r")
    chat.until("removed")
    chat.type("a\\\rb\r")
    chat.until(NEXT)
    assert asked(server) == [*first, ("user", "a\nb")]
    chat.type("/system\r/retry\r")
    chat.until(NEXT)
    assert asked(server) == [*first[1:], ("user", "a\nb")]
    chat.type("/reset\r/retry\r")
    chat.until("no question yet")
    chat.type("/nonsense\r")
    chat.until("unknown command /nonsense")
    chat.type("/hel\t\r")
    chat.until("/save FILE")
    chat.type("\x04")
    assert chat.end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(server: FakeChatServer, chat: Terminal) -> None:
    server.answers += [["half an an", HANG], [HANG]]
    server.left.clear()
    chat.type("tell me\r")
    chat.until("half an an")
    chat.interrupt()
    chat.until(STOPPED)
    assert server.left.wait(10)
    chat.type("a line that is given up")
    chat.until("given up")
    chat.interrupt()
    chat.until("> ")
    chat.type("go on\r")
    chat.until(r"go on.*\n")
    deadline = time.monotonic() + 60
    while len(server.bodies) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    chat.interrupt()
    chat.until(STOPPED)
    chat.type("again\r")
    chat.until("echo again")
    assert asked(server)[1:] == [("user", "tell me"), ("assistant", "half an an"), ("user", "again")]
    chat.until(NEXT)
    chat.type("/quit\r")
    assert chat.end() == 0


def test_hostile_output_never_reaches_the_terminal(server: FakeChatServer, chat: Terminal) -> None:
    """A title, a cleared screen, a clipboard, a question that the terminal would answer as if it were typed, C1, bells,
    overwritten lines, reordered text: split in the middle, and in the reasoning, too."""
    evil = (
        "\x1b]0;title\x07 \x1b[2J \x1b]52;c;Zm9v\x1b\\ \x1b[6n \x9b31m \x08\x08 new\rold \u202egnp.exe \x7f \ud800 end"
    )
    server.answers.append([{"reasoning_content": evil}, *evil, "\x1b", "[31m", "!"])
    chat.type("hello\r")
    shown = chat.until(NEXT)
    answer = shown.split("end", 1)[1]
    harmless = answer.replace("\x1b[0m", "").replace("\x1b[2m", "").replace("\x1b[?2004h", "").replace("\r\n", "\n")
    assert not set(harmless) & {chr(code) for code in (*range(9), *range(11, 32), 127, *range(128, 160))}
    assert not set(harmless) & {"\u202e"}
    assert "␛]0;title␇ ␛[2J" in harmless
    assert "␛[31m!" in harmless
    assert "new␍old \ufffdgnp.exe ␡" in harmless


def test_reasoning_is_dimmed_and_no_part_of_the_history(server: FakeChatServer, chat: Terminal) -> None:
    server.answers.append([{"role": "assistant", "content": ""}, {"reasoning_content": "Hm."}, "\n\nYes."])
    chat.type("well?\r")
    assert "\x1b[2mHm.\r\n\x1b[0mYes.\r\n" in chat.until(NEXT)
    chat.type("and?\r")
    chat.until(NEXT)
    assert asked(server)[2] == ("assistant", "\n\nYes.")


def test_a_stream_that_breaks_goes_on(server: FakeChatServer, chat: Terminal) -> None:
    before = server.returns
    server.answers.append([BREAK, "one ", BREAK, "two ", "three"])
    chat.type("count\r")
    chat.until("one two three\r\n")
    assert server.returns == before + 1


def test_a_refusal_is_a_line_and_the_question_goes(server: FakeChatServer, chat: Terminal) -> None:
    server.answers.append([400, "too \x1b[31mlong"])
    chat.type("x\r")
    chat.until(r"too ␛\[31mlong")
    chat.type("y\r")
    chat.until(NEXT)
    assert asked(server)[1:] == [("user", "y")]
    server.answers.append([503, "full"])
    chat.type("/retry\r")
    chat.until("full")
    chat.type("z\r")
    chat.until(NEXT)
    assert asked(server)[1:] == [("user", "y"), ("assistant", "echo y"), ("user", "z")]


def test_images_by_command_and_by_a_dropped_file(server: FakeChatServer, chat: Terminal, tmp_path: Path) -> None:
    dropped = tmp_path / "my picture.png"
    shutil.copy(PICTURE, dropped)
    chat.type("/image\r")
    chat.until("name its file")
    chat.type(f"/image {PICTURE}\r")
    chat.until("goes with the next question")
    chat.type(f"'{dropped}' What's in them?\r")
    chat.until(NEXT)
    url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": url}}
    assert asked(server)[-1] == ("user", [image, image, {"type": "text", "text": "What's in them?"}])
    chat.type(f"/image {ROOT / 'README.md'}\r")
    chat.until("not an image")
    chat.type(f"/image {tmp_path}/none.png\r")
    chat.until("No such file")


def test_a_conversation_is_saved_and_loaded(server: FakeChatServer, chat: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    chat.type("one\r")
    chat.until(NEXT)
    chat.type(f"/save {file}\r")
    chat.until("saved as")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [message["content"] for message in json.loads(file.read_text())["messages"]] == [
        "Be brief.",
        "one",
        "echo one",
    ]
    chat.type(f"/reset\r/load {file}\r")
    chat.until(r"> one\r\necho one\r\n")
    chat.type("two\r")
    chat.until(NEXT)
    assert [content for _, content in asked(server)] == ["Be brief.", "one", "echo one", "two"]
    file.write_text('{"messages": 5}')
    chat.type(f"/load {file}\r")
    chat.until("no conversation can be read")


def test_a_server_of_its_own(tmp_path: Path) -> None:
    """It shows its progress, answers, and ends with the chat."""
    model = shutil.copytree(GOLDENS / "llama", tmp_path / "llama")
    write_byte_tokenizer(model)
    (model / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    with terminal([*CHAT, "--model-dir", str(model), "--max-tokens", "5"], ENVIRONMENT) as chat:
        assert "starting a server" in chat.until(READY, 200)
        children = Path(f"/proc/{chat.process.pid}/task/{chat.process.pid}/children").read_text().split()
        assert len(children) == 1
        chat.type("hello\r")
        chat.until(r"5 tokens, .* ms, cut off")
        chat.type("\x04")
        assert chat.end() == 0
        assert not Path(f"/proc/{children[0]}").exists()


def test_a_server_of_its_own_that_does_not_start(tmp_path: Path) -> None:
    with terminal([*CHAT, "--model-dir", str(tmp_path)], ENVIRONMENT) as chat:
        assert chat.end() == 1
        assert "config.json" in chat.screen
        assert "Traceback" not in chat.screen
