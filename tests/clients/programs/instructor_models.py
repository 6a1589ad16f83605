"""What users of instructor do: an answer is an object of a pydantic class."""

from __future__ import annotations

import checks
import instructor
import openai
from checks import BOUNDED, CALL, KEY, MODEL, V1
from pets import Pet
from pydantic import BaseModel


class Place(BaseModel):
    city: str


client = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0)


def model_objects():
    asked = {"model": MODEL, "response_model": Pet, "messages": [{"role": "user", "content": BOUNDED}]}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        able = instructor.from_openai(client, mode=mode)
        assert able.chat.completions.create(max_retries=0, max_tokens=200, temperature=0, **asked).animal


def script_by_a_tool():
    asked = {"model": MODEL, "response_model": Place, "messages": [{"role": "user", "content": CALL}]}
    tools = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    assert tools.chat.completions.create(**asked).city == "Paris"
    *_, last = tools.chat.completions.create_partial(**asked)
    assert last.city == "Paris"


checks.main(globals())
