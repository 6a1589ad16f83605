"""The command `lightllm-mp bench`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightllm_mp.cli.flags.parser import Parser, parse
from lightllm_mp.errors import ConfigError

if TYPE_CHECKING:
    from lightllm_mp.cli.bench.client import RequestOutcome

DESCRIPTION = """\
Send a workload to a running server that has /generate_stream (or, with --no-stream, /generate). Report throughput,
time to first token, time between tokens and time of the whole answer. With --images, also report the image cache and
the stages of images and prompts, from the server's /metrics. Exit code 1 if a request failed."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark that `argv` describes. ConfigError for wrong flags."""
    args = _parse(argv)
    figures = _run(args)
    print(json.dumps(figures) if args.json else _described(figures))
    return 1 if figures["failed"] else 0


def _described(figures: dict[str, Any]) -> str:
    from lightllm_mp.cli.bench.report import table

    return table(figures)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    # Imported here, so that `bench --help` needs no aiohttp.
    import asyncio

    from lightllm_mp.cli.bench import pictures, stages, workload
    from lightllm_mp.cli.bench.client import BenchTarget, drive
    from lightllm_mp.cli.bench.report import summarize

    images = workload.Images(args.images, args.image_repeats, args.image_tag)
    shape = {"seed": args.seed, "prompt": args.prompt, "vocab": args.vocab, "images": images}
    requests = workload.make(args.num_requests, args.input_len, args.output_len, **shape)
    warmup = workload.make(args.warmup, args.input_len, args.output_len, name="warmup-", **shape)
    target = BenchTarget(args.url, not args.no_stream, args.ignore_eos, args.timeout, _key(args.api_key_file))
    size = pictures.PictureSize.read(args.image_size)

    async def run() -> dict[str, Any]:
        progress = _progress(len(requests)) if sys.stderr.isatty() else lambda outcome: None
        async with pictures.entries(size, args.image_from) as entry, target.session() as session:
            aim = replace(target, entry=entry)
            await drive(aim, warmup, concurrency=args.concurrency)
            before = await stages.scrape(session, args.url) if args.images else {}
            outcomes = await drive(
                aim, requests, rate=args.rate, concurrency=args.concurrency, seed=args.seed, on_done=progress
            )
            figures = summarize(outcomes)
            if args.images:
                names = [name for request in requests for name in request.images]
                told = stages.between(before, await stages.scrape(session, args.url))
                figures["images"] = {"sent": len(names), "distinct": len(set(names)), **told}
            return figures

    settings = {name: value for name, value in vars(args).items() if name not in ("json", "api_key_file")}
    if args.rate is not None:
        settings["rate"] = args.rate if math.isfinite(args.rate) else "inf"
        del settings["concurrency"]
    return {"settings": settings, **asyncio.run(run())}


def parser() -> Parser:
    found = Parser(prog="lightllm-mp bench", description=DESCRIPTION, allow_abbrev=False, formatter_class=_Formatter)
    add = found.add_argument
    add("--url", default="http://127.0.0.1:8000", help="base address of the server")
    add("--num-requests", type=_at_least(1), default=100, metavar="N", help="number of requests")
    lengths = "N, uniform:a-b or sharegpt"
    add("--input-len", default="sharegpt", metavar="LEN", help=f"prompt lengths in tokens: {lengths}")
    add("--output-len", default="sharegpt", metavar="LEN", help=f"answer lengths in tokens: {lengths}")
    add("--prompt", choices=("ids", "text"), default="ids", help="prompts of token ids, or of as many words")
    add("--vocab", type=_at_least(2), default=32000, metavar="N", help="token ids are drawn below this")
    add("--images", type=_at_least(0), default=0, metavar="N", help="number of images in each request")
    add("--image-size", default="336", metavar="PIXELS", help="edge of the images, or WIDTHxHEIGHT")
    repeats = "share of images that were sent before, from 0 to 1"
    add("--image-repeats", type=_share, default=0.0, metavar="SHARE", help=repeats)
    add("--image-tag", default="<image>", metavar="TAG", help="placeholder of an image in a text prompt")
    source = "send images in the request, or let the server fetch them here (needs --allow-media-host 127.0.0.1)"
    add("--image-from", choices=("base64", "url"), default="base64", help=source)
    load = found.add_mutually_exclusive_group()
    load.add_argument("--rate", type=_positive, metavar="R", help="requests per second, Poisson; inf: all at once")
    load.add_argument("--concurrency", type=_at_least(1), default=16, metavar="C", help="requests at a time")
    add("--seed", type=int, default=0, metavar="N", help="determines lengths, prompts and arrivals")
    add("--ignore-eos", action="store_true", help="generate every answer to its full length")
    add("--no-stream", action="store_true", help="use /generate and time whole answers only")
    add("--warmup", type=_at_least(0), default=1, metavar="N", help="requests to send first; they are not measured")
    add("--timeout", type=_positive, default=600.0, metavar="SECONDS", help="maximum time for one answer")
    add("--api-key-file", metavar="PATH", help="file whose first word is the API key to send")
    add("--json", action="store_true", help="print one JSON object instead of the table")
    return found


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    args = parse(parser(), argv)
    if not args.url.startswith(("http://", "https://")):
        raise ConfigError(f"--url: expected http://HOST:PORT, got {args.url!r}")
    return args


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each flag that has one, and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def _at_least(low: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, got {text!r}")
        return value

    whole.__name__ = "whole number"
    return whole


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


_positive.__name__ = "number"


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


_share.__name__ = "number"


def _key(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        raise ConfigError(f"--api-key-file {file}: no key can be read from this file") from None


def _progress(total: int) -> Callable[[RequestOutcome], None]:
    done = failed = 0

    def tick(outcome: RequestOutcome) -> None:
        nonlocal done, failed
        done, failed = done + 1, failed + (outcome.error is not None)
        print(f"\r{done}/{total} answered, {failed} failed", end="\n" if done == total else "", file=sys.stderr)

    return tick
