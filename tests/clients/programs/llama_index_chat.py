"""What users of llama-index-llms-openai-like do."""

from __future__ import annotations

import checks
import openai
from checks import BOUNDED, CALL, KEY, LONG, MODEL, V1, raises
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pets import Pet

OPTIONS = {"model": MODEL, "api_base": V1, "temperature": 0, "max_tokens": 12, "max_retries": 0, "timeout": 60}
chat = OpenAILike(api_key=KEY, is_chat_model=True, is_function_calling_model=True, **OPTIONS)
TURNS = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Say hello to me.")]


def model_chat_whole_and_streamed():
    whole = chat.chat(TURNS)
    assert whole.message.content
    *_, last = chat.stream_chat(TURNS)
    assert last.message.content == whole.message.content
    assert whole.raw.usage.completion_tokens > 0


def model_completion():
    text = OpenAILike(api_key=KEY, is_chat_model=False, **OPTIONS)
    whole = text.complete("One, two,")
    *_, last = text.stream_complete("One, two,")
    assert whole.text == last.text != ""


def model_errors():
    wrong = OpenAILike(api_key="wrong", is_chat_model=True, **OPTIONS)
    raises(openai.AuthenticationError, wrong.chat, TURNS)
    raises(openai.BadRequestError, chat.chat, [ChatMessage(role="user", content=LONG)])


def model_structured_output():
    long = OpenAILike(api_key=KEY, is_chat_model=True, is_function_calling_model=True, **OPTIONS | {"max_tokens": 200})
    assert isinstance(long.as_structured_llm(Pet).complete(BOUNDED).raw, Pet)


def script_tool_round_trip():
    def weather(city: str) -> str:
        """Tells the weather of a city."""
        return f"sunny in {city}"

    tools = [FunctionTool.from_defaults(weather)]
    able = OpenAILike(api_key=KEY, is_chat_model=True, is_function_calling_model=True, **OPTIONS | {"max_tokens": 100})
    asked = ChatMessage(role="user", content=CALL)
    found = able.chat_with_tools(tools, chat_history=[asked])
    (call,) = able.get_tool_calls_from_response(found)
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Paris"})
    result = ChatMessage(role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id})
    assert able.chat([asked, found.message, result]).message.content == "The tool said: sunny"


checks.main(globals())
