"""Random walks through the grammars of random JSON schemas end in documents that satisfy them."""

from __future__ import annotations

import json

import pytest

from lightllm_mp.errors import InvalidGuide
from tests.guides.guided import matcher, walk
from tools.bench.guided_schemas import validated
from tools.harness.random_schemas import RandomSchemas

COUNT = 60


@pytest.mark.parametrize("jump", [False, True])
def test_what_ends_satisfies_its_schema(jump: bool) -> None:
    """A walk draws from all allowed tokens, so it visits what no model would say."""
    pytest.importorskip("jsonschema")
    ended = refused = 0
    for seed in range(COUNT):
        schema = RandomSchemas(seed).schema()
        try:
            one = matcher("json_schema", json.dumps(schema), jump=jump)
        except InvalidGuide:
            refused += 1
            continue
        answer = walk(one, seed, 300)
        if answer is not None:
            ended += 1
            assert validated(schema, answer) == "valid", (seed, schema, answer)
    assert ended > COUNT / 4
    assert refused < COUNT / 4
