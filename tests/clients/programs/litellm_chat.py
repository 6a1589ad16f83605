"""What users of litellm do: one call for every server, here as one of OpenAI's, of vLLM's, and of Anthropic's kind."""

from __future__ import annotations

import json

import checks
import litellm
from checks import BOUNDED, CALL, HELLO, KEY, LONG, URL, V1, WEATHER, raises
from pets import Pet

litellm.num_retries = 0
GREEDY = {"api_key": KEY, "temperature": 0, "max_tokens": 12, "timeout": 60}
KINDS = ({"model": "openai/any", "api_base": V1}, {"model": "hosted_vllm/any", "api_base": V1})


def model_chat_whole_and_streamed():
    for kind in KINDS:
        whole = litellm.completion(messages=HELLO, **kind, **GREEDY)
        text = whole.choices[0].message.content
        assert text
        chunks = list(
            litellm.completion(messages=HELLO, stream=True, stream_options={"include_usage": True}, **kind, **GREEDY)
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
        built = litellm.stream_chunk_builder(chunks)
        assert built.choices[0].message.content == text
        assert built.usage.completion_tokens == whole.usage.completion_tokens


def model_anthropic():
    whole = litellm.completion(model="anthropic/any", api_base=URL, messages=HELLO, **GREEDY)
    assert whole.choices[0].message.content


def model_text():
    found = litellm.text_completion(model="text-completion-openai/any", api_base=V1, prompt="One, two,", **GREEDY)
    assert found.choices[0].text


def model_errors():
    for kind in KINDS:
        raises(litellm.AuthenticationError, litellm.completion, messages=HELLO, **kind, **GREEDY | {"api_key": "wrong"})
        long = [{"role": "user", "content": LONG}]
        raises(litellm.ContextWindowExceededError, litellm.completion, messages=long, **kind, **GREEDY)


def model_structured_output():
    for kind in KINDS:
        found = litellm.completion(
            messages=[{"role": "user", "content": BOUNDED}], response_format=Pet, **kind, **GREEDY | {"max_tokens": 200}
        )
        Pet.model_validate_json(found.choices[0].message.content)


def script_tool_round_trip():
    for kind in (*KINDS, {"model": "anthropic/any", "api_base": URL}):
        messages = [{"role": "user", "content": CALL}]
        asked = {"tools": [WEATHER], **kind, **GREEDY, "max_tokens": 100}
        message = litellm.completion(messages=messages, **asked).choices[0].message
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        final = litellm.completion(messages=messages, **asked)
        assert final.choices[0].message.content == "The tool said: sunny"


def script_reasoning():
    found = litellm.completion(
        messages=[{"role": "user", "content": "think"}], **KINDS[1], **GREEDY | {"max_tokens": 99}
    )
    assert found.choices[0].message.reasoning_content == "Hm, well"


def script_retries_when_the_server_is_full():
    busy = [{"role": "user", "content": "busy"}]
    raises(litellm.RateLimitError, litellm.completion, messages=busy, max_retries=0, **KINDS[0], **GREEDY)
    again = [{"role": "user", "content": "busy again"}]
    assert litellm.completion(messages=again, num_retries=2, **KINDS[0], **GREEDY).choices[0].message.content


checks.main(globals())
