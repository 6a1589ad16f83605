"""What users of pydantic-ai do: an agent with a tool."""

from __future__ import annotations

import checks
from checks import BOUNDED, CALL, KEY, MODEL, V1
from pets import Pet
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=V1, api_key=KEY))


def model_run():
    found = Agent(model, model_settings={"max_tokens": 12, "temperature": 0}).run_sync("Say hello to me.")
    assert found.output
    assert found.usage.output_tokens > 0


def model_structured_output():
    settings = {"max_tokens": 200, "temperature": 0, "parallel_tool_calls": False}
    for kind in (ToolOutput, NativeOutput):
        agent = Agent(model, output_type=kind(Pet), retries=0, model_settings=settings)
        assert isinstance(agent.run_sync(BOUNDED).output, Pet)


def script_tool_round_trip():
    agent = Agent(model)
    asked = []

    @agent.tool_plain
    def weather(city: str) -> str:
        """Tells the weather of a city."""
        asked.append(city)
        return "sunny"

    assert agent.run_sync(CALL).output == "The tool said: sunny"
    assert asked == ["Paris"]


checks.main(globals())
