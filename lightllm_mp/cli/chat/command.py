"""The command `lightllm-mp chat`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightllm_mp.cli.flags.parser import Parser, parse
from lightllm_mp.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from lightllm_mp.cli.chat.answers import ChatServer
    from lightllm_mp.cli.chat.conversation import Conversation

DESCRIPTION = """\
Chat in the terminal, with images: with the server at --url, by default the one on 127.0.0.1:8000, or, where none runs,
with one that starts for it and ends with it. With a question, or with text on standard input, the answer is printed and
nothing else (`lightllm-mp chat "Sum this up:" < notes.txt`). A server's API key is read from LIGHTLLM_MP_API_KEY."""


def parser() -> Parser:
    found = Parser(prog="lightllm-mp chat", description=DESCRIPTION, allow_abbrev=False)
    add = found.add_argument
    add("question", nargs="*", help="ask this, print the answer, and end")
    add("--url", metavar="URL", help="address of the server")
    add("--model-dir", metavar="PATH", help="start a server with this folder or .gguf file")
    add("--image", action="append", default=[], metavar="PATH", help="image for the first question; may be repeated")
    add("--system", default="", metavar="TEXT", help="system prompt")
    add("--temperature", type=float, metavar="X", help="0: always the likeliest token")
    add("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    return found


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 if a question on the command line gets no answer. ConfigError for wrong flags, EngineError if
    there is no server."""
    args = parse(parser(), argv)
    if args.url is not None and args.model_dir is not None:
        raise ConfigError("--model-dir starts a server; it cannot be used with --url")
    question = _question(args)
    # Imported here, so that `chat --help` is quick.
    from lightllm_mp.cli.chat.connect import chat_server
    from lightllm_mp.cli.chat.conversation import Conversation
    from lightllm_mp.cli.chat.session import ChatSession

    conversation = Conversation(args.system)
    for image in args.image:
        conversation.attach(Path(image).expanduser())
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # for a terminal without UTF-8
    asked: dict[str, Any] = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    with chat_server(args.url, args.model_dir, {k: v for k, v in asked.items() if v is not None}) as server:
        if question is None:
            return ChatSession(server, conversation).run()
        conversation.ask(question)
        return _answer_once(server, conversation)


def _question(args: argparse.Namespace) -> str | None:
    """The question on the command line and standard input, or None for a conversation."""
    given = " ".join(args.question)
    if sys.stdin is None or sys.stdin.isatty():
        return given or None
    text = "\n\n".join(filter(None, (given, sys.stdin.read().strip())))
    if not text and not args.image:
        raise ConfigError("nothing is asked: standard input is empty")
    return text


def _answer_once(server: ChatServer, conversation: Conversation) -> int:
    from lightllm_mp.cli.chat.answers import AnswerView, status
    from lightllm_mp.cli.chat.connect import UNREACHED

    view = AnswerView(sys.stdout, terminal=sys.stdout.isatty())
    try:
        view.show(server.answer(conversation.messages))
    except UNREACHED as error:
        raise EngineError(f"{server.url} cannot be reached: {error}") from None
    finally:
        view.end()
    if view.figures and sys.stderr.isatty():
        status(view.figures)
    return 0
