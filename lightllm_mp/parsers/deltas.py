"""The pieces of an answer."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct


class Content(Struct, frozen=True, gc=False, tag=True):
    """A piece of the text for the user."""

    text: str


class Reasoning(Struct, frozen=True, gc=False, tag=True):
    """A piece of the model's reasoning before its answer."""

    text: str


class ToolCallBegin(Struct, frozen=True, gc=False, tag=True):
    """A tool call begins. `index`: 0, 1, ... within the answer."""

    index: int
    name: str
    id: str


class ToolArguments(Struct, frozen=True, gc=False, tag=True):
    """A piece of the JSON text of the arguments of call `index`."""

    index: int
    text: str


Delta: TypeAlias = Content | Reasoning | ToolCallBegin | ToolArguments
