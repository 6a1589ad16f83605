"""The `parameters` of a request, from HTTP or the offline API: LightLLM's fields with their bounds, and how they become
the engine's `Terms`."""

from __future__ import annotations

import secrets
from array import array
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from lightllm_mp.errors import InvalidRequest
from lightllm_mp.messages import Guide, Output, Sampling, Terms

T = TypeVar("T")

MAX_ID = 2**31 - 1
MAX_STOPS, MAX_STOP_BYTES = 16, 1024
MAX_BIASES, MAX_ALLOWED = 1024, 256
Id = Annotated[int, Meta(ge=0, le=MAX_ID)]
Count = Annotated[int, Meta(ge=1, le=MAX_ID)]
Choices = Annotated[int, Meta(ge=1, le=64)]
Penalty = Annotated[float, Meta(ge=-100.0, le=100.0)]
Stop = Annotated[str, Meta(max_length=MAX_STOP_BYTES)]
StopIds = Annotated[list[Id], Meta(min_length=1, max_length=64)]
MAX_GUIDE = 1 << 16
"""Bytes of a constraint."""
GuideText = Annotated[str, Meta(max_length=MAX_GUIDE)]

GUIDES = {"guided_json": "json_schema", "guided_grammar": "gbnf", "regular_constraint": "regex"}
"""Parameters that constrain an answer, and the kinds of their guides."""
POOLED = Sampling(seed=0, max_new_tokens=0)
"""The sampling of a request for an embedding or a score."""
DEFAULT_MAX_NEW_TOKENS = 16
GREEDY_BELOW = 1e-5


class RequestParameters(Struct, frozen=True, kw_only=True):
    """The fields of `parameters`. A field that is absent or `null` has its default."""

    do_sample: bool | None = None
    """False (default): greedy; temperature, top_p, top_k and min_p have no effect."""
    temperature: Annotated[float, Meta(ge=0.0, le=1000.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_ID)] | None = None
    """-1 or 0: off."""
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=100.0)] | None = None
    input_penalty: bool | None = None
    """Penalties also count the tokens of the prompt."""
    ignore_eos: bool | None = None
    max_new_tokens: Count | None = None
    """Default 16. Reduced to what fits the context."""
    min_new_tokens: Annotated[int, Meta(ge=0, le=MAX_ID)] | None = None
    stop_sequences: Stop | Annotated[list[Stop | StopIds], Meta(max_length=MAX_STOPS)] | None = None
    include_stop_str_in_output: bool | None = None
    """Keep the stop string at the end of the text. Default: remove it."""
    n: Choices | None = None
    best_of: Choices | None = None
    """The same as n. If both are given, they must be equal."""
    seed: Annotated[int, Meta(ge=-1, le=2**63 - 1)] | None = None
    """-1 or absent: a random seed for each request."""
    return_details: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | bool | None = None
    """Number of alternatives to report for each produced token. true: 1."""
    prompt_logprobs: Annotated[int, Meta(ge=-1, le=20)] | None = None
    logit_bias: Annotated[dict[Id, Penalty], Meta(max_length=MAX_BIASES)] | None = None
    allowed_token_ids: Annotated[list[Id], Meta(min_length=1, max_length=MAX_ALLOWED)] | None = None
    """No other id is ever sampled."""
    speculate: bool | None = None
    """false: no tokens are drafted for this request (--speculative-algorithm). The answer is the same."""
    skip_special_tokens: bool | None = None
    """Default: true, or false with the server's flag --no-skipping-special-tokens."""
    add_special_tokens: bool | None = None
    add_spaces_between_special_tokens: bool | None = None
    print_eos_token: bool | None = None
    disable_prompt_cache: bool | None = None
    priority: Annotated[int, Meta(ge=-MAX_ID, le=MAX_ID)] | None = None
    """A higher priority is served first."""
    regular_constraint: GuideText | None = None
    """A regular expression that each answer matches as a whole."""
    guided_grammar: GuideText | None = None
    """A grammar of each answer: GBNF, or Lark."""
    guided_json: GuideText | dict[str, Raw] | None = None
    """A JSON schema, as text or as an object: each answer is JSON that satisfies it."""


def terms(
    p: RequestParameters,
    tenant: bytes = b"",
    how: Sampling | None = None,
    *,
    task: Literal["generate", "embed", "score"] = "generate",
) -> Terms:
    """The terms of a request of `tenant`; `how` replaces its own sampling. Raises InvalidRequest."""
    if task != "generate":
        how = POOLED
    return Terms(
        sampling=sampling(p) if how is None else how,
        output=output(p),
        n=choices(p),
        priority=p.priority or 0,
        reuse_prompt=not p.disable_prompt_cache,
        tenant=tenant,
        guide=None if how is POOLED else guide(p),
        task=task,
        speculate=p.speculate is not False,
    )


def choices(p: RequestParameters) -> int:
    """The number of answers. InvalidRequest if n and best_of differ."""
    if p.n is not None and p.best_of is not None and p.n != p.best_of:
        raise InvalidRequest("n must equal best_of", param="n")
    return p.n or p.best_of or 1


def sampling(p: RequestParameters) -> Sampling:
    """The engine's sampling rules. InvalidRequest for parameters that contradict each other or are not supported."""
    most = p.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    if (p.min_new_tokens or 1) > most:
        raise InvalidRequest(f"min_new_tokens must be at most max_new_tokens ({most})", param="min_new_tokens")
    temperature = _or(p.temperature, 1.0)
    greedy = not p.do_sample or temperature < GREEDY_BELOW
    bias = p.logit_bias or {}
    return Sampling(
        seed=secrets.randbits(62) if p.seed is None or p.seed < 0 else p.seed,
        temperature=0.0 if greedy else temperature,
        top_k=0 if greedy else max(_or(p.top_k, 0), 0),
        top_p=1.0 if greedy else _or(p.top_p, 1.0),
        min_p=0.0 if greedy else _or(p.min_p, 0.0),
        presence_penalty=_or(p.presence_penalty, 0.0),
        frequency_penalty=_or(p.frequency_penalty, 0.0),
        repetition_penalty=_or(p.repetition_penalty, 1.0),
        penalize_prompt=bool(p.input_penalty),
        max_new_tokens=most,
        min_new_tokens=p.min_new_tokens or 1,
        ignore_eos=bool(p.ignore_eos),
        stop_ids=_stop_ids(p),
        bias_ids=array("i", bias).tobytes(),
        bias_values=array("f", bias.values()).tobytes(),
        top_logprobs=int(p.logprobs or 0),
        prompt_logprobs=_or(p.prompt_logprobs, -1),
        allowed_ids=array("i", dict.fromkeys(p.allowed_token_ids or ())).tobytes(),
    )


def guide(p: RequestParameters) -> Guide | None:
    """The constraint on each answer. InvalidRequest for two of them, or one that is too large."""
    given = [(name, kind) for name, kind in GUIDES.items() if getattr(p, name) not in (None, "")]
    if not given:
        return None
    (name, kind), *others = given
    if others:
        raise InvalidRequest(f"{name} and {others[0][0]} exclude each other", param=others[0][0])
    value = getattr(p, name)
    source = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if len(source.encode()) > MAX_GUIDE:
        raise InvalidRequest(f"{name} has at most {MAX_GUIDE} bytes", param=name)
    return Guide(kind, source)


def output(p: RequestParameters) -> Output:
    """The detokenizer's rules. The server's flag decides whether special tokens are skipped by default."""
    return Output(
        stop=_stop_strings(p),
        keep_stop=bool(p.include_stop_str_in_output),
        skip_special_tokens=p.skip_special_tokens,
        spaces_between_special_tokens=_or(p.add_spaces_between_special_tokens, True),
        print_eos_token=bool(p.print_eos_token),
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _stops(p: RequestParameters) -> list[str | list[int]]:
    stops = p.stop_sequences
    return [stops] if isinstance(stops, str) else list(stops or ())


def _stop_strings(p: RequestParameters) -> tuple[str, ...]:
    """The stop strings; empty ones are ignored."""
    strings = tuple(stop for stop in _stops(p) if isinstance(stop, str) and stop)
    if any(len(stop.encode()) > MAX_STOP_BYTES for stop in strings):
        raise InvalidRequest(f"a stop string has at most {MAX_STOP_BYTES} bytes", param="stop_sequences")
    return strings


def _stop_ids(p: RequestParameters) -> bytes:
    """The stop ids, int32: lists of one id. InvalidRequest for longer lists, since their text is not known here."""
    lists = [stop for stop in _stops(p) if isinstance(stop, list)]
    if any(len(ids) > 1 for ids in lists):
        raise InvalidRequest(
            "a stop sequence of several token ids is not supported; send it as a string", param="stop_sequences"
        )
    return array("i", [ids[0] for ids in lists]).tobytes()
