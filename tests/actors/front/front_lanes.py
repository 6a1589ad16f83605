"""A request table whose lanes are lists."""

from __future__ import annotations

from array import array

from lightllm_mp import messages as say
from lightllm_mp.actors.front import live_request as live_module
from lightllm_mp.actors.front.request_limits import RequestLimits
from lightllm_mp.actors.front.resumable_table import ResumableTable
from lightllm_mp.facts import EngineLimits, Facts
from lightllm_mp.messages import Sampling

FACTS = Facts(engine=EngineLimits(vocab_size=100, max_input=10))


class Lanes:
    """Two lanes that can be full."""

    def __init__(self) -> None:
        self.tokenizer: list[say.Wire] = []
        self.router: list[say.Wire] = []
        self.room = True

    def to_tokenizer(self, message: say.Wire) -> bool:
        if self.room:
            self.tokenizer.append(message)
        return self.room

    def to_router(self, message: say.Wire) -> bool:
        if self.room:
            self.router.append(message)
        return self.room


def make(max_live: int = 8, *, tenants: int = 1, queue_seconds: float = 0.0) -> tuple[ResumableTable, Lanes]:
    lanes = Lanes()
    limits = RequestLimits(max_live, tenants)
    frontend = ResumableTable(lanes.to_tokenizer, lanes.to_router, limits=limits, queue_seconds=queue_seconds)
    frontend.begin(say.Begin(epoch=0, facts=FACTS))
    return frontend, lanes


def submit(frontend: ResumableTable, prompt="hello", **options) -> live_module.LiveRequest:
    own = {name: options.pop(name) for name in say.Terms.__struct_fields__ if name in options}
    return frontend.submit(prompt, say.Terms(**{"sampling": Sampling(seed=7)} | own), **options)


def texts(*rows) -> say.Texts:
    """rows of (rid, id, text, count, finish)"""
    rids, ids, words, counts, finish = zip(*rows, strict=True)
    return say.Texts(
        rids=array("q", rids).tobytes(),
        ids=array("i", ids).tobytes(),
        logprobs=array("f", [-1.0] * len(rows)).tobytes(),
        counts=array("i", counts).tobytes(),
        prompt_tokens=array("i", [5] * len(rows)).tobytes(),
        cached_tokens=array("i", [2] * len(rows)).tobytes(),
        special=bytes(len(rows)),
        finish=bytes(finish),
        texts=words,
    )


async def collect(live) -> list:
    return [event async for event in live]
