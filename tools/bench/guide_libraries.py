"""Measures llguidance and, where it is installed, xgrammar, on the default model's vocabulary: compile time, time of a
mask, and how many random JSON schemas each takes and keeps to.

    python -m tools.bench.guide_libraries [--schemas 200] [--tokens 200] [--model FOLDER]

Both libraries walk at random through each schema, so they meet the same kinds of states. `jsonschema` validates each
walk that ends. Times are of one thread.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from lightllm_mp.errors import EngineError, InvalidGuide
from lightllm_mp.guides.compiler import GuideCompiler
from lightllm_mp.guides.matcher import GuideMatcher, MaskWriter
from lightllm_mp.guides.vocabulary import GuideVocabulary
from lightllm_mp.messages import Guide
from lightllm_mp.model_files.default_model import find_default_model
from lightllm_mp.text.tokenizer import Tokenizer, load_tokenizer
from tools.bench.guided_schemas import validated
from tools.harness.command_line import ToolParser, skip
from tools.harness.figures import Figures
from tools.harness.random_schemas import RandomSchemas

NAMED: dict[str, Any] = {
    "any object": {"type": "object"},
    "1,400 words": {"enum": [f"v{i}" + "x" * 38 for i in range(1400)]},
    "200 properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(200)}},
    "long string": {"type": "string", "minLength": 100, "maxLength": 10_000},
    "patterns": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{1,{9 + i}}}-[0-9]{{2,}}$"} for i in range(40)},
        "required": [f"p{i}" for i in range(40)],
        "additionalProperties": False,
    },
}


class Walk(Protocol):
    """An answer under a schema."""

    def allowed(self) -> np.ndarray: ...

    def take(self, token: int) -> None: ...


class LlguidanceWalk:
    def __init__(self, vocabulary: GuideVocabulary, schema: str) -> None:
        compiled = GuideCompiler(vocabulary).compile(Guide("json_schema", schema))
        self._matcher, self._writer = GuideMatcher(compiled, vocabulary), MaskWriter(vocabulary, 1)

    def allowed(self) -> np.ndarray:
        return self._writer.masks([self._matcher])[0]

    def take(self, token: int) -> None:
        self._matcher.take(token)


def xgrammar_walks(tokenizer: Tokenizer, ends: Sequence[int]) -> Callable[[str], Walk] | None:
    if find_spec("xgrammar") is None:
        return None
    import xgrammar

    pieces = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
    info = xgrammar.TokenizerInfo(pieces, vocab_size=len(pieces), stop_token_ids=list(ends))

    class XgrammarWalk:
        def __init__(self, schema: str) -> None:
            compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
            self._matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(schema, strict_mode=False))
            self._bits = np.zeros((1, -(-len(pieces) // 32)), np.int32)

        def allowed(self) -> np.ndarray:
            self._bits.fill(-1)
            self._matcher.fill_next_token_bitmask(self._bits)
            return self._bits[0].view(np.uint32)

        def take(self, token: int) -> None:
            self._matcher.accept_token(token)

    return XgrammarWalk


@dataclass
class Times:
    compiles: list[float] = field(default_factory=list)
    masks: list[float] = field(default_factory=list)
    refused: int = 0
    finished: int = 0
    invalid: int = 0


def walk(
    make: Callable[[str], Walk], schema: dict[str, Any], seed: int, tokens: int, tokenizer: Tokenizer, times: Times
) -> None:
    random, ids, text = np.random.default_rng(seed), list[int](), json.dumps(schema)
    begin = perf_counter()
    try:
        one = make(text)
    except (InvalidGuide, RuntimeError, ValueError):
        times.refused += 1
        return
    times.compiles.append(perf_counter() - begin)
    for _ in range(tokens):
        begin = perf_counter()
        bits = one.allowed()
        times.masks.append(perf_counter() - begin)
        allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little", count=tokenizer.vocab_size))
        if not len(allowed):
            return
        token = int(random.choice(allowed))
        if token in tokenizer.eos_ids:
            times.finished += 1
            times.invalid += validated(schema, tokenizer.decode(ids)) != "valid"
            return
        ids.append(token)
        one.take(token)


def report(figures: Figures, name: str, times: Times) -> None:
    for what, values in (("compile", times.compiles), ("mask", times.masks)):
        if values:
            figures.add(f"{name}: {what}, median", statistics.median(values) * 1e6, "us")
            figures.add(f"{name}: {what}, 99 %", float(np.quantile(values, 0.99)) * 1e6, "us")
            figures.add(f"{name}: {what}, most", max(values) * 1e6, "us")
    figures.add(f"{name}: refused", times.refused)
    figures.add(f"{name}: walks that ended", times.finished)
    figures.add(f"{name}: of these invalid", times.invalid)


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, schemas=3, tokens=10)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--model", type=Path, help="default: the default model")
    flags = parser.parse(argv)
    if find_spec("jsonschema") is None:
        skip("missing: jsonschema (pip install 'lightllm-mp[test]')")
    try:
        tokenizer = load_tokenizer(flags.model or find_default_model(fetch=False))
    except EngineError as error:
        skip(error.message)
    vocabulary = GuideVocabulary(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)
    libraries: dict[str, Callable[[str], Walk] | None] = {
        "llguidance": lambda schema: LlguidanceWalk(vocabulary, schema),
        "xgrammar": xgrammar_walks(tokenizer, tokenizer.eos_ids),
    }
    figures = Figures()
    for library, make in libraries.items():
        if make is None:
            continue
        times = Times()
        for seed in range(flags.schemas):
            walk(make, RandomSchemas(seed).schema(), seed, flags.tokens, tokenizer, times)
        report(figures, f"{library}, {flags.schemas} random schemas", times)
        for name, schema in NAMED.items():
            times = Times()
            walk(make, schema, 1, flags.tokens, tokenizer, times)
            report(figures, f"{library}, {name}", times)
    figures.table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
