"""Guides: what each kind accepts, where an answer may end, and that taking ids again leads to the same place."""

from __future__ import annotations

import json
import re
import threading
import time

import numpy as np
import pytest

from lightllm_mp.errors import InvalidGuide
from lightllm_mp.guides.compiler import CACHED, GuideCompiler
from lightllm_mp.guides.grammar import MAX_SOURCE
from lightllm_mp.guides.vocabulary import GuideVocabulary
from lightllm_mp.messages import Guide
from tests.guides.guided import SPARE, accepts, allowed, compiler, matcher, may_end, takes, tokenizer, walk, writer

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
LARK = 'start: "yes" | "no" ("!")*'
GBNF = 'root ::= "yes" | "no" "!"*'


@pytest.mark.parametrize(
    ("kind", "source", "right", "wrong"),
    [
        ("json_schema", SCHEMA, '{"name": "Ann", "age": 3}', '{"age": 3, "name": 1}'),
        ("json_schema", "true", "[1, null]", "[1, nul"),
        ("json_object", "", '{"a": [1, {"b": "\\n"}]}', "[1]"),
        ("regex", r"\d{3}-[a-c]+", "123-abba", "123-abbd"),
        ("regex", "日本|é", "日本", "日"),
        ("choice", '["é\\n", "a\\"b", "x\\\\y"]', 'a"b', "a"),
        ("choice", '["é\\n", "a\\"b", "x\\\\y"]', "é\n", "é"),
        ("lark", LARK, "no!!", "yes!"),
        ("gbnf", GBNF, "no!!", "yes!"),
    ],
)
def test_kinds(kind: str, source: str, right: str, wrong: str) -> None:
    assert accepts(kind, source, right)
    assert not accepts(kind, source, wrong)


def test_an_answer_may_end_exactly_where_the_grammar_may() -> None:
    one = matcher("regex", "ab*")
    assert not may_end(one)
    assert takes(one, "a")
    assert may_end(one)
    assert takes(one, "b")
    assert set(allowed(one)) > {0, *tokenizer().eos_ids}, "every end-of-sequence id is one"


def test_an_answer_that_ignores_the_end_ends_only_where_it_has_to() -> None:
    one = matcher("regex", "ab{0,2}", ignore_eos=True)
    assert takes(one, "a")
    assert not may_end(one)
    assert takes(one, "bb")
    assert set(allowed(one)) == {0, *tokenizer().eos_ids}


def test_only_ids_of_the_vocabulary_are_allowed() -> None:
    assert max(allowed(matcher("regex", r"(.|\n)*"))) < tokenizer().vocab_size
    special = tokenizer().special_ids - {0, *tokenizer().eos_ids}
    assert not special & set(allowed(matcher("regex", r"(.|\n)*")))


@pytest.mark.parametrize("kind", ["json_schema", "regex"])
def test_random_answers_satisfy_the_guide(kind: str) -> None:
    source = {"json_schema": SCHEMA, "regex": r"[a-f]{2,5}(, \d+){0,2}"}[kind]
    ended = 0
    for seed in range(20):
        answer = walk(matcher(kind, source), seed)
        if answer is not None:
            ended += 1
            if kind == "regex":
                assert re.fullmatch(source, answer)
            else:
                assert json.loads(answer).keys() == {"name", "age"}
    assert ended > 5


def test_what_stands_before_the_text_is_free() -> None:
    one = matcher("choice", '["yes", "no"]', after="</think>")
    assert len(allowed(one)) >= tokenizer().vocab_size + SPARE
    for part in ("Well, <b>so</b>", " </thin", "k", ">"):
        assert one.free
        for token in tokenizer().encode(part, add_special_tokens=False).tolist():
            one.take(token)
    assert not one.free
    assert not takes(one, "maybe")
    assert takes(one, "yes")


def test_text_in_the_token_that_ends_what_is_free_counts() -> None:
    joined = next(i for i in range(tokenizer().vocab_size) if tokenizer().token_bytes(i) == b'="')
    one = matcher("regex", '"bc', after="a=")
    one.take(int(tokenizer().encode("a", add_special_tokens=False)[0]))
    one.take(joined)
    assert not one.free
    assert takes(one, "bc")
    assert may_end(one)


def test_ids_that_are_taken_again_lead_to_the_same_place() -> None:
    one = matcher("json_schema", SCHEMA, after="ok")
    ids = tokenizer().encode('It is ok\n{"name": "Bob', add_special_tokens=False).tolist()
    for token in ids:
        one.take(token)
    other = matcher("json_schema", SCHEMA, after="ok")
    for token in ids:
        other.take(token)
    assert allowed(one) == allowed(other)
    assert one.count == other.count == len(ids)


def test_masks_of_many_answers() -> None:
    ones = [matcher("regex", "a+"), None, matcher("regex", "b+"), matcher("regex", "b+")]
    ones[3].take(int(tokenizer().encode("a", add_special_tokens=False)[0]))
    bits = writer().masks(ones)
    counts = np.unpackbits(bits.view(np.uint8), axis=1).sum(1)
    assert counts[1] == bits.shape[1] * 32
    assert counts[3] == 0, "an id that the grammar does not allow is a dead end"
    assert np.array_equal(bits[0], writer().masks([ones[0]])[0])


HOSTILE = {
    "unknown kind": Guide("yaml", "a"),
    "too long": Guide("regex", "a" * (MAX_SOURCE + 1)),
    "no json": Guide("json_schema", "{"),
    "no schema": Guide("json_schema", "[]"),
    "a type that does not exist": Guide("json_schema", '{"type": "thing"}'),
    "unsatisfiable": Guide("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'),
    "refers to itself": Guide("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}'),
    "another host": Guide("json_schema", '{"$ref": "http://localhost:1/x.json"}'),
    "a file": Guide("json_schema", '{"$ref": "file:///etc/passwd"}'),
    "an unknown keyword": Guide("json_schema", '{"not": {"type": "string"}}'),
    "deep schema": Guide("json_schema", '{"items":' * 6000 + "{}" + "}" * 6000),
    "too many combinations": Guide(
        "json_schema",
        json.dumps(
            {"allOf": [{"anyOf": [{"type": "object", "required": [f"{i}-{j}"]} for j in range(6)]} for i in range(9)]}
        ),
    ),
    "no regex": Guide("regex", "(((("),
    "deep regex": Guide("regex", "(" * 20000 + "a" + ")" * 20000),
    "matches nothing": Guide("regex", r"[^\s\S]"),
    "looks ahead": Guide("regex", "(?=a)b"),
    "nested counts": Guide("regex", "(" * 100 + "a{0,9}" + "){0,9}" * 100),
    "no choices": Guide("choice", "[]"),
    "choices of numbers": Guide("choice", "[1]"),
    "no grammar": Guide("lark", "start: ("),
    "no start": Guide("lark", 'begin: "a"'),
    "deep grammar": Guide("lark", "start: " + "(" * 20000 + '"a"' + ")" * 20000),
    "intersections": Guide("lark", "start: T\nT: /(.*a.{12})/ & /(.*b.{12})/ & ~/(.*c.{9})/"),
    "no gbnf": Guide("gbnf", "root ::= ("),
    "gbnf without a root": Guide("gbnf", " "),
    "gbnf without a rule": Guide("gbnf", "root ::= other"),
    "deep gbnf": Guide("gbnf", "root ::= " + "(" * 30000 + '"a"' + ")" * 30000),
}
HARMLESS = {
    "bomb": Guide("regex", "(a{1,1000}){1,1000}"),
    "exponential": Guide("regex", "(x+x+)+y"),
    "many states": Guide("regex", "(a|b)*a(a|b){25}"),
    "64 KiB regex": Guide(
        "regex", "|".join(f"word{i}[a-z]{{1,50}}" for i in range(3200))[:MAX_SOURCE].rpartition("|")[0]
    ),
    "letters": Guide("regex", (r"\p{L}{1,20}\w{3,40}" * 4000)[: 19 * 3000]),
    "huge enum": Guide("json_schema", json.dumps({"enum": [f"v{i}" + "x" * 38 for i in range(1400)]})),
    "long strings": Guide("json_schema", '{"type": "string", "minLength": 100000, "maxLength": 1000000}'),
    "long arrays": Guide("json_schema", '{"type": "array", "items": {}, "minItems": 100000, "maxItems": 1000000}'),
    "recursive": Guide(
        "json_schema",
        '{"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a"}}}}}',
    ),
    "many properties": Guide(
        "json_schema", json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}})
    ),
    "ambiguous": Guide("lark", 'start: a\na: a a | "x" | '),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_guides_are_refused(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidGuide) as refused:
        compiler().compile(HOSTILE[name])
    assert time.monotonic() - began < 5
    assert refused.value.status == 400
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("name", HARMLESS)
def test_a_step_of_a_hard_guide_is_bounded(name: str) -> None:
    one = matcher(HARMLESS[name].kind, HARMLESS[name].source)
    random = np.random.default_rng(0)
    slowest = 0.0
    for _ in range(60):
        began = time.thread_time()
        ids = allowed(one)
        slowest = max(slowest, time.thread_time() - began)
        if not ids:
            break  # too complex: this answer fails
        one.take(int(random.choice(ids)))
    assert slowest < 0.5


def test_a_panic_of_the_library_concerns_its_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As the library has it."""

    def panics(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("lightllm_mp.guides.compiler.LLMatcher", panics)
    with pytest.raises(InvalidGuide, match="cannot be compiled"):
        GuideCompiler(compiler().vocabulary).compile(Guide("regex", "a"))


def test_compiled_guides_are_kept_and_forgotten() -> None:
    fresh = GuideCompiler(compiler().vocabulary)
    first = fresh.compile(Guide("regex", "a"))
    assert fresh.compile(Guide("regex", "a", after="x")) is first
    fresh.forget(Guide("regex", "a"))
    assert fresh.compile(Guide("regex", "a")) is not first
    for number in range(CACHED):
        fresh.compile(Guide("regex", f"b{number}"))
    assert fresh.compile(Guide("regex", f"b{CACHED - 1}")) is fresh.compile(Guide("regex", f"b{CACHED - 1}"))
    assert len(fresh.cache) == CACHED


def test_a_long_compilation_leaves_others_alone() -> None:
    """The library computes without Python's lock."""
    hard = Guide("json_schema", json.dumps({"type": "object", "properties": {f"q{i}": {} for i in range(1500)}}))
    done = threading.Thread(target=compiler().compile, args=(hard,))
    done.start()
    one, masks = matcher("regex", "[a-z]+"), 0
    while done.is_alive():
        allowed(one)
        masks += 1
    done.join(30)
    assert masks > 3


def test_models_without_an_end_or_fixed_bytes_take_no_guides() -> None:
    with pytest.raises(InvalidGuide, match="end-of-sequence"):
        GuideVocabulary(tokenizer(), 100, (100,))


def test_forced_text_is_taken_as_the_tokenizer_writes_it() -> None:
    source, ids = "the name of the person is (yes|no)", list[int]()
    one = matcher("regex", source, jump=True)
    while one.forced:
        (token,) = allowed(one)
        ids.append(token)
        one.take(token)
    usual = tokenizer().encode("the name of the person is yes", add_special_tokens=False).tolist()
    assert len(ids) > 4
    assert ids == usual[: len(ids)]
    assert len(allowed(one)) > 1
