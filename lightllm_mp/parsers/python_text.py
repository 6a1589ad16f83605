"""Python literals and calls that arrive in pieces: f(a=1, b=["x", None]). Values are handed on as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_text import NUMBER, escaped
from lightllm_mp.parsers.text_reader import Malformed, Parsing, Sink, TextReader

_NAME = re.compile(r"[\w.\-]*")
_SCALAR = re.compile(r"[-+.\w]*")
_PLAIN = re.compile(r"[^\"'\\]*")
_INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
_FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\\": "\\", "'": "'", '"': '"'}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


def python_call(reader: TextReader, writer: DeltaWriter, names: Collection[str] | None = None) -> Parsing[None]:
    """Reads f(a=1, ...), with keyword arguments. Malformed if it is no call, or not of one of `names`."""
    name = yield from reader.token(_NAME)
    if names is not None and name not in names:
        raise Malformed
    writer.name(name)
    yield from reader.expect("(")
    begin = "{"
    while (yield from reader.spaces()) != ")":
        key = yield from reader.token(_NAME)
        yield from reader.spaces()
        yield from reader.expect("=")
        if not key:
            raise Malformed
        writer.arguments(f'{begin}"{escaped(key)}": ')
        yield from python_value(reader, writer.arguments)
        begin = ", "
        if (yield from reader.spaces()) != ")":
            yield from reader.expect(",")
    reader.take(1)
    if begin != "{":
        writer.arguments("}")
    writer.end_call()


def python_value(reader: TextReader, sink: Sink) -> Parsing[None]:
    """Reads one literal, JSON's words included. Tuples are lists. Malformed if it is none, or ends early."""
    closers: list[str] = []
    while True:
        char = yield from reader.spaces()
        if char in _CLOSERS:
            reader.take(1)
            closers.append(_CLOSERS[char])
            sink("{" if char == "{" else "[")
            if (yield from reader.spaces()) != closers[-1]:
                if char == "{":
                    yield from _key(reader, sink)
                continue
        elif char in ('"', "'"):
            yield from python_string(reader, sink)
        else:
            sink((yield from _scalar(reader)))
        while closers:
            char = yield from reader.spaces()
            comma = char == ","
            if comma:
                reader.take(1)
                char = yield from reader.spaces()
            if char == closers[-1]:
                reader.take(1)
                sink("}" if closers.pop() == "}" else "]")
            elif comma:
                sink(", ")
                if closers[-1] == "}":
                    yield from _key(reader, sink)
                break
            else:
                raise Malformed
        if not closers:
            return


def python_string(reader: TextReader, sink: Sink) -> Parsing[None]:
    """Reads one string literal without prefix, handed on as a JSON string. Newlines may stand in it."""
    quote = yield from reader.expect('"""', "'''", '"', "'")
    sink('"')
    while True:
        found = _PLAIN.match(reader.text, reader.at)
        assert found is not None
        if found.end() > reader.at:
            sink(escaped(reader.take(found.end() - reader.at)))
        char = yield from reader.peek()
        if char == "\\":
            reader.take(1)
            sink((yield from _escape(reader)))
        elif not char:
            raise Malformed
        elif char == quote[0] and (yield from reader.starts(quote)):
            sink('"')
            return
        elif char in "\"'":
            sink(escaped(reader.take(1)))


def _key(reader: TextReader, sink: Sink) -> Parsing[None]:
    if (yield from reader.spaces()) in ('"', "'"):
        yield from python_string(reader, sink)
    else:
        scalar = yield from _scalar(reader)
        sink(f'"{scalar}"')
    yield from reader.spaces()
    yield from reader.expect(":")
    sink(": ")


def _scalar(reader: TextReader) -> Parsing[str]:
    text = yield from reader.token(_SCALAR)
    if text in _WORDS:
        return _WORDS[text]
    if NUMBER.fullmatch(text):
        return text
    if _INTEGER.fullmatch(text):
        return str(int(text))
    if _FLOAT.fullmatch(text) and math.isfinite(number := float(text)):
        return repr(number)
    raise Malformed


def _escape(reader: TextReader) -> Parsing[str]:
    """What follows a backslash, as it stands in a JSON string."""
    char = yield from reader.peek()
    if not char:
        raise Malformed
    reader.take(1)
    if char in _ESCAPES:
        return escaped(_ESCAPES[char])
    if char == "\n":
        return ""
    digits = _HEX_DIGITS.get(char)
    if digits is None:
        return escaped("\\" + char)
    text = ""
    for _ in range(digits):
        digit = yield from reader.peek()
        if not digit or digit not in "0123456789abcdefABCDEF":
            raise Malformed
        text += reader.take(1)
    code = int(text, 16)
    if code > 0x10FFFF:
        raise Malformed
    return f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else escaped(chr(code))
