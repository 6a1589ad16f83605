"""Reads and checks one JSON value that arrives in pieces, and hands its text on as it arrives."""

from __future__ import annotations

import json
import re

from lightllm_mp.parsers.text_reader import Malformed, Parsing, Sink, TextReader

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR = re.compile(r"[-+.0-9a-zA-Z]*")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = ("true", "false", "null")
_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}")
_ESCAPE_BEGIN = re.compile(r"\\u[0-9a-fA-F]{0,3}")
"""Cut off by the end of the text."""


def escaped(text: str) -> str:
    """`text` as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def json_value(reader: TextReader, sink: Sink) -> Parsing[None]:
    """Reads one JSON value. Malformed if the text is none, or ends within it."""
    closers: list[str] = []
    while True:
        char = yield from reader.spaces(sink)
        if char == "{" or char == "[":
            sink(reader.take(1))
            closer = "}" if char == "{" else "]"
            closers.append(closer)
            if (yield from reader.spaces(sink)) != closer:
                if closer == "}":
                    yield from _key(reader, sink)
                continue
        elif char == '"':
            yield from json_string(reader, sink)
        else:
            yield from _scalar(reader, sink)
        # A value is read, or a container is empty.
        while closers:
            char = yield from reader.spaces(sink)
            if char == closers[-1]:
                sink(reader.take(1))
                closers.pop()
            elif char == ",":
                sink(reader.take(1))
                if closers[-1] == "}":
                    yield from _key(reader, sink)
                break
            else:
                raise Malformed
        if not closers:
            return


def json_string(reader: TextReader, sink: Sink) -> Parsing[None]:
    """Reads one JSON string. It escapes control characters, which models write."""
    sink((yield from reader.expect('"')))
    while True:
        found = _PLAIN.match(reader.text, reader.at)
        assert found is not None
        if found.end() > reader.at:
            sink(reader.take(found.end() - reader.at))
        char = yield from reader.peek()
        if char == '"':
            sink(reader.take(1))
            return
        if char == "\\":
            sink((yield from _escape(reader)))
        elif not char:
            raise Malformed
        elif char < " ":
            sink(escaped(reader.take(1)))


def decoded_string(reader: TextReader) -> Parsing[str]:
    """Reads one JSON string. Returns its value, which is valid Unicode."""
    pieces: list[str] = []
    yield from json_string(reader, pieces.append)
    text: str = json.loads("".join(pieces))
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise Malformed
    return text


def json_object(reader: TextReader, sink: Sink) -> Parsing[None]:
    """Reads one JSON object."""
    if (yield from reader.spaces()) != "{":
        raise Malformed
    yield from json_value(reader, sink)


def _key(reader: TextReader, sink: Sink) -> Parsing[None]:
    yield from reader.spaces(sink)
    yield from json_string(reader, sink)
    yield from reader.spaces(sink)
    sink((yield from reader.expect(":")))


def _scalar(reader: TextReader, sink: Sink) -> Parsing[None]:
    text = yield from reader.token(_SCALAR)
    if text not in _WORDS and not NUMBER.fullmatch(text):
        raise Malformed
    sink(text)


def _escape(reader: TextReader) -> Parsing[str]:
    kind = yield from reader.ahead(2)
    if len(kind) < 2:
        reader.take(len(kind))
    elif kind[1] in '"\\/bfnrt':
        return reader.take(2)
    elif kind[1] == "u":
        code = yield from reader.ahead(6)
        if _ESCAPE.fullmatch(code):
            return reader.take(6)
        if _ESCAPE_BEGIN.fullmatch(code):
            reader.take(len(code))
    raise Malformed
