"""What users of langchain-openai do."""

from __future__ import annotations

import checks
import openai
from checks import BOUNDED, CALL, KEY, LONG, MODEL, V1, raises
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pets import Pet

chat = ChatOpenAI(base_url=V1, api_key=KEY, model=MODEL, temperature=0, max_tokens=12, max_retries=0)
TURNS = [SystemMessage("Be brief."), HumanMessage("Say hello to me.")]


def model_chat_whole_and_streamed():
    whole = chat.invoke(TURNS)
    assert whole.content
    chunks = list(chat.stream(TURNS, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]
    assert total.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]
    both = chat.batch([TURNS, "What is a cat?"])
    assert both[0].content == whole.content


def model_completion():
    text = OpenAI(base_url=V1, api_key=KEY, model=MODEL, temperature=0, max_tokens=8)
    assert "".join(text.stream("One, two,")) == text.invoke("One, two,")


def model_errors():
    wrong = ChatOpenAI(base_url=V1, api_key="wrong", model=MODEL, max_retries=0)
    raises(openai.AuthenticationError, wrong.invoke, TURNS)
    raises(openai.BadRequestError, chat.invoke, LONG)


def model_structured_output():
    long = ChatOpenAI(base_url=V1, api_key=KEY, model=MODEL, temperature=0, max_tokens=200)
    for method in ("json_schema", "function_calling"):
        assert isinstance(long.with_structured_output(Pet, method=method).invoke(BOUNDED), Pet)


def model_responses():
    able = ChatOpenAI(base_url=V1, api_key=KEY, model=MODEL, temperature=0, max_tokens=12, use_responses_api=True)
    whole = able.invoke(TURNS)
    assert "".join(chunk.text for chunk in able.stream(TURNS)) == whole.text != ""


def script_tool_round_trip():
    @tool
    def weather(city: str) -> str:
        """Tells the weather of a city."""
        return f"sunny in {city}"

    able = ChatOpenAI(base_url=V1, api_key=KEY, model=MODEL, max_retries=0).bind_tools([weather])
    turns = [HumanMessage(CALL)]
    called = able.invoke(turns)
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Paris"})
    total = None
    for chunk in able.stream(turns):
        total = chunk if total is None else total + chunk
    assert total.tool_calls[0]["args"] == call["args"]
    turns += [called, ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])]
    assert able.invoke(turns).content == "The tool said: sunny in Paris"


def script_retries_when_the_server_is_full():
    raises(openai.RateLimitError, chat.invoke, "busy")
    patient = ChatOpenAI(base_url=V1, api_key=KEY, model=MODEL, max_retries=2)
    assert patient.invoke("busy again").content


checks.main(globals())
