"""LightLLM's native API: shapes of answers and streams, parameters of both eras."""

from __future__ import annotations

import json
import struct

import pytest

from lightllm_mp.messages import Generate
from tests.actors.http.harness import Engine, Site, parse, run, word

BODY = {"inputs": "San Francisco is a", "parameters": {"max_new_tokens": 4}}


def expected(n: int) -> str:
    return "".join(word(i)[1] for i in range(n))


def last_request(site: Site) -> Generate:
    return next(m for m in reversed(site.engine.tokenizer) if isinstance(m, Generate))


def test_whole_answer():
    async def body(s: Site):
        status, answer, headers = await s.post("/generate", BODY)
        assert status == 200
        assert headers["Content-Type"] == "application/json"
        assert answer.pop("generated_text") == [expected(4)]
        assert answer == {"count_output_tokens": 4, "finish_reason": "length", "prompt_tokens": 7}
        assert s.frontend.live == 0

    run(body)


def test_defaults_of_2024():
    async def body(s: Site):
        status, answer, _ = await s.post("/generate", {"inputs": "a", "parameters": {}})
        assert (status, answer["count_output_tokens"]) == (200, 16)
        request = last_request(s)
        assert request.terms.sampling.temperature == 0.0
        assert request.terms.sampling.max_new_tokens == 16
        assert request.terms.output.skip_special_tokens is None, "the server decides"
        assert request.terms.n == 1
        assert request.terms.reuse_prompt
        assert request.add_special_tokens

    run(body)


def test_parameters_may_be_missing_or_null():
    async def body(s: Site):
        assert (await s.post("/generate", {"inputs": "a"}))[0] == 200
        assert (await s.post("/generate", {"inputs": "a", "parameters": None, "multimodal_params": None}))[0] == 200
        status, _, headers = await s.post("/generate", {"inputs": "a", "parameters": {"stop_sequences": None}})
        assert status == 200
        assert "X-LightLLM-Warning" not in headers

    run(body)


def test_stop_reason_and_details():
    async def body(s: Site):
        _, answer, _ = await s.post("/generate", {"inputs": "a", "parameters": {"return_details": True}})
        assert answer["finish_reason"] == "stop"
        assert answer["cached_tokens"] == 3
        assert answer["tokens"][1] == {
            "id": 101,
            "logprob": -0.5,
            "special": False,
            "count_output_tokens": 2,
            "prompt_tokens": 7,
            "text": " 1é",
        }
        assert len(answer["tokens"]) == answer["count_output_tokens"] == 3

    run(body, engine=Engine(stop_after=3))


def test_several_answers_are_lists():
    async def body(s: Site):
        parameters = {"best_of": 3, "n": 3, "do_sample": True, "max_new_tokens": 2, "return_details": True, "seed": 5}
        _, answer, _ = await s.post("/generate", {"inputs": "a", "parameters": parameters})
        assert answer["generated_text"] == [expected(2)] * 3
        assert answer["count_output_tokens"] == [2, 2, 2]
        assert answer["finish_reason"] == ["length"] * 3
        assert answer["prompt_tokens"] == 7
        assert [len(tokens) for tokens in answer["tokens"]] == [2, 2, 2]
        assert last_request(s).terms.n == 3

    run(body)


def test_logprobs_and_prompt_logprobs():
    async def body(s: Site):
        parameters = {"logprobs": 2, "prompt_logprobs": 1, "max_new_tokens": 1}
        _, answer, _ = await s.post("/generate", {"inputs": "a", "parameters": parameters})
        assert answer["logprobs"] == [
            {
                "100": {"logprob": -0.5, "rank": 2, "decoded_token": " 0é"},
                "1": {"logprob": -0.25, "rank": 1, "decoded_token": "one"},
            }
        ]
        assert answer["prompt_logprobs"] == [
            None,
            {"5": {"logprob": -1.0, "rank": 1, "decoded_token": None}},
            {
                "6": {"logprob": -2.0, "rank": None, "decoded_token": None},
                "9": {"logprob": -0.25, "rank": 1, "decoded_token": None},
            },
        ]

    run(body)


def test_stream_is_one_event_per_token():
    async def body(s: Site):
        async with s.session.post("/generate_stream", json=BODY) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            data = await response.read()
        events = parse(data)
        assert data.startswith(b'id:1\ndata:{"token":{"id":100,"text":" 0')
        assert b"[DONE]" not in data
        assert events[0] == {
            "token": {
                "id": 100,
                "text": " 0é",
                "logprob": -0.5,
                "special": False,
                "count_output_tokens": 1,
                "prompt_tokens": 7,
            },
            "finished": False,
            "finish_reason": None,
            "generated_text": None,
            "details": None,
        }
        assert [e["finished"] for e in events] == [False, False, False, True]
        assert events[-1]["finish_reason"] == "length"
        assert "".join(e["token"]["text"] for e in events) == expected(4)
        await s.settled(lambda: s.frontend.live == 0)

    run(body)


def test_clients_of_lightllm_find_nothing_but_data_between_blank_lines():
    """LazyLLM splits at blank lines; what follows `data:` must be JSON. Its library accepts everything."""

    async def body(s: Site):
        for accept in ("*/*", "application/json"):
            async with s.session.post("/generate_stream", json=BODY, headers={"Accept": accept}) as response:
                name, data = response.headers["X-Request-Id"], await response.read()
            *pieces, end = data.split(b"\n\n")
            assert end == b""
            texts = [json.loads(piece.removeprefix(b"data:"))["token"]["text"] for piece in pieces]
            assert "".join(texts) == expected(4)
            async with s.session.get(f"/requests/{name}", headers={"Last-Event-ID": "2"}) as response:
                assert await response.read() == b"".join(piece + b"\n\n" for piece in pieces[2:])

    run(body)


def test_every_event_is_its_own_chunk():
    async def body(s: Site):
        request = b'{"inputs":"a","parameters":{"max_new_tokens":5}}'
        head = b"POST /generate_stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
            request
        )
        _, _, chunked = (await s.raw(head + request)).partition(b"\r\n\r\n")
        chunks = []
        while chunked:
            size, _, rest = chunked.partition(b"\r\n")
            chunks.append(rest[: int(size, 16)])
            chunked = rest[int(size, 16) + 2 :]
        assert chunks.pop() == b""
        assert len(chunks) == 5
        assert all(c.startswith(b"data:{") and c.endswith(b"}\n\n") for c in chunks)

    run(body)


def test_a_stream_warns_of_what_it_has_no_place_for():
    async def body(s: Site):
        parameters = {"prompt_logprobs": 0, "max_new_tokens": 1, "odd": 1}
        async with s.session.post("/generate_stream", json={"inputs": "a", "parameters": parameters}) as response:
            assert response.headers["X-LightLLM-Warning"] == "ignored parameters: odd, prompt_logprobs"
        assert last_request(s).terms.sampling.prompt_logprobs == -1

    run(body)


def test_root_serves_both():
    async def body(s: Site):
        assert (await s.post("/", BODY))[1]["generated_text"] == [expected(4)]
        assert len(await s.events(BODY | {"stream": True}, "/")) == 4

    run(body)


def test_stream_has_one_answer():
    async def body(s: Site):
        status, answer, _ = await s.post("/generate_stream", {"inputs": "a", "parameters": {"best_of": 2}})
        assert status == 400
        assert answer["error"]["param"] == "n"

    run(body)


def test_ids_as_inputs():
    async def body(s: Site):
        await s.post("/generate", {"inputs": [1, 2, 999], "parameters": {}})
        assert last_request(s).ids == struct.pack("<3i", 1, 2, 999)
        assert last_request(s).text is None
        for bad in ([1000], [-1], [], [2**31], [1.5], ["a"]):
            assert (await s.post("/generate", {"inputs": bad}))[0] == 400

    run(body)


def test_sampling_reaches_the_engine():
    async def body(s: Site):
        parameters = {
            "do_sample": True,
            "temperature": 1,
            "top_p": 1,
            "top_k": -1,
            "presence_penalty": -0.5,
            "frequency_penalty": 1,
            "repetition_penalty": 1.5,
            "input_penalty": True,
            "ignore_eos": True,
            "max_new_tokens": 8,
            "min_new_tokens": 2,
            "seed": 2**63 - 1,
            "stop_sequences": ["\n\n", [13], ""],
            "logit_bias": {"5": -2.5, "6": 1},
            "skip_special_tokens": False,
            "add_special_tokens": False,
            "add_spaces_between_special_tokens": False,
            "print_eos_token": True,
            "disable_prompt_cache": True,
            "speculate": False,
            "priority": 3,
            "min_p": 0.5,
        }
        assert (await s.post("/generate", {"inputs": "a", "parameters": parameters}))[0] == 200
        r = last_request(s)
        assert r.terms.sampling.temperature == 1.0
        assert (r.terms.sampling.top_p, r.terms.sampling.top_k, r.terms.sampling.min_p) == (1.0, 0, 0.5)
        assert (r.terms.sampling.presence_penalty, r.terms.sampling.frequency_penalty) == (-0.5, 1.0)
        assert (r.terms.sampling.repetition_penalty, r.terms.sampling.penalize_prompt) == (1.5, True)
        assert (r.terms.sampling.ignore_eos, r.terms.sampling.max_new_tokens, r.terms.sampling.min_new_tokens) == (
            True,
            8,
            2,
        )
        assert r.terms.sampling.seed == 2**63 - 1
        assert r.terms.output.stop == ("\n\n",)
        assert r.terms.sampling.stop_ids == struct.pack("<i", 13)
        assert r.terms.sampling.bias_ids == struct.pack("<2i", 5, 6)
        assert r.terms.sampling.bias_values == struct.pack("<2f", -2.5, 1)
        assert r.terms.output.skip_special_tokens is False
        assert not r.terms.output.spaces_between_special_tokens
        assert r.terms.output.print_eos_token
        assert (r.add_special_tokens, r.terms.reuse_prompt, r.terms.priority) == (False, False, 3)
        assert not r.terms.speculate

    run(body)


def test_greedy_unless_do_sample():
    async def body(s: Site):
        for parameters in ({"temperature": 0.7, "top_p": 0.5, "top_k": 3}, {"do_sample": True, "temperature": 0}):
            await s.post("/generate", {"inputs": "a", "parameters": parameters})
            rules = last_request(s).terms.sampling
            assert (rules.temperature, rules.top_p, rules.top_k) == (0.0, 1.0, 0)

    run(body)


def test_allowed_tokens_are_a_mask_of_their_own():
    async def body(s: Site):
        parameters = {"allowed_token_ids": [4, 5, 4], "logit_bias": {"5": 2, "6": 3}}
        await s.post("/generate", {"inputs": "a", "parameters": parameters})
        rules = last_request(s).terms.sampling
        assert struct.unpack("<2i", rules.allowed_ids) == (4, 5)
        assert struct.unpack("<2i", rules.bias_ids) == (5, 6)
        assert struct.unpack("<2f", rules.bias_values) == (2.0, 3.0)

    run(body)


def test_seeds_differ_unless_given():
    async def body(s: Site):
        seeds = set()
        for seed in (None, -1, None):
            await s.post("/generate", {"inputs": "a", "parameters": {"seed": seed}})
            seeds.add(last_request(s).terms.sampling.seed)
        assert len(seeds) == 3

    run(body)


def test_unknown_parameters_are_ignored_and_named():
    async def body(s: Site):
        parameters = {"max_new_tokens": 1, "image_max_patch_num": -1, "evil\r\nX-Header: 1": 2, "é": 0}
        status, _, headers = await s.post("/generate", {"inputs": "a", "parameters": parameters, "more": [1]})
        assert status == 200
        assert headers["X-LightLLM-Warning"] == "ignored parameters: image_max_patch_num, ?, ?"
        assert "X-Header" not in headers

    run(body)


BAD = [
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"n": 65}, "n"),
    ({"n": 2, "best_of": 3}, "n"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"max_new_tokens": "5"}, "max_new_tokens"),
    ({"max_new_tokens": 10**30}, "max_new_tokens"),
    ({"max_new_tokens": True}, "max_new_tokens"),
    ({"min_new_tokens": 17}, "min_new_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
    ({"stop_sequences": ["a" * 1025]}, "stop_sequences"),
    ({"stop_sequences": ["é" * 1000]}, "stop_sequences"),
    ({"stop_sequences": [[1, 2]]}, "stop_sequences"),
    ({"stop_sequences": [[]]}, "stop_sequences"),
    ({"stop_sequences": [[1000]]}, "stop_sequences"),
    ({"logprobs": 21}, "logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1000": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"allowed_token_ids": list(range(257))}, "allowed_token_ids"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"guided_json": {"type": "object"}, "regular_constraint": "a+"}, "regular_constraint"),
    ({"guided_json": {"enum": ["é" * 40_000]}}, "guided_json"),
    ({"regular_constraint": "é" * 40_000}, "regular_constraint"),
    ({"guided_grammar": "a" * 65_537}, "guided_grammar"),
    ({"guided_grammar": 5}, "guided_grammar"),
]


def test_bad_parameters_are_named():
    async def body(s: Site):
        for parameters, param in BAD:
            status, answer, _ = await s.post("/generate", {"inputs": "a", "parameters": parameters})
            assert status == 400, parameters
            assert answer["error"]["param"] == param, (parameters, answer)
            assert answer["error"]["type"] == "invalid_request_error"
            assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert not s.engine.tokenizer

    run(body)


def test_images_are_refused_and_empty_lists_are_not():
    async def body(s: Site):
        empty = {"images": [], "audios": []}
        assert (await s.post("/generate", BODY | {"multimodal_params": empty}))[0] == 200
        assert (await s.post("/generate", BODY | {"multimodal_params": {}}))[0] == 200
        images = {"images": [{"type": "url", "data": "http://localhost/x.png"}]}
        for path in ("/generate", "/generate_stream", "/"):
            status, answer, _ = await s.post(path, BODY | {"multimodal_params": images})
            assert status == 400
            assert "--enable_multimodal" in answer["error"]["message"]

    run(body)


def test_tokens():
    async def body(s: Site):
        assert (await s.post("/tokens", {"text": "one two three"}))[1] == {"ntokens": 3}
        status, text, _ = await s.get("/tokens", data=b'{"text":"one two"}')
        assert (status, text) == (200, '{"ntokens":2}')
        await s.post("/tokens", {"text": "x", "parameters": {"add_special_tokens": False}})
        assert not s.engine.tokenizer[-1].add_special_tokens
        assert (await s.post("/tokens", {"text": 5}))[0] == 400
        assert s.frontend.live == 0

    run(body)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_prompt_too_long_is_refused_at_once(path):
    async def body(s: Site):
        for inputs in ("a" * 40_000, [1] * 2001):
            status, answer, _ = await s.post(path, {"inputs": inputs, "parameters": {}})
            assert status == 400
            assert answer["error"]["code"] == "prompt_too_long"
        assert not s.engine.tokenizer

    run(body)
