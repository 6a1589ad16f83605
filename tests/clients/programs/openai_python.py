"""What users of the openai package do."""

from __future__ import annotations

import asyncio
import json

import checks
import openai
from checks import BOUNDED, CALL, HELLO, KEY, LONG, MODEL, V1, WEATHER, raises
from pets import Pet

client = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0, timeout=60)
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 12}


def model_models():
    names = [model.id for model in client.models.list()]
    assert names == [client.models.retrieve(names[0]).id]
    raises(openai.NotFoundError, client.models.retrieve, "gpt-4")


def model_chat_whole_and_streamed():
    whole = client.chat.completions.create(messages=HELLO, **GREEDY)
    choice = whole.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    text, last = "", None
    with client.chat.completions.create(
        messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY
    ) as chunks:
        for chunk in chunks:
            last = chunk
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == choice.message.content
    assert last.usage.completion_tokens == usage.completion_tokens
    assert last.usage.prompt_tokens_details.cached_tokens > 0


def model_stream_helper():
    text, final = "", None
    with client.chat.completions.stream(messages=HELLO, **GREEDY) as stream:
        for event in stream:
            if event.type == "content.delta":
                text += event.delta
            if event.type == "chunk":
                final = event.snapshot.choices[0]
    assert final.message.content == text
    assert final.finish_reason in ("stop", "length")


def model_several_choices_with_logprobs():
    found = client.chat.completions.create(
        messages=HELLO, model=MODEL, n=2, seed=1, max_tokens=4, logprobs=True, top_logprobs=2
    )
    assert len(found.choices) == 2
    for choice in found.choices:
        tokens = choice.logprobs.content
        assert len(tokens) == 4
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


def model_completions():
    first, second = client.completions.create(prompt=["One, two,", "Red, green,"], logprobs=1, **GREEDY).choices
    assert (first.index, second.index) == (0, 1)
    assert len(first.logprobs.tokens) == 12
    streamed = client.completions.create(prompt="One, two,", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in streamed) == first.text
    echo = client.completions.create(prompt="One, two,", echo=True, logprobs=0, model=MODEL, max_tokens=1)
    assert echo.choices[0].text.startswith("One, two,")
    assert echo.choices[0].logprobs.token_logprobs[0] is None


def model_errors():
    error = raises(openai.AuthenticationError, openai.OpenAI(base_url=V1, api_key="wrong").models.list)
    assert error.status_code == 401
    error = raises(
        openai.BadRequestError,
        client.chat.completions.create,
        model=MODEL,
        messages=[{"role": "user", "content": LONG}],
    )
    assert error.code == "context_length_exceeded"
    assert error.param == "messages"
    assert error.request_id
    error = raises(openai.BadRequestError, client.chat.completions.create, messages=HELLO, model=MODEL, temperature=-1)
    assert error.param == "temperature"
    error = raises(
        openai.BadRequestError, client.chat.completions.create, messages=HELLO, model=MODEL, extra_body={"bogus": 1}
    )
    assert error.param == "bogus"
    raises(openai.NotFoundError, client.images.generate, prompt="a cat")


def model_async():
    async def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"What is {number}?"}]
        found = await many.chat.completions.create(messages=messages, **GREEDY)
        return found.choices[0].message.content

    async def main() -> list[str]:
        async with many:
            return await asyncio.gather(*map(ask, range(4)))

    many = openai.AsyncOpenAI(base_url=V1, api_key=KEY)
    assert all(asyncio.run(main()))


def model_parsed_answers_and_required_tools():
    asked = {"messages": [{"role": "user", "content": BOUNDED}], **GREEDY | {"max_tokens": 200}}
    whole = client.chat.completions.parse(response_format=Pet, **asked)
    assert isinstance(whole.choices[0].message.parsed, Pet)
    with client.chat.completions.stream(response_format=Pet, **asked) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Pet)
    tools = [openai.pydantic_function_tool(Pet)]
    for choice in ("required", {"type": "function", "function": {"name": "Pet"}}):
        called = client.chat.completions.parse(tools=tools, tool_choice=choice, parallel_tool_calls=False, **asked)
        (call,) = called.choices[0].message.tool_calls
        assert isinstance(call.function.parsed_arguments, Pet)


def model_responses():
    asked = {"model": MODEL, "input": "Say hello to me.", "temperature": 0, "max_output_tokens": 12}
    whole = client.responses.create(**asked)
    assert whole.output_text
    text, final = "", None
    with client.responses.stream(**asked) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type in ("response.completed", "response.incomplete"):
                final = event.response
    assert text == final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens
    second = client.responses.create(previous_response_id=whole.id, **asked | {"input": "And again."})
    assert second.usage.input_tokens > whole.usage.total_tokens
    assert client.responses.retrieve(whole.id).output_text == whole.output_text
    client.responses.delete(whole.id)
    raises(openai.NotFoundError, client.responses.retrieve, whole.id)
    error = raises(openai.BadRequestError, client.responses.create, model=MODEL, input=LONG)
    assert error.code == "context_length_exceeded"


def script_responses_with_tools():
    tool = {"type": "function", "strict": None, **WEATHER["function"]}
    first = client.responses.create(model=MODEL, input=CALL, tools=[tool])
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris"})
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    stored = client.responses.create(model=MODEL, input=[output], previous_response_id=first.id, tools=[tool])
    assert stored.output_text == "The tool said: sunny"
    history = [{"role": "user", "content": CALL}, *first.output, output]
    stateless = client.responses.create(model=MODEL, input=history, tools=[tool], store=False)
    assert stateless.output_text == stored.output_text


def script_tool_round_trip():
    messages = [{"role": "user", "content": CALL}]
    whole = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    choice = whole.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    with client.chat.completions.stream(model=MODEL, messages=messages, tools=[WEATHER]) as stream:
        stream.until_done()
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    final = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert final.choices[0].message.content == "The tool said: sunny"
    assert final.choices[0].finish_reason == "stop"


def script_reasoning():
    found = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "think"}])
    assert found.choices[0].message.reasoning_content == "Hm, well"
    assert found.choices[0].message.content == "So it is."
    assert found.usage.completion_tokens_details.reasoning_tokens > 0


def script_retries_when_the_server_is_full():
    busy = [{"role": "user", "content": "busy"}]
    error = raises(openai.RateLimitError, client.chat.completions.create, model=MODEL, messages=busy)
    assert float(error.response.headers["retry-after"]) >= 1
    patient = client.with_options(max_retries=2)
    found = patient.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "busy again"}])
    assert found.choices[0].message.content


def script_timeout():
    slow = client.with_options(timeout=0.3)
    forever = [{"role": "user", "content": "forever"}]
    raises(openai.APITimeoutError, slow.chat.completions.create, model=MODEL, messages=forever)
    checks.wait_until_idle()


def script_a_stream_that_is_left_ends():
    forever = [{"role": "user", "content": "forever"}]
    stream = client.chat.completions.create(model=MODEL, messages=forever, stream=True)
    for _ in range(3):
        next(stream)
    assert checks.live_requests() == 1
    stream.close()
    checks.wait_until_idle()


checks.main(globals())
