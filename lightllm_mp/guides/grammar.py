"""Turns a guide into a grammar of llguidance's form, within bounds on its size."""

from __future__ import annotations

import json
from collections.abc import Callable

from llguidance import LLMatcher, gbnf_to_lark

from lightllm_mp.errors import InvalidGuide
from lightllm_mp.messages import Guide

MAX_SOURCE, MAX_LARK, MAX_AFTER = 1 << 16, 1 << 19, 256
"""Bytes. This server writes Lark for a request's tools."""
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""White space allowed between two tokens of JSON; bounded, so that a model that indents comes to an end."""


def grammar_of(guide: Guide) -> str:
    """Raises InvalidGuide if the guide is of no known kind, is too long, or cannot be read. A grammar may still be
    wrong: compiling it tells."""
    source = guide.source
    most = MAX_LARK if guide.kind == "lark" else MAX_SOURCE
    if len(source.encode("utf-8", "surrogatepass")) > most or len(guide.after.encode("utf-8", "replace")) > MAX_AFTER:
        raise InvalidGuide(f"a constraint has at most {most} bytes, the text before it at most {MAX_AFTER}")
    make = KINDS.get(guide.kind)
    if make is None:
        raise InvalidGuide(f"a constraint is one of {', '.join(KINDS)}, not {guide.kind[:32]!r}")
    try:
        return make(source)
    except (ValueError, RecursionError) as error:
        raise InvalidGuide(f"{guide.kind}: {reason(error)}") from None


def reason(error: object) -> str:
    """The first line of a library's message, short enough for a client."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _json_schema(source: str) -> str:
    schema = json.loads(source)
    if schema is not True and not isinstance(schema, dict):
        raise ValueError("a schema that can be satisfied is an object or true")
    return LLMatcher.grammar_from_json_schema(
        "{}" if schema is True else source, defaults={"whitespace_pattern": WHITESPACE}
    )


def _json_object(source: str) -> str:
    return _json_schema('{"type": "object"}')


def _choice(source: str) -> str:
    choices = json.loads(source)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("choices are a list of strings")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in choices))


def _regex(source: str) -> str:
    return LLMatcher.grammar_from_regex(source)


def _lark(source: str) -> str:
    return LLMatcher.grammar_from_lark(source)


def _gbnf(source: str) -> str:
    try:
        lark = gbnf_to_lark.any_to_lark(source)
    except MemoryError:
        raise
    except Exception as error:  # the converter raises Exception, and all errors of its parser
        raise ValueError(reason(error)) from None
    return LLMatcher.grammar_from_lark(lark)


KINDS: dict[str, Callable[[str], str]] = {
    "json_schema": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "choice": _choice,
    "lark": _lark,
    "gbnf": _gbnf,
}
