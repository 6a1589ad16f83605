"""Whatever the body is, it decodes to something that the engine's messages can carry, or is a 4xx."""

from __future__ import annotations

import asyncio
import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_mp import sampling_parameters
from lightllm_mp.actors.http import image_inputs, schema
from lightllm_mp.errors import InvalidRequest
from tests.actors.http.harness import site

NAMES = [*schema.RequestParameters.__struct_fields__, "unknown"]
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 1e-5]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20))
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
PARAMETERS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
BODIES = st.fixed_dictionaries({"inputs": VALUES | st.just("text")}, optional={"parameters": PARAMETERS | VALUES})


def serve(data: bytes) -> None:
    """What a handler does with a body, up to the lane."""
    body = schema.generate_body(data)
    parameters, unknown = schema.parameters(body.parameters)
    assert all(name.isascii() for name in unknown)
    if body.multimodal_params is not None:
        for image in schema.items(body.multimodal_params.images, "images"):
            image_inputs.item(image)
    rules = sampling_parameters.sampling(parameters)
    prompt = asyncio.run(schema.prompt(body.inputs, 0))
    message = (prompt, rules, sampling_parameters.output(parameters), sampling_parameters.choices(parameters))
    msgspec.msgpack.encode(message)
    assert 0 <= rules.seed < 2**63
    assert len(rules.bias_ids) == len(rules.bias_values)


@settings(max_examples=150, deadline=None)
@given(BODIES)
def test_structured_bodies(body):
    for ascii_only in (True, False):
        try:
            data = json.dumps(body, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
            serve(data)
        except InvalidRequest as error:
            error.message.encode()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0123456789.eE-ntrue', max_size=200).map(str.encode))
def test_arbitrary_bytes(data):
    for wrapped in (data, b'{"inputs":"a","parameters":' + data + b"}", b'{"inputs":"' + data + b'"}'):
        try:
            serve(wrapped)
        except InvalidRequest as error:
            error.message.encode()


def test_no_500_over_http():
    examples: list[bytes] = []

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.binary(max_size=50) | BODIES.map(lambda body: json.dumps(body).encode()))
    def collect(data):
        examples.append(data)

    async def main():
        async with site() as s:
            for data in examples:
                for path in ("/generate", "/generate_stream", "/", "/tokens"):
                    async with s.session.post(path, data=data) as response:
                        await response.read()
                        assert response.status in (200, 400), (path, data)
            await s.settled(lambda: s.frontend.live == 0)

    collect()
    asyncio.run(main())
