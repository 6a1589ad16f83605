"""The interactive loop: reads questions and commands until the user ends it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lightllm_mp.cli.chat.answers import AnswerView, ChatServer, status
from lightllm_mp.cli.chat.connect import UNREACHED
from lightllm_mp.cli.chat.conversation import Conversation, Message, text_of
from lightllm_mp.cli.chat.dropped_files import path_of, take_images
from lightllm_mp.cli.chat.line_editor import LineEditor
from lightllm_mp.cli.safe_text import printable
from lightllm_mp.errors import EngineError


class SlashCommand(NamedTuple):
    usage: str
    text: str
    run: Callable[[str], None]


class ChatSession:
    """The conversation of one user with one server."""

    def __init__(self, server: ChatServer, conversation: Conversation) -> None:
        self._server = server
        self._conversation = conversation
        commands = (
            SlashCommand("/image PATH", "send an image with the next question (or drop the file here)", self._image),
            SlashCommand("/system [TEXT]", "set the system prompt, or remove it", self._system),
            SlashCommand("/reset", "forget the conversation", self._reset),
            SlashCommand("/retry", "ask the last question again", self._retry),
            SlashCommand("/undo", "remove the last question and its answer", self._undo),
            SlashCommand("/save FILE", "write the conversation as JSON", self._save),
            SlashCommand("/load FILE", "go on with a saved conversation", self._load),
            SlashCommand("/help", "show this list", self._help),
            SlashCommand("/quit", "end (also Ctrl-D)", self._quit),
        )
        self._commands = {command.usage.split()[0]: command for command in commands}

    def run(self) -> int:
        """Run until Ctrl-D or /quit. Returns the exit code."""
        editor = LineEditor(self._commands)
        status(f"{self._server.model} at {self._server.url}; /help lists commands, Ctrl-C stops an answer, Ctrl-D ends")
        while True:
            try:
                self.enter(editor.read())
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()  # Ctrl-C discards the line

    def enter(self, text: str) -> None:
        """Handle one input: a command, the path of an image, or a question. EOFError at /quit."""
        word, _, rest = text.strip().partition(" ")
        if word in self._commands:
            try:
                self._commands[word].run(rest.strip())
            except EngineError as error:
                status(error.message)
            return
        asked, images = take_images(text)
        if not images and word.startswith("/") and "/" not in word[1:]:
            status(f"unknown command {word}; /help lists them")
            return
        try:
            for image in images:
                self._attach(image)
        except EngineError as error:
            status(error.message)
            return
        if asked.strip():
            before = list(self._conversation.turns)
            self._conversation.ask(asked)
            self._answer(before)

    def _answer(self, before: list[Message]) -> None:
        """Ask the server and keep the answer. Without an answer the turns become those of `before`."""
        view = AnswerView(sys.stdout, terminal=sys.stdout.isatty())
        problem = None
        try:
            view.show(self._server.answer(self._conversation.messages))
        except KeyboardInterrupt:
            problem = "stopped"
        except EngineError as error:
            problem = error.message
        except UNREACHED as error:
            problem = f"the server cannot be reached: {error}"
        view.end()
        if view.text:
            self._conversation.answer(view.text)
        else:
            self._conversation.turns = before
        if told := problem or view.figures:
            status(told)

    def _image(self, rest: str) -> None:
        if rest:
            self._attach(path_of(rest))
        else:
            status("name its file: /image PATH")

    def _attach(self, path: Path) -> None:
        self._conversation.attach(path)
        status(f"{path} goes with the next question")

    def _system(self, rest: str) -> None:
        self._conversation.system = rest
        status("the system prompt is set" if rest else "there is no system prompt")

    def _reset(self, rest: str) -> None:
        self._conversation.reset()
        status("the conversation is empty")

    def _retry(self, rest: str) -> None:
        before = list(self._conversation.turns)
        if self._conversation.forget_answer():
            self._answer(before)
        else:
            status("there is no question yet")

    def _undo(self, rest: str) -> None:
        removed = self._conversation.undo()
        status("the last question is removed" if removed else "there is no question yet")

    def _save(self, rest: str) -> None:
        self._conversation.save(path_of(rest or "chat.json"))
        status(f"saved as {path_of(rest or 'chat.json')}")

    def _load(self, rest: str) -> None:
        self._conversation.load(path_of(rest or "chat.json"))
        for turn in self._conversation.turns[-2:]:
            print(printable(("> " if turn["role"] == "user" else "") + text_of(turn)))
        status(f"{len(self._conversation.turns)} turns")

    def _help(self, rest: str) -> None:
        for command in self._commands.values():
            print(f"  {command.usage:<15} {command.text}")
        print('  A line that ends with \\ goes on; """ begins and ends a block of lines; Alt-Enter is a new line.')

    def _quit(self, rest: str) -> None:
        raise EOFError
