"""JSON that arrives in pieces: reads one value, checks it, and hands its text on as it arrives."""

from __future__ import annotations

import json
import re

from lightllm_mp.parsers.text_reader import Malformed, Parsing, Sink, TextReader

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR = re.compile(r"[-+.0-9a-zA-Z]*")
_SCALARS = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")
_HEX = re.compile(r"[0-9a-fA-F]{4}")


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
    """Reads one JSON string. Control characters in it, which models write, are escaped."""
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
    """Reads one JSON string. Returns what it says, which is valid Unicode."""
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
    if not _SCALARS.fullmatch(text):
        raise Malformed
    sink(text)


def _escape(reader: TextReader) -> Parsing[str]:
    while len(reader.text) - reader.at < 6 and not reader.ended:
        if reader.text[reader.at + 1 : reader.at + 2] not in ("", "u"):
            break
        yield
    ahead = reader.text[reader.at : reader.at + 6]
    if ahead[1:2] == "u" and _HEX.fullmatch(ahead, 2):
        return reader.take(6)
    if len(ahead) > 1 and ahead[1] in '"\\/bfnrt':
        return reader.take(2)
    raise Malformed
