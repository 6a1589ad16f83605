"""What users of openai, langchain-openai and litellm do with a model of embeddings, or one that ranks."""

from __future__ import annotations

import asyncio
import math

import checks
import litellm
import openai
from checks import HELLO, KEY, MODEL, URL, V1, raises
from langchain_openai import OpenAIEmbeddings

client = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0, timeout=60)
TEXTS = ["a panda is a bear", "Paris", "a panda is a bear"]


def near(one: list[float], other: list[float]) -> bool:
    return len(one) == len(other) and all(math.isclose(x, y, abs_tol=1e-5) for x, y in zip(one, other, strict=True))


def embed_texts_and_ids():
    coded = client.embeddings.create(model=MODEL, input=TEXTS)  # asks for base64 by itself
    plain = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    rows = [entry.embedding for entry in plain.data]
    assert all(near(entry.embedding, row) for entry, row in zip(coded.data, rows, strict=True))
    assert near(rows[0], rows[2])
    assert not near(rows[0], rows[1])
    assert math.isclose(sum(x * x for x in rows[0]), 1.0, rel_tol=1e-4)
    assert coded.usage.total_tokens == coded.usage.prompt_tokens == sum(map(len, TEXTS))
    ids = client.embeddings.create(model=MODEL, input=[[5, 6, 7], [8]])
    assert [entry.index for entry in ids.data] == [0, 1]


def embed_shorter():
    short = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=16).data[0].embedding
    whole = client.embeddings.create(model=MODEL, input=TEXTS[0]).data[0].embedding
    norm = math.sqrt(sum(x * x for x in whole[:16]))
    assert near(short, [x / norm for x in whole[:16]])
    error = raises(openai.BadRequestError, client.embeddings.create, model=MODEL, input="a", dimensions=65)
    assert error.param == "dimensions"


def embed_many_at_once():
    many = client.embeddings.create(model=MODEL, input=[f"text number {i}" for i in range(2048)])
    assert len(many.data) == 2048
    raises(openai.BadRequestError, client.embeddings.create, model=MODEL, input=["a"] * 2049)

    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0) as several:
            found = await asyncio.gather(
                *(several.embeddings.create(model=MODEL, input=[f"text number {i}"]) for i in range(20))
            )
        for i, one in enumerate(found):
            assert near(one.data[0].embedding, many.data[i].embedding)

    asyncio.run(work())


def embed_errors():
    raises(openai.BadRequestError, client.chat.completions.create, model=MODEL, messages=HELLO)
    raises(openai.BadRequestError, client.embeddings.create, model=MODEL, input=[])
    wrong = openai.OpenAI(base_url=V1, api_key="wrong", max_retries=0)
    raises(openai.AuthenticationError, wrong.embeddings.create, model=MODEL, input="a")


def embed_langchain():
    model = OpenAIEmbeddings(base_url=V1, api_key=KEY, model=MODEL, check_embedding_ctx_length=False)
    rows = model.embed_documents(TEXTS)
    assert near(rows[0], rows[2])
    assert near(model.embed_query(TEXTS[1]), rows[1])


def embed_litellm():
    found = litellm.embedding("openai/" + MODEL, input=TEXTS, api_base=V1, api_key=KEY)
    assert [entry["index"] for entry in found.data] == [0, 1, 2]
    assert near(found.data[0]["embedding"], found.data[2]["embedding"])


def rank_litellm():
    documents = ["Paris", "a panda is a bear", "rain"]
    found = litellm.rerank(
        "hosted_vllm/" + MODEL, query="panda", documents=documents, top_n=2, api_base=URL, api_key=KEY
    )
    scores = [result["relevance_score"] for result in found.results]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    for result in found.results:
        assert result["document"]["text"] == documents[result["index"]]


if __name__ == "__main__":
    checks.main(globals())
