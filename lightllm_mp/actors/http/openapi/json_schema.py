"""JSON schemas of structs, as the components of an OpenAPI document.

msgspec's own generator knows no `Raw`: here a field holds what `deferred` says.
"""

from __future__ import annotations

import inspect
from typing import Any

from msgspec import Raw, Struct
from msgspec import inspect as shapes

from lightllm_mp.actors.http.openapi.deferred import REFINED, deferred

Json = dict[str, Any]
NAMES = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
}
SIMPLE = {
    shapes.NoneType: {"type": "null"},
    shapes.BoolType: {"type": "boolean"},
    shapes.IntType: {"type": "integer"},
    shapes.FloatType: {"type": "number"},
    shapes.StrType: {"type": "string"},
    shapes.BytesType: {"type": "string", "contentEncoding": "base64"},
    shapes.AnyType: {},
    shapes.RawType: {},
}


class Components:
    """Schemas of the requested structs and of those within them."""

    def __init__(self) -> None:
        self.schemas: dict[str, Json] = {}

    def of(self, kind: Any) -> Any:
        """The schema of a type, or a schema with types in it."""
        if isinstance(kind, dict):
            return {name: self.of(value) for name, value in kind.items()}
        if isinstance(kind, list):
            return [self.of(value) for value in kind]
        return kind if isinstance(kind, str) else self._of(shapes.type_info(kind))

    def _of(self, shape: shapes.Type) -> Json:
        match shape:
            case shapes.Metadata(type=inner):
                return self._of(inner)
            case shapes.LiteralType(values):
                return {"enum": list(values)}
            case shapes.UnionType(types):
                return {"anyOf": [self._of(one) for one in types]}
            case shapes.ListType(item) | shapes.VarTupleType(item):
                return {"type": "array", "items": self._of(item)} | _bounds(shape, "Items")
            case shapes.TupleType(items):
                each = [self._of(item) for item in items]
                return {"type": "array", "prefixItems": each, "minItems": len(each), "maxItems": len(each)}
            case shapes.DictType(key, value):
                found = {"type": "object", "additionalProperties": self._of(value)} | _bounds(shape, "Properties")
                return found | _keys(key)
            case shapes.StructType(struct):
                return self._struct(struct, shape)
        return SIMPLE[type(shape)] | _bounds(shape, "Length")

    def _struct(self, struct: type[Struct], shape: shapes.StructType) -> Json:
        name = struct.__qualname__.replace(".", "_")
        ref = {"$ref": f"#/components/schemas/{name}"}
        if name in self.schemas:
            return ref
        found: Json = {"type": "object", "title": name}
        self.schemas[name] = found
        if struct.__doc__:
            found["description"] = inspect.cleandoc(struct.__doc__)
        held, properties, required = deferred(struct), dict[str, Any](), list[str]()
        if shape.tag_field is not None:
            properties[shape.tag_field] = {"const": shape.tag}
            required.append(shape.tag_field)
        for field in shape.fields:
            schema = self.of(held[field.name]) if field.name in held else self._of(field.type)
            if field.required:
                required.append(field.encode_name)
            elif field.default == Raw(b"null"):
                schema = {"anyOf": [schema, {"type": "null"}]}
            properties[field.encode_name] = schema
        found |= {"properties": properties, "required": required}
        if shape.forbid_unknown_fields:
            found["additionalProperties"] = False
        found |= self.of(REFINED.get(struct, {}))
        return ref


def _bounds(shape: Any, of: str) -> Json:
    found = {name: value for field, name in NAMES.items() if (value := getattr(shape, field, None)) is not None}
    for field, name in (("min_length", f"min{of}"), ("max_length", f"max{of}")):
        if (value := getattr(shape, field, None)) is not None:
            found[name] = value
    return found


def _keys(key: shapes.Type) -> Json:
    match key:
        case shapes.LiteralType(values):
            return {"propertyNames": {"enum": list(values)}}
        case shapes.IntType():
            return {"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"}}
        case shapes.StrType(max_length=int(most)):
            return {"propertyNames": {"maxLength": most}}
    return {}
