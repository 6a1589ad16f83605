"""Fields that constrain an answer, of OpenAI, vLLM and SGLang, as one `Guide`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.actors.front.json_decoding import decode
from lightllm_mp.errors import InvalidRequest
from lightllm_mp.messages import Guide
from lightllm_mp.sampling_parameters import GuideText

NULL = Raw(b"null")
Choices = Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(min_length=1, max_length=1024)]


class TextFormat(Struct, frozen=True, tag="text", tag_field="type", forbid_unknown_fields=True):
    """Anything."""


class JsonObjectFormat(Struct, frozen=True, tag="json_object", tag_field="type", forbid_unknown_fields=True):
    """Any JSON object."""


class NamedSchema(Struct, frozen=True, forbid_unknown_fields=True):
    schema: Raw = NULL
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    """The answer always follows the schema."""


class JsonSchemaFormat(Struct, frozen=True, tag="json_schema", tag_field="type", forbid_unknown_fields=True):
    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's field; one of its members is given."""

    json: Raw = NULL
    regex: GuideText | None = None
    choice: Choices | None = None
    grammar: GuideText | None = None
    json_object: bool | None = None


class GuideFields(Struct, frozen=True, kw_only=True):
    """The fields of a body; at most one of them is given."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Raw = NULL
    guided_regex: GuideText | None = None
    guided_choice: Choices | None = None
    guided_grammar: GuideText | None = None
    json_schema: Raw = NULL
    """This one and the next are SGLang's."""
    regex: GuideText | None = None
    ebnf: GuideText | None = None

    @property
    def guide(self) -> Guide | None:
        """Raises InvalidRequest."""
        found = [(name, guide) for name, guide in self._guides() if guide is not None]
        if len(found) > 1:
            names = ", ".join(name for name, _ in found)
            raise InvalidRequest(f"an answer has one constraint, not {names}", param=found[1][0])
        return found[0][1] if found else None

    def _guides(self) -> list[tuple[str, Guide | None]]:
        outputs = self.structured_outputs or StructuredOutputs()
        return [
            ("response_format", _formatted(self.response_format)),
            ("structured_outputs", schema_guide(outputs.json, "structured_outputs")),
            ("structured_outputs", _guide("regex", outputs.regex)),
            ("structured_outputs", _guide("choice", outputs.choice)),
            ("structured_outputs", _guide("gbnf", outputs.grammar)),
            ("structured_outputs", Guide("json_object") if outputs.json_object else None),
            ("guided_json", schema_guide(self.guided_json, "guided_json")),
            ("guided_regex", _guide("regex", self.guided_regex)),
            ("guided_choice", _guide("choice", self.guided_choice)),
            ("guided_grammar", _guide("gbnf", self.guided_grammar)),
            ("json_schema", schema_guide(self.json_schema, "json_schema")),
            ("regex", _guide("regex", self.regex)),
            ("ebnf", _guide("gbnf", self.ebnf)),
        ]


_text = msgspec.json.Decoder(GuideText)
_any = msgspec.json.Decoder(Any)


def _formatted(given: ResponseFormat | None) -> Guide | None:
    match given:
        case JsonObjectFormat():
            return Guide("json_object")
        case JsonSchemaFormat(named):
            if named.schema == NULL:
                return Guide("json_object")
            return schema_guide(named.schema, "response_format")
    return None


def schema_guide(raw: Raw, param: str) -> Guide | None:
    """`raw`: a schema, or a text that holds one."""
    if raw == NULL:
        return None
    text = bytes(raw)
    if text[:1] == b'"':
        source = decode(_text, raw, param)
        try:
            _any.decode(source)
        except (msgspec.DecodeError, RecursionError):
            raise InvalidRequest(f"{param}: this text is not the JSON of a schema", param=param) from None
        return Guide("json_schema", source)
    decode(_any, raw, param)
    return Guide("json_schema", text.decode())


def _guide(kind: str, source: str | list[str] | None) -> Guide | None:
    if source is None:
        return None
    return Guide(kind, source if isinstance(source, str) else msgspec.json.encode(source).decode())
