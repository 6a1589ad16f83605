"""The JSON types of a schema, and texts made JSON by them."""

from __future__ import annotations

from time import process_time
from typing import Any

import pytest

from lightllm_mp.parsers.typed_arguments import schema_types, typed_value

ROOT = {
    "$defs": {
        "a/b~c": {"type": "integer"},
        "loop": {"anyOf": [{"$ref": "#/$defs/loop"}] * 9},
        "me": {"$ref": "#/$defs/me"},
    }
}


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["integer", "null"]}, {"integer", "null"}),
        (
            {"enum": ["a", 1, 1.5, None, True, [], {}]},
            {"string", "integer", "number", "null", "boolean", "array", "object"},
        ),
        ({"const": 3}, {"integer"}),
        ({"anyOf": [{"type": "string"}, {"const": None}]}, {"string", "null"}),
        ({"oneOf": [{"type": "string"}, {"oneOf": [{"type": "array"}]}]}, {"string", "array"}),
        ({"anyOf": [{"type": "string"}, {}]}, None),
        ({"allOf": [{"type": ["string", "integer"]}, {"type": "integer"}, {"title": "x"}]}, {"integer"}),
        ({"$ref": "#/$defs/a~1b~0c"}, {"integer"}),
        ({"$ref": "#/$defs/nothing"}, None),
        ({"$ref": "https://x/y"}, None),
        ({"$ref": "#/$defs/me"}, None),
        ({"$ref": "#/$defs/loop"}, None),
        ({}, None),
        (True, None),
        ({"type": 5}, None),
    ],
)
def test_types(schema: Any, types: set[str] | None) -> None:
    begin = process_time()
    assert schema_types(schema, ROOT) == types
    assert process_time() - begin < 1


@pytest.mark.parametrize(
    ("text", "types", "json"),
    [
        ("5", {"integer"}, "5"),
        (" -5\n", {"integer"}, "-5"),
        ("5.0", {"integer"}, "5"),
        ("5.5", {"integer"}, "5.5"),
        ("5", {"number"}, "5"),
        ("1e3", {"number"}, "1e3"),
        ("True", {"boolean"}, "true"),
        ("yes", {"boolean"}, '"yes"'),
        ("None", {"integer", "null"}, "null"),
        ("null", {"integer"}, "null"),
        ("['a']", {"array"}, '["a"]'),
        ('{"a": 1}', {"object"}, '{"a": 1}'),
        ('{"a": 1', {"object"}, '"{\\"a\\": 1"'),
        ('{"a": 1}', {"string", "integer"}, '"{\\"a\\": 1}"'),
        ("5", {"string", "integer"}, "5"),
        ('"5"', {"integer"}, '"\\"5\\""'),
        ("5 5", None, '"5 5"'),
        ("5", None, "5"),
        ("é\n", None, '"é\\n"'),
        ("", {"integer"}, '""'),
        ("NaN", {"number"}, '"NaN"'),
    ],
)
def test_values(text: str, types: set[str] | None, json: str) -> None:
    assert typed_value(text, None if types is None else frozenset(types)) == json
