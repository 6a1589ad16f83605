"""Random JSON schemas from a seed, written from the specification (draft 2020-12)."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
PATTERNS = (
    "^[a-z]{2,8}$",
    "^[A-Z][a-z]*$",
    "^\\d{3}-\\d{2}$",
    "^(red|green|blue)$",
    '^[^\\s"\\\\]{1,6}$',
    "^(a|b)+c?$",
    "^\\+?[0-9]{5,12}$",
    "[aeiou]",
)
NAMES = ("name", "id", "value", "kind", "size", "tags", "address", "point", "é", "a b", 'quo"te', "$x", "n1", "n2")


class RandomSchemas:
    """The same seed gives the same schema."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._defs: dict[str, Schema] = {}

    def schema(self) -> Schema:
        """A whole schema; its root is mostly an object."""
        root = self._object(3) if self._random.random() < 0.8 else self._any(3)
        if self._defs:
            root["$defs"] = self._defs
        if self._random.random() < 0.3:
            root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        return root

    def _any(self, depth: int) -> Schema:
        kinds = [self._string, self._number, self._integer, self._enum, self._const, self._simple]
        if depth:
            kinds += [self._object, self._object, self._array, self._tuple, self._any_of, self._ref, self._nullable]
        made = self._random.choice(kinds)(depth)
        if self._random.random() < 0.1:
            made["description"] = "a value"
        return made

    def _chance(self, part: float) -> bool:
        return self._random.random() < part

    def _object(self, depth: int) -> Schema:
        names = self._random.sample(NAMES, self._random.randint(1, 4))
        made: Schema = {"type": "object", "properties": {name: self._any(depth - 1) for name in names}}
        if self._chance(0.8):
            made["required"] = [name for name in names if self._chance(0.7)]
        if self._chance(0.8):
            made["additionalProperties"] = False
        elif self._chance(0.5):
            made["additionalProperties"] = self._any(0)
        return made

    def _array(self, depth: int) -> Schema:
        low = self._random.randint(0, 2)
        made: Schema = {"type": "array", "items": self._any(depth - 1), "maxItems": low + self._random.randint(0, 2)}
        if low:
            made["minItems"] = low
        return made

    def _tuple(self, depth: int) -> Schema:
        parts = [self._any(depth - 1) for _ in range(self._random.randint(1, 3))]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth - 1) for _ in range(self._random.randint(2, 3))]}

    def _ref(self, depth: int) -> Schema:
        if not self._defs or self._chance(0.3):
            made = self._any(depth - 1)
            name = f"d{len(self._defs)}"
            self._defs[name] = made
            if self._chance(0.2):  # it may hold itself
                own: Schema = {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/{name}"}]}
                self._defs[name] = {
                    "type": "object",
                    "properties": {"value": self._any(0), "next": own},
                    "required": ["value"],
                    "additionalProperties": False,
                }
        return {"$ref": f"#/$defs/{self._random.choice(sorted(self._defs))}"}

    def _nullable(self, depth: int) -> Schema:
        return {"type": [self._random.choice(("integer", "string", "boolean")), "null"]}

    def _string(self, depth: int) -> Schema:
        made: Schema = {"type": "string"}
        kind = self._random.random()
        if kind < 0.3:
            made["pattern"] = self._random.choice(PATTERNS)
        elif kind < 0.5:
            made["format"] = self._random.choice(FORMATS)
        else:
            low = self._random.randint(0, 5)
            made |= {"minLength": low, "maxLength": low + self._random.randint(0, 12)}
        return made

    def _number(self, depth: int) -> Schema:
        low = round(self._random.uniform(-1000, 1000), self._random.randint(0, 2))
        made: Schema = {"type": "number"}
        if self._chance(0.7):
            made["minimum" if self._chance(0.7) else "exclusiveMinimum"] = low
        if self._chance(0.7):
            made["maximum" if self._chance(0.7) else "exclusiveMaximum"] = low + self._random.randint(1, 500)
        return made

    def _integer(self, depth: int) -> Schema:
        low = self._random.randint(-1000, 1000)
        made: Schema = {"type": "integer", "minimum": low, "maximum": low + self._random.randint(0, 5000)}
        if self._chance(0.2):
            made["multipleOf"] = self._random.choice((2, 3, 5, 10))
        return made

    def _enum(self, depth: int) -> Schema:
        values = ["red", "green", "blü", 'qu"ote', "two words", 1, -2.5, True, None, "", [1, "a"], {"k": 0}]
        return {"enum": self._random.sample(values, self._random.randint(1, 5))}

    def _const(self, depth: int) -> Schema:
        return {"const": self._random.choice(["fixed", 7, False, None, {"a": [1, 2]}, "line\nbreak"])}

    def _simple(self, depth: int) -> Schema:
        return {"type": self._random.choice(("boolean", "null", "integer", "string"))}
