"""What users of the anthropic package do."""

from __future__ import annotations

import anthropic
import checks
from checks import BOUNDED, CALL, HELLO, KEY, LONG, MODEL, URL, WEATHER, raises
from pets import Pet

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=60)
GREEDY = {"model": MODEL, "max_tokens": 12, "extra_body": {"temperature": 0}}
TOOL = {
    "name": "weather",
    "description": "Tells the weather of a city",
    "input_schema": WEATHER["function"]["parameters"],
}


def model_message_whole_and_streamed():
    whole = client.messages.create(messages=HELLO, system="Be brief.", **GREEDY)
    assert whole.content[0].type == "text"
    assert whole.stop_reason in ("end_turn", "max_tokens")
    with client.messages.stream(messages=HELLO, system="Be brief.", **GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens > 0
    assert final.stop_reason == whole.stop_reason


def model_count():
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO, system="Be brief.")
    usage = client.messages.create(messages=HELLO, system="Be brief.", **GREEDY).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def model_stop_sequence():
    messages = [*HELLO, {"role": "assistant", "content": "Hello and"}]
    whole = client.messages.create(messages=messages, stop_sequences=[" "], **GREEDY)
    if whole.stop_reason == "stop_sequence":
        assert whole.stop_sequence == " "


def model_errors():
    wrong = anthropic.Anthropic(base_url=URL, api_key="wrong", max_retries=0)
    raises(anthropic.AuthenticationError, wrong.messages.create, messages=HELLO, **GREEDY)
    long = [{"role": "user", "content": LONG}]
    error = raises(anthropic.BadRequestError, client.messages.create, messages=long, **GREEDY)
    assert error.body["error"]["type"] == "invalid_request_error"
    assert error.body["error"]["message"].startswith("prompt is too long")
    bearer = anthropic.Anthropic(base_url=URL, auth_token=KEY, api_key=None)
    assert bearer.messages.create(messages=HELLO, **GREEDY).content


def model_required_tools():
    pets = {"name": "pet", "input_schema": Pet.model_json_schema()}
    for choice in ({"type": "any"}, {"type": "tool", "name": "pet"}):
        found = client.messages.create(
            model=MODEL,
            max_tokens=200,
            extra_body={"temperature": 0},
            messages=[{"role": "user", "content": BOUNDED}],
            tools=[pets],
            tool_choice=choice | {"disable_parallel_tool_use": True},
        )
        assert found.stop_reason == "tool_use"
        Pet.model_validate(found.content[-1].input)


def script_tool_round_trip():
    messages = [{"role": "user", "content": CALL}]
    asked = {"model": MODEL, "max_tokens": 100, "tools": [TOOL]}
    whole = client.messages.create(messages=messages, **asked)
    assert whole.stop_reason == "tool_use"
    use = whole.content[-1]
    assert (use.type, use.name, use.input) == ("tool_use", "weather", {"city": "Paris"})
    with client.messages.stream(messages=messages, **asked) as stream:
        assert stream.get_final_message().content[-1].input == use.input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    messages += [{"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    final = client.messages.create(messages=messages, **asked)
    assert final.content[-1].text == "The tool said: sunny"
    assert final.stop_reason == "end_turn"


def script_thinking():
    with client.messages.stream(
        model=MODEL, max_tokens=2000, messages=[{"role": "user", "content": "think"}], thinking={"type": "adaptive"}
    ) as stream:
        thought, said = stream.get_final_message().content
    assert (thought.type, thought.thinking) == ("thinking", "Hm, well")
    assert said.text == "So it is."


def script_retries_when_the_server_is_full():
    busy = {"model": MODEL, "max_tokens": 9}
    raises(anthropic.RateLimitError, client.messages.create, messages=[{"role": "user", "content": "busy"}], **busy)
    patient = client.with_options(max_retries=2)
    assert patient.messages.create(messages=[{"role": "user", "content": "busy again"}], **busy).content


def script_a_stream_that_is_left_ends():
    forever = [{"role": "user", "content": "forever"}]
    with client.messages.stream(model=MODEL, max_tokens=2000, messages=forever) as stream:
        for _ in range(3):
            next(iter(stream))
        assert checks.live_requests() == 1
    checks.wait_until_idle()


checks.main(globals())
