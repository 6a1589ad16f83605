"""Images through a whole server: what running text feels of them, and what an image that was seen before saves.

    python -m tools.bench.images [--only gap first] [...] --model-dir DIR [flags of lightllm-mp serve]
    python -m tools.bench.images --shape small [...]                     # random weights
    python -m tools.bench.images --url http://127.0.0.1:8000 [...]       # a server that runs already

  gap    median gap between the tokens of --streams text streams: alone; while --images images are answered; and while
         as many texts of the same length come at that rate, which tells the cost of prefill from that of images
  first  time to first token of a request, and of a second one with its image and the start of its question

Prints one JSON line a figure, then a table. Exit code 1 if a request failed. How many images a second a server answers,
and how long its stages take, tells `lightllm-mp bench --images 1`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import multiprocessing
import random
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import count, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import aiohttp

from lightllm_mp.bench.client import Outcome, Target, drive
from lightllm_mp.bench.pictures import Size, entries
from lightllm_mp.bench.report import percentile
from lightllm_mp.bench.stages import Numbers, between, scrape
from lightllm_mp.bench.workload import IMAGE_ID, Request
from tools.harness.command_line import ToolParser
from tools.harness.figures import Figures, say
from tools.harness.models import SHAPES, write_shape, write_tiny_model
from tools.harness.serving import serving

QUESTION, ANSWER = 24, 256
"""Tokens of a question, and of a text stream's answer."""
ALL = float("inf")
"""A rate: all requests at once."""


class Bench:
    """Requests to one server, and what it says of itself."""

    def __init__(self, target: Target, session: aiohttp.ClientSession, flags: argparse.Namespace) -> None:
        self.target, self.session, self.flags = target, session, flags
        self.failed = 0
        self.figures = Figures()
        self._number = count()

    def new(self) -> str:
        """The name of a picture that nobody has seen."""
        return f"{self.flags.seed}-{next(self._number)}"

    def ids(self, length: int) -> list[int]:
        """Random ones, others at every call."""
        rng = random.Random(self.new())
        return [rng.randrange(3, self.flags.vocab) for _ in range(length)]

    def asking(self, *pictures: str, output: int = 1) -> Request:
        prompt = [IMAGE_ID] * len(pictures) + self.ids(QUESTION)
        return Request(prompt, len(prompt), output, pictures)

    async def send(self, requests: Sequence[Request], rate: float | None = ALL, concurrency: int = 1) -> list[Outcome]:
        outcomes = await drive(self.target, list(requests), rate=rate, concurrency=concurrency)
        for error in {outcome.error for outcome in outcomes if outcome.error is not None}:
            say(f"failed: {error}")
        self.failed += sum(outcome.error is not None for outcome in outcomes)
        return outcomes

    async def numbers(self) -> Numbers:
        return await scrape(self.session, self.target.url)


async def gap(bench: Bench) -> None:
    flags, spans = bench.flags, {}

    @contextlib.contextmanager
    def span(what: str) -> Iterator[None]:
        begin = perf_counter()
        yield
        spans[what] = (begin, perf_counter())

    images = [bench.asking(bench.new()) for _ in range(flags.images)]
    assert bench.target.entry is not None
    for request in images:  # pictures are made now, not while something is measured
        bench.target.entry(*request.images)
    with texts_streaming(bench.target.url, flags) as gaps:
        await asyncio.sleep(flags.seconds / 2)
        with span("alone"):
            await asyncio.sleep(flags.seconds)
        told = await bench.numbers()
        with span("while images are answered"):
            asked = await bench.send(images, rate=None, concurrency=flags.concurrency)
        told = between(told, await bench.numbers())
        length = max((outcome.input_tokens for outcome in asked), default=QUESTION)
        texts = [Request(bench.ids(length), length, 1) for _ in range(flags.images)]
        begin, end = spans["while images are answered"]
        with span("while texts as long come as fast"):
            await bench.send(texts, rate=flags.images / (end - begin))
    found = []
    for what, (start, end) in spans.items():
        seen = sorted(b - a for a, b in gaps if start <= a and b <= end) or [math.nan]
        found.append((percentile(seen, 50), statistics.fmean(seen)))
        bench.figures.add(f"gap: {flags.streams} text streams {what}, median", found[-1][0] * 1000, "ms")
        bench.figures.add(f"gap: the same over {end - start:.1f} s, mean", found[-1][1] * 1000, "ms")
        bench.figures.add("gap: the same, 99th percentile", percentile(seen, 99) * 1000, "ms")
    for what, kind in (("median", 0), ("mean", 1)):
        bench.figures.add(f"gap: {what} with images to alone", found[1][kind] / found[0][kind], "x")
        bench.figures.add(f"gap: {what} with such texts to alone", found[2][kind] / found[0][kind], "x")
    bench.figures.add(f"gap: images encoded of {flags.images}", told["misses"], "")


@contextlib.contextmanager
def texts_streaming(url: str, flags: argparse.Namespace) -> Iterator[list[tuple[float, float]]]:
    """Streams text until the block ends. The list then has both ends of every gap between two tokens. In a process of
    its own, so that the sender of images does not make it look slow."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=stream_texts, args=(there, url, flags.streams, flags.vocab))
    process.start()
    gaps: list[tuple[float, float]] = []
    try:
        here.recv()
        yield gaps
        here.send("stop")
        gaps += here.recv()
    finally:
        process.kill()
        process.join()


def stream_texts(pipe: Connection, url: str, streams: int, vocab: int) -> None:
    """Says when it has begun, ends when it is told anything, and sends the gaps."""
    rng = random.Random("texts")
    gaps: list[tuple[float, float]] = []

    async def one_after_the_other() -> None:
        while not pipe.poll():
            ids = [rng.randrange(3, vocab) for _ in range(QUESTION)]
            outcomes = await drive(Target(url, ignore_eos=True), [Request(ids, QUESTION, ANSWER)], rate=ALL)
            gaps.extend(pair for outcome in outcomes for pair in pairwise(outcome.arrivals))

    async def all_of_them() -> None:
        await asyncio.gather(*[one_after_the_other() for _ in range(streams)])

    pipe.send("begun")
    asyncio.run(all_of_them())
    pipe.send(gaps)


async def first(bench: Bench) -> None:
    times: list[list[float]] = [[], []]
    encoded = 0.0
    for _ in range(bench.flags.pairs):
        new = bench.asking(bench.new(), output=4)
        again = new._replace(prompt=[*new.prompt, *bench.ids(4)])
        before: Numbers = {}
        for request, column in zip((new, again), times, strict=True):
            before = await bench.numbers()
            outcome = (await bench.send([request]))[0]
            column += [outcome.arrivals[0] - outcome.start] if outcome.arrivals else []
        encoded += (await bench.numbers())["images_encoded_total"] - before["images_encoded_total"]
    medians = [statistics.median(column) for column in times]
    bench.figures.add("first: time to first token, new image, median", medians[0] * 1000, "ms")
    bench.figures.add("first: same image and start of the question, median", medians[1] * 1000, "ms")
    bench.figures.add("first: the second to the first", medians[1] / medians[0], "x")
    bench.figures.add(f"first: encodings for {bench.flags.pairs} second requests", encoded, "")


MEASURES: dict[str, Callable[[Bench], Awaitable[None]]] = {"gap": gap, "first": first}


async def measure(flags: argparse.Namespace, url: str) -> Bench:
    async with entries(Size.read(flags.image_size), "base64") as entry:
        target = Target(url, ignore_eos=True, entry=entry)
        async with target.session() as session:
            bench = Bench(target, session, flags)
            await bench.send([bench.asking(bench.new(), output=4) for _ in range(3)], rate=None)  # kernels warm up
            for name in flags.only:
                await MEASURES[name](bench)
            return bench


def main(argv: Sequence[str] | None = None) -> int:
    parser = ToolParser(__doc__, image_size="56", images=4, concurrency=2, streams=1, seconds=0.3, pairs=2)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--shape", choices=SHAPES, help="a model of random weights")
    where.add_argument("--url")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--vocab", type=int, default=200, help="ids are drawn below this")
    parser.add_argument("--image-size", default="336", help="N or WIDTHxHEIGHT in pixels")
    parser.add_argument("--images", type=int, default=200, help="of gap")
    parser.add_argument("--streams", type=int, default=8, help="text streams of gap")
    parser.add_argument("--concurrency", type=int, default=16, help="requests with images at a time, of gap")
    parser.add_argument("--seconds", type=float, default=10.0, help="of gap without images")
    parser.add_argument("--pairs", type=int, default=20, help="of first")
    parser.add_argument("--seed", type=int, default=0)
    flags, serve = parser.parse_some(argv)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if flags.shape:
            serve += ["--model-dir", str(write_shape(flags.shape, folder)), "--load-format", "dummy"]
        elif flags.smoke and not serve:
            serve += ["--model-dir", str(write_tiny_model(folder, "llava_hf")), "--data-type", "float32"]
            serve += ["--device", "cpu", "--threads", "1", "--max-total-token-num", "5000"]
        url = flags.url
        if not url:
            multimodal = ("--enable-multimodal", "--cache-capacity", "200")
            url = stack.enter_context(serving(*multimodal, more=serve)).base_url
        bench = asyncio.run(measure(flags, url))
    bench.figures.table()
    if bench.failed:
        say(f"{bench.failed} requests failed")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
