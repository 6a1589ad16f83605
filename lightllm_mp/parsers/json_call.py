"""A call as a JSON object: {"name": "f", "arguments": {...}}."""

from __future__ import annotations

from collections.abc import Collection

from lightllm_mp.parsers.delta_writer import DeltaWriter
from lightllm_mp.parsers.json_text import decoded_string, json_object, json_value
from lightllm_mp.parsers.text_reader import Malformed, Parsing, TextReader, read_all

_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", "type", "id", *_ARGUMENTS)


def json_call(reader: TextReader, writer: DeltaWriter, names: Collection[str] | None = None) -> Parsing[None]:
    """Reads one call. Its keys come in any order.

    `names`: the known calls, if only the object itself distinguishes a call from other text; it then has no other
    keys. Malformed if it is no call.
    """
    yield from reader.expect("{")
    seen: set[str] = set()
    while True:
        yield from reader.spaces()
        key = yield from decoded_string(reader)
        if names is not None and key not in _KEYS:
            raise Malformed
        yield from reader.spaces()
        yield from reader.expect(":")
        char = yield from reader.spaces()
        if key == "name" and key not in seen:
            name = yield from decoded_string(reader)
            if names is not None and name not in names:
                raise Malformed
            writer.name(name)
        elif key in _ARGUMENTS and seen.isdisjoint(_ARGUMENTS):
            yield from _arguments(reader, writer, char)
        else:
            yield from json_value(reader, _ignore)
        seen.add(key)
        yield from reader.spaces()
        if (yield from reader.expect(",", "}")) == "}":
            writer.end_call()
            return


def _arguments(reader: TextReader, writer: DeltaWriter, char: str) -> Parsing[None]:
    """An object, an object written as a string, or null for none."""
    if char == "{":
        yield from json_object(reader, writer.arguments)
    elif char == '"':
        writer.arguments((yield from _object_in_string(reader)))
    else:
        yield from reader.expect("null")


def _object_in_string(reader: TextReader) -> Parsing[str]:
    """Reads a JSON string that contains a JSON object. Returns the object's text."""
    text = yield from decoded_string(reader)
    return read_all(json_object, text.strip())


def _ignore(text: str) -> None:
    pass


def attempt(reader: TextReader, writer: DeltaWriter, call: Parsing[None], read: str = "") -> Parsing[bool]:
    """Lets `call` read one call, `read` of which is read. Returns whether there is a call.

    If there is none, the text that was read is content. A call that goes wrong after it began ends there; text that was
    read but not handed on is content, unless the text ends there. The reader stands where the call went wrong.
    """
    reader.record(read)
    try:
        yield from call
    except Malformed:
        begun = writer.begun
        writer.abandon_call()
        rest = reader.recorded()
        if not begun or (rest.strip() and not reader.at_end):
            writer.content(rest)
        return begun
    reader.recorded()
    return True
