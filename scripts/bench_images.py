"""Images through a whole server: what is shared, what stays behind, what running text feels, how fast it is.

    python scripts/bench_images.py --model-dir DIR [--load-format dummy] [--only one crowd row gap first rate]
    python scripts/bench_images.py --shape small [...]                     # random weights
    python scripts/bench_images.py --url http://127.0.0.1:8000 [...]       # a server that runs already

  one    100 requests at once for one new image: how often it is encoded
  crowd  40 requests with different images, then 8 with 6 each, all at once: the most that the cache ever holds
  row    --row images, four at a time: what the server's processes have more of at the end than after a fifth of them
  gap    median gap between the tokens of --streams text streams: alone; while --images images are answered; and while
         as many texts of the same length come at that rate, which tells the cost of prefill from that of images
  first  time to first token of a request, and of a second one with its image and the start of its question
  rate   --images images, all different, as fast as they go: images a second, and the server's own times of the stages

`one`, `crowd` and `row` get a server whose cache holds 10 images, the others one of 200. Prints one JSON line a figure,
then a table. Exit code 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from itertools import count, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import aiohttp

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightllm_mp import Config, launch
from lightllm_mp.cli.bench.client import BenchTarget, RequestOutcome, drive
from lightllm_mp.cli.bench.pictures import PictureSize, entries
from lightllm_mp.cli.bench.report import percentile
from lightllm_mp.cli.bench.stages import Numbers, between, scrape
from lightllm_mp.cli.bench.workload import IMAGE_ID, Request
from lightllm_mp.config import EngineConfig, HttpConfig, ModelConfig, MultimodalConfig, SupervisorConfig
from scripts.faults.watch import descendants, links, resident, shared_memory
from scripts.llava_shapes import SHAPES, write_shape

GROUPS = {10: ("one", "crowd", "row"), 200: ("gap", "first", "rate")}
"""By the number of images that the cache holds."""
MIB = float(1 << 20)
QUESTION, ANSWER = 24, 256
"""Tokens of a question, and of a text stream's answer."""
ALL = float("inf")
"""A rate: all requests at once."""


class Bench:
    """Requests to one server, and what it says of itself. `pid`: its supervisor, where that is on this machine."""

    def __init__(self, target: BenchTarget, session: aiohttp.ClientSession, pid: int | None, flags: argparse.Namespace):
        self.target, self.session, self.pid, self.flags = target, session, pid, flags
        self.failed = 0
        self.rows: list[tuple[str, float, str]] = []
        self._number = count()

    def figure(self, name: str, value: float, unit: str) -> None:
        self.rows.append((name, value, unit))
        print(json.dumps({"figure": name, "value": round(value, 6), "unit": unit}), flush=True)

    def new(self) -> str:
        """The name of a picture that nobody has seen."""
        return f"{self.flags.seed}-{next(self._number)}"

    def ids(self, length: int) -> list[int]:
        """Random ones, others at every call."""
        rng = random.Random(f"{self.flags.seed}-{next(self._number)}")
        return [rng.randrange(3, self.flags.vocab) for _ in range(length)]

    def asking(self, *pictures: str, output: int = 1) -> Request:
        prompt = [IMAGE_ID] * len(pictures) + self.ids(QUESTION)
        return Request(prompt, len(prompt), output, pictures)

    def prepare(self, requests: Sequence[Request]) -> None:
        """Make the pictures now, not while something is measured."""
        assert self.target.entry is not None
        for request in requests:
            for name in request.images:
                self.target.entry(name)

    async def send(
        self, requests: Sequence[Request], rate: float | None = ALL, concurrency: int = 1
    ) -> list[RequestOutcome]:
        outcomes = await drive(self.target, list(requests), rate=rate, concurrency=concurrency)
        for error in {outcome.error for outcome in outcomes if outcome.error is not None}:
            print(f"failed: {error}", file=sys.stderr)
        self.failed += sum(outcome.error is not None for outcome in outcomes)
        return outcomes

    async def numbers(self) -> Numbers:
        return await scrape(self.session, self.target.url)


async def one(bench: Bench) -> None:
    name = bench.new()
    before = await bench.numbers()
    await bench.send([bench.asking(name) for _ in range(100)])
    after = await bench.numbers()
    encoded = after["images_encoded_total"] - before.get("images_encoded_total", 0.0)
    bench.figure("one: encodings of one new image, 100 requests at once", encoded, "")


async def crowd(bench: Bench) -> None:
    most: dict[str, float] = {}

    async def watch() -> None:
        while True:
            for name, value in (await bench.numbers()).items():
                most[name] = max(most.get(name, 0.0), value)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    alone = await bench.send([bench.asking(bench.new()) for _ in range(40)])
    groups = await bench.send([bench.asking(*[bench.new() for _ in range(6)]) for _ in range(8)])
    watching.cancel()
    answered = sum(outcome.error is None for outcome in alone + groups)
    bench.figure("crowd: of 40 requests of one image and 8 of six, answered", answered, "")
    for name, unit in (("items", ""), ("bytes", "bytes")):
        held = most[f"image_cache_{'used_bytes' if unit else name}"]
        bench.figure(f"crowd: most {name} in the cache", held, unit)
        bench.figure(f"crowd: {name} that fit", most[f"image_cache_capacity_{name}"], unit)


async def row(bench: Bench) -> None:
    if bench.pid is None:
        return
    total = bench.flags.row
    names = [bench.new() for _ in range(total)]

    async def some(part: Sequence[str]) -> dict[str, float]:
        """Answers them, then says what all processes of the server hold together."""
        for first in range(0, len(part), 50):  # files are made as they are needed
            await bench.send([bench.asking(name) for name in part[first : first + 50]], rate=None, concurrency=4)
        assert bench.pid is not None
        pids = [pid for pid, _ in descendants(bench.pid)]
        return {
            "resident memory, MiB": sum(map(resident, pids)) / MIB,
            "descriptors": sum(len(links(pid)) for pid in pids),
            "memory files, MiB": shared_memory(pids)[1] / MIB,
            "processes": len(pids),
        }

    before = await some(names[: total // 5])
    after = await some(names[total // 5 :])
    for what, value in after.items():
        bench.figure(f"row: {what} after {total} images", value, "")
        bench.figure(f"row: more {what} than after {total // 5}", value - before[what], "")


async def gap(bench: Bench) -> None:
    flags, spans = bench.flags, {}

    @contextlib.contextmanager
    def span(what: str) -> Iterator[None]:
        begin = perf_counter()
        yield
        spans[what] = (begin, perf_counter())

    images = [bench.asking(bench.new()) for _ in range(flags.images)]
    bench.prepare(images)
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
        seen = sorted(b - a for a, b in gaps if start <= a and b <= end)
        found.append((percentile(seen, 50), statistics.fmean(seen)))
        bench.figure(f"gap: {flags.streams} text streams {what}, median", found[-1][0] * 1000, "ms")
        bench.figure(f"gap: the same over {end - start:.1f} s, mean", found[-1][1] * 1000, "ms")
        bench.figure("gap: the same, 99th percentile", percentile(seen, 99) * 1000, "ms")
    for what, kind in (("median", 0), ("mean", 1)):
        bench.figure(f"gap: {what} with images to alone", found[1][kind] / found[0][kind], "x")
        bench.figure(f"gap: {what} with such texts to alone", found[2][kind] / found[0][kind], "x")
    bench.figure(f"gap: images encoded of {flags.images}", told["misses"], "")


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
            outcomes = await drive(BenchTarget(url, ignore_eos=True), [Request(ids, QUESTION, ANSWER)], rate=ALL)
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
    bench.figure("first: time to first token, new image, median", medians[0] * 1000, "ms")
    bench.figure("first: same image and start of the question, median", medians[1] * 1000, "ms")
    bench.figure("first: the second to the first", medians[1] / medians[0], "x")
    bench.figure(f"first: encodings for {bench.flags.pairs} second requests", encoded, "")


async def rate(bench: Bench) -> None:
    requests = [bench.asking(bench.new()) for _ in range(bench.flags.images)]
    bench.prepare(requests)
    before = await bench.numbers()
    outcomes = await bench.send(requests, rate=None, concurrency=max(64, bench.flags.concurrency))
    told = between(before, await bench.numbers())
    span = max(outcome.end for outcome in outcomes) - min(outcome.start for outcome in outcomes)
    bench.figure("rate: images through the server", len(outcomes) / span, "images/s")
    bench.figure("rate: images of a batch", told.get("images_per_batch", 0.0), "")
    for stage, one in told.get("stages", {}).items():
        bench.figure(f"rate: {stage}, mean", one["mean_s"] * 1000, "ms")


MEASURES: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "one": one,
    "crowd": crowd,
    "row": row,
    "gap": gap,
    "first": first,
    "rate": rate,
}


@contextlib.contextmanager
def serving(flags: argparse.Namespace, capacity: int) -> Iterator[tuple[str, int | None]]:
    """(address, pid) of a server."""
    if flags.url:
        yield flags.url, None
        return
    with tempfile.TemporaryDirectory() as place:
        folder = write_shape(flags.shape, Path(place) / flags.shape) if flags.shape else flags.model_dir
        config = Config(
            model=ModelConfig(
                model_dir=str(folder),
                load_format="dummy" if flags.shape else flags.load_format,
                data_type=flags.data_type,
                device=flags.device,
            ),
            engine=EngineConfig(max_total_token_num=flags.max_total_token_num, threads=flags.threads, tp=flags.tp),
            http=HttpConfig(port=0, disable_access_log=True),
            multimodal=MultimodalConfig(
                enable_multimodal=True, cache_capacity=capacity, visual_gpu_ids=tuple(flags.visual_gpu_ids)
            ),
            supervisor=SupervisorConfig(log_level="warning"),
        )
        with launch(config) as server:
            server.wait_ready()
            yield server.base_url, server.pid


@contextlib.asynccontextmanager
async def benching(flags: argparse.Namespace, url: str, pid: int | None) -> AsyncIterator[Bench]:
    size = PictureSize.read(flags.image_size)
    async with entries(size, "base64") as entry:
        target = BenchTarget(url, ignore_eos=True, entry=entry)
        async with target.session() as session:
            yield Bench(target, session, pid, flags)


async def measure(flags: argparse.Namespace, names: Sequence[str], url: str, pid: int | None) -> Bench:
    async with benching(flags, url, pid) as bench:
        await bench.send([bench.asking(bench.new(), output=4) for _ in range(3)], rate=None)  # kernels warm up
        for name in names:
            await MEASURES[name](bench)
        return bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model-dir", type=Path)
    where.add_argument("--shape", choices=SHAPES)
    where.add_argument("--url")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"))
    parser.add_argument("--data-type", default="auto")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-total-token-num", type=int)
    parser.add_argument("--visual-gpu-ids", type=int, nargs="*", default=[])
    parser.add_argument("--vocab", type=int, default=200, help="ids are drawn below this")
    parser.add_argument("--image-size", default="336", help="N or WIDTHxHEIGHT in pixels")
    parser.add_argument("--images", type=int, default=200, help="of gap and rate")
    parser.add_argument("--row", type=int, default=1000, help="images of row")
    parser.add_argument("--streams", type=int, default=8, help="text streams of gap")
    parser.add_argument("--concurrency", type=int, default=16, help="requests with images at a time, of gap")
    parser.add_argument("--seconds", type=float, default=10.0, help="of gap without images")
    parser.add_argument("--pairs", type=int, default=20, help="of first")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    groups = [tuple(MEASURES)] if flags.url else list(GROUPS.values())
    rows, failed = [], 0
    for capacity, group in zip(GROUPS, groups, strict=False):
        if names := [name for name in flags.only if name in group]:
            with serving(flags, capacity) as (url, pid):
                bench = asyncio.run(measure(flags, names, url, pid))
            rows += bench.rows
            failed += bench.failed
    print()
    for name, value, unit in rows:
        print(f"{name:<72}{value:>14,.3f} {unit}")
    if failed:
        print(f"{failed} requests failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
