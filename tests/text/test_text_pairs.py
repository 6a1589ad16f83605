"""A query and a document become one prompt: by the tokenizer's rule for pairs, the chat template, or a text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lightllm_mp.actors.tokenizer import TokenizerActor
from lightllm_mp.actors.topology import ROUTER
from lightllm_mp.messages import Generate, Rejected, Terms, TextPair, Tokenized
from lightllm_mp.models.model_config import read_model_config
from lightllm_mp.models.spec import PoolingSpec
from lightllm_mp.sampling_parameters import POOLED
from lightllm_mp.text.tokenizer import load_tokenizer
from tests.actors.embedded import write_byte_tokenizer
from tests.paths import GOLDENS
from tests.text.text_actors import FRONT, Outbox, started_without_files

TERMS = Terms(POOLED, task="score")


def asked(
    folder: Path,
    prompt: TextPair | str,
    pairs: str,
    *,
    token_types: int = 0,
    vocab: int = 256,
    most: int = 0,
    special: bool = True,
) -> Tokenized | Rejected:
    """What the actor makes of a pair, or of a text."""
    outbox = Outbox()
    actor, _ = started_without_files(TokenizerActor, folder, outbox)
    pooling = PoolingSpec(task="score", width=1, head="linear", pairs=pairs)
    known = read_model_config(GOLDENS / "llama")
    actor._spec = replace(known, pooling=pooling, token_types=token_types, vocab=vocab)
    text, pair = (prompt, None) if isinstance(prompt, str) else (None, prompt)
    terms = replace(TERMS, most_tokens=most)
    actor.on_message(FRONT, Generate(1, terms, text=text, pair=pair, add_special_tokens=special))
    ((peer, message),) = outbox.posted
    assert peer == (ROUTER if isinstance(message, Tokenized) else FRONT)
    return message


def text_of(folder: Path, message: Tokenized | Rejected) -> str:
    assert isinstance(message, Tokenized)
    return load_tokenizer(folder).decode(np.frombuffer(message.ids, "<i4"))


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """<s> query </s></s> document </s>, as XLM-RoBERTa has it; ids are numbers of words."""
    vocabulary = ["<s>", "</s>", "a", "b", "c"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s>:1 $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("token_types", "ids"), [(1, [0, 2, 3, 1, 1, 4, 1]), (2, [0, 2, 3, 1, 101, 104, 101]), (0, [0, 2, 3, 1, 1, 4, 1])]
)
def test_by_the_tokenizer(words: Path, token_types: int, ids: list[int]) -> None:
    found = asked(words, TextPair("a b", "c"), "tokenizer", token_types=token_types, vocab=100)
    assert isinstance(found, Tokenized)
    assert np.frombuffer(found.ids, "<i4").tolist() == ids
    assert (found.prompt_tokens, found.terms) == (len(ids), TERMS)


def test_a_pair_that_is_too_long(words: Path) -> None:
    for pair in (TextPair("a", "b " * 100), TextPair("a " * 100, "b"), TextPair("a " * 60, "b " * 60)):
        found = asked(words, pair, "tokenizer")
        assert isinstance(found, Rejected)
        assert found.error.code == "prompt_too_long"


def test_by_a_text(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    found = asked(tmp_path, TextPair("{document}", "d{query}"), "Q: {query}\nD: {document}\nA:")
    assert text_of(tmp_path, found) == "Q: {document}\nD: d{query}\nA:"


def test_by_the_chat_template(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    assert text_of(tmp_path, asked(tmp_path, TextPair("q", "d"), "chat")) == "<query>q<document>d"


def test_a_model_that_takes_no_pairs(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    found = asked(tmp_path, TextPair("q", "d"), "")
    assert isinstance(found, Rejected)
    assert found.error.status == 400


# --- prompts that may be cut ------------------------------------------------------------------------------------------


def ids_of(found: Tokenized | Rejected) -> list[int]:
    assert isinstance(found, Tokenized), found
    return np.frombuffer(found.ids, "<i4").tolist()


@pytest.mark.parametrize(
    ("most", "ids"),
    [
        (99, [0, 2, 3, 1, 1, 4, 3, 2, 1]),
        (9, [0, 2, 3, 1, 1, 4, 3, 2, 1]),
        (8, [0, 2, 3, 1, 1, 4, 3, 1]),
        (7, [0, 2, 3, 1, 1, 4, 1]),
        (6, [0, 2, 3, 1, 1, 1]),
    ],
)
def test_a_document_loses_its_end_and_no_special_token(words: Path, most: int, ids: list[int]) -> None:
    assert ids_of(asked(words, TextPair("a b", "c b a"), "tokenizer", most=most)) == ids


def test_segments_of_a_cut_document(words: Path) -> None:
    found = asked(words, TextPair("a b", "c b a"), "tokenizer", most=8, token_types=2, vocab=100)
    assert ids_of(found) == [0, 2, 3, 1, 101, 104, 103, 101]


def test_a_query_is_not_cut(words: Path) -> None:
    found = asked(words, TextPair("a b c", "c"), "tokenizer", most=6)
    assert isinstance(found, Rejected)
    assert found.error.code == "prompt_too_long"


@pytest.mark.parametrize(
    ("most", "special", "ids"),
    [(9, True, [0, 2, 3, 4, 1]), (4, True, [0, 2, 3, 1]), (2, True, [0, 1]), (2, False, [2, 3]), (9, False, [2, 3, 4])],
)
def test_a_text_loses_its_end(words: Path, most: int, special: bool, ids: list[int]) -> None:
    assert ids_of(asked(words, "a b c", "", most=most, special=special)) == ids


def test_a_text_of_any_length_fits_the_longest_prompt(words: Path) -> None:
    assert len(ids_of(asked(words, "a " * 5000, "", most=1 << 30))) == 100


def test_ids_lose_their_end(words: Path) -> None:
    outbox = Outbox()
    actor, _ = started_without_files(TokenizerActor, words, outbox)
    column = np.arange(300, dtype="<i4").tobytes()
    actor.on_message(FRONT, Generate(1, replace(TERMS, most_tokens=7), ids=column))
    assert ids_of(outbox.posted[0][1]) == list(range(7))


def test_a_document_within_a_text_loses_its_end(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    template = "Q: {query} D: {document} A:"
    whole = asked(tmp_path, TextPair("what", "it is a bear"), template, most=99)
    assert text_of(tmp_path, whole) == "Q: what D: it is a bear A:"
    cut = asked(tmp_path, TextPair("what", "it is a bear"), template, most=20)
    assert text_of(tmp_path, cut) == "Q: what D: it is  A:"
    assert len(ids_of(cut)) == 20
